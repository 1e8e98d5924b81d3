"""Several cells in one process: finds the cell of each request. Without a file of cells, none of this is there."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from cachetools import TTLCache
from starlette.requests import Request
from starlette.types import Scope

from tocsin import directory, event_status
from tocsin.api.cell_lookups import (
    MAX_REMEMBERED,
    REMEMBERED_FOR,
    Key,
    Places,
    ask_all,
    has_left,
    is_moving,
    keys_of,
    recipients_of,
    unavailable,
    watch,
)
from tocsin.api.state import APP_STATE, AppState, app_state_of
from tocsin.auth.claims import ServiceCaller, UserCaller
from tocsin.cells import Cells
from tocsin.db.pool import Database
from tocsin.directory import known_in
from tocsin.errors import Invalid, NotFound, Overrun, TooLate, Unavailable
from tocsin.event_status import Viewer
from tocsin.formats import DEFAULT_COMPANY
from tocsin.ids import is_id, parsed_id, parsed_uuid
from tocsin.shared_statements import SharedStatements
from tocsin.validation import field_error
from tocsin.whereabouts import whereabouts

NAMING, ACCEPTING = frozenset({"user_id", "team_id", "event_id"}), ("/events", "/events/batch", "/events/resolve")
"""The parts of paths that name something in a cell, and the paths of what names its recipients. Requests in which these
are not valid are refused by any cell, and a resolution without users is accepted by all."""

T = TypeVar("T")


class Looked(NamedTuple):
    """A look-up: the cells that are away, and what no other cell has."""

    missed: Sequence[str]
    without: set[Key]


class Routing(Places[AppState]):
    """The states of the cells that are open in this process."""

    def __init__(self, cells: Cells, default: AppState) -> None:
        super().__init__(cells)
        self.cells = cells
        self.states = {cells.default.name: default}
        self._remembered: TTLCache[Key, str] = TTLCache(MAX_REMEMBERED, REMEMBERED_FOR)
        self._looks = SharedStatements(self._look_up)
        default.verifier.on_withdrawal = self._end_streams
        default.metrics.databases_of_cells = self.databases
        default.metrics.watch_streams(lambda: sum(each.streams.count for each in self.states.values()))

    @property
    def names(self) -> Sequence[str]:
        """The cells that requests can name, the default one first."""
        return sorted(self.cells.by_name, key=lambda name: not self.cells.named(name).is_default)

    @property
    def away(self) -> list[str]:
        """The names of the cells that are not open."""
        return [cell.name for cell in self.cells if cell.name not in self.states]

    def databases(self) -> dict[str, Database]:
        """Return the databases of the cells that are open, by their names."""
        return {name: each.database for name, each in self.states.items()}

    async def ask_all(self, ask: Callable[[AppState], Coroutine[Any, Any, T]]) -> dict[str, T | BaseException]:
        """Ask all open cells at the same time; return the answer or the error of each, by its name."""
        return await ask_all(self.states, ask)

    def close_streams(self) -> None:
        """End the streams of all cells."""
        for app_state in self.states.values():
            app_state.streams.close()

    async def add(self, name: str, app_state: AppState) -> None:
        """Serve a further cell, once it has said which companies have left it. Raises `Unavailable` if it is away."""
        said = await whereabouts(app_state.database)
        if self._moves.note({name: said}):
            self._remembered.clear()
        self.states[name] = app_state

    async def watch(self) -> None:
        """Look every second which companies have moved or are closed, forever. A cell that hangs delays no other."""
        await asyncio.gather(*(watch(partial(self.look, cell.name)) for cell in self.cells))

    async def look(self, name: str) -> None:
        """Look which companies of a cell have moved or are closed. What it said last stays while it is away."""
        if name in self.states and await self._moves.ask({name: self.states[name].database}):
            self._remembered.clear()

    def _end_streams(self) -> None:
        for app_state in self.states.values():
            app_state.streams.end_all()

    async def place_caller(self, scope: Scope, caller: UserCaller | ServiceCaller) -> None:
        """Take the state of the cell of a user, or of the company of a service, for a request."""
        if isinstance(caller, UserCaller):
            scope[APP_STATE] = await self._place(scope, partial(self._of_all, [("users", caller.id)]))
        elif caller.company_id is not None:
            scope[APP_STATE] = await self._place(scope, partial(self._of_service, caller.company_id))

    async def place_service(self, request: Request, given: Mapping[str, Any] | None) -> None:
        """Take the state for a request of a service of all companies, by what the request names.

        Raises `Invalid` if it names what is in several cells, or nothing by which a cell is found.
        """
        request.scope[APP_STATE] = await self._place(request.scope, partial(self._of_request, request, given))

    async def _of_request(  # noqa: PLR0911 - one case for each thing that a request can name
        self, request: Request, given: Mapping[str, Any] | None
    ) -> AppState:
        path: str = request.scope["path"]
        names = request.path_params
        if request.scope["query_string"] and (name := request.query_params.get("cell")):
            if name not in self.cells.by_name:
                raise Invalid([field_error("cell", "in", f"must be one of {', '.join(self.cells.by_name)}")])
            return self._named(name)
        if given is not None and (recipients := recipients_of(given)) is not None:
            return await self._of_all(recipients)
        if request.method == "PUT" and given is not None and (keys := keys_of(names)):
            return await self._of_entry(keys, given.get("company_id") or DEFAULT_COMPANY)
        if keys := keys_of(names):
            return await self._of_all(keys)
        if (event_id := parsed_uuid(str(names.get("event_id", "")))) is not None:
            return await self._of_event(event_id)
        if (company_id := parsed_id(request.query_params.get("company_id", ""))) is not None:
            return self._of_company(company_id)
        is_invalid = not NAMING.isdisjoint(names) or (request.method == "POST" and path in ACCEPTING)
        if path.startswith(("/directory", "/events")) and not is_invalid:
            raise Invalid([field_error("cell", "required", "is required, because the request names no company")])
        return self._named(self.cells.default.name)

    async def _of_entry(self, keys: Sequence[Key], company_id: Any) -> AppState:
        """Return the state for a user or team that is put into a company. Raises `Invalid` if it is in another cell."""
        if not is_id(company_id):
            return self._named(self.cells.default.name)
        found = self._of_company(company_id)
        if await self.in_other_cells(found, keys):
            raise Invalid([field_error("company_id", "prohibited", "is that of a company in another cell")])
        return found

    async def _of_event(self, event_id: Any) -> AppState:
        """Return the state of the cell that has an event. Raises `NotFound`."""
        names, is_missed = list(self.states), bool(self.away)
        for name in names:
            try:
                if await event_status.is_there(self.states[name].database, event_id, Viewer()):
                    return self.states[name]
            except (Unavailable, Overrun):
                is_missed = True
        if is_missed:
            raise unavailable("A cell that may have this event is not available.")
        raise NotFound

    async def cancel(self, request: Request, cancel: Callable[[AppState], Coroutine[Any, Any, None]]) -> None:
        """Cancel an event in all cells that have a part of it, or in the one that the request names.

        What was delivered in one cell and is cancelled in another one is cancelled. Raises `TooLate` if no cell cancels
        anything, `NotFound` if none has it, and `Unavailable` if a cell is away that may have a part.
        """

        async def is_cancelled(app_state: AppState) -> bool:
            try:
                await cancel(app_state)
            except TooLate:
                return False
            return True

        found, away = await self._ask_parts(request, is_cancelled)
        if away & self._dividing():
            raise unavailable("A cell that may have this event is not available.")
        if not any(found):
            raise TooLate

    async def parts(
        self, request: Request, ask: Callable[[AppState, Sequence[int]], Coroutine[Any, Any, T]]
    ) -> list[T]:
        """Return what the cells say that have a part of an event, or the one that the request names, if they are open.

        They are asked without companies that are being copied there, or have not wholly left: other cells have them.
        Raises `NotFound`, and `Unavailable` if a cell that may have the event is away, and no other one has it.
        """
        if not self._dividing() or "cell" in request.query_params:
            return [await ask(app_state_of(request), ())]
        if any(self._moves.others_of(name) for name in self.names):
            await asyncio.gather(*map(self.look, self.names))  # the last look was up to a second ago
        others = {each.database: self._moves.others_of(name) for name, each in self.states.items()}
        return (await self._ask_parts(request, lambda each: ask(each, others[each.database])))[0]

    async def do_in_all(
        self, request: Request, placed: AppState, do: Callable[[AppState], Coroutine[Any, Any, None]]
    ) -> None:
        """Do what can be repeated in all cells, the default one in the state `placed`, or in the one that is named.

        Raises `Unavailable` if a cell is away, or a company moves, which could be missed in both of its cells. It may
        have been done in other cells then.
        """
        if "cell" in request.query_params:
            await do(placed)
            return
        changes = self._moves.changes
        if any(self._moves.closed_in(name) for name in self.names):
            raise is_moving()
        found = await ask_all({**self.states, self.cells.default.name: placed}, do)
        for error in found.values():
            if isinstance(error, BaseException) and not isinstance(error, Unavailable | Overrun):
                raise error
        if away := [name for name in self.names if name not in found or found[name]]:
            raise unavailable(f"The cell {' or '.join(away)} is not available.")
        if self._moves.changes != changes:
            raise is_moving()

    async def _ask_parts(
        self, request: Request, ask: Callable[[AppState], Coroutine[Any, Any, T]]
    ) -> tuple[list[T], set[str]]:
        """Return what the cells say that have a part of an event, at least one, and the cells that are away."""
        if "cell" in request.query_params:
            return [await ask(app_state_of(request))], set()
        answers, away = list[T](), {*self.away}
        for name, found in (await self.ask_all(ask)).items():
            if isinstance(found, Unavailable | Overrun):
                away.add(name)
            elif not isinstance(found, BaseException):
                answers.append(found)
            elif not isinstance(found, NotFound):
                raise found
        if away and not answers:
            raise unavailable("A cell that may have this event is not available.")
        if not answers:
            raise NotFound
        return answers, away

    def _dividing(self) -> set[str]:
        """Return the cells between which companies have moved: their events may have parts in several of them."""
        return {*self._moves.said, *(each.other for said in self._moves.said.values() for each in said.values())}

    async def _of_service(self, company_id: int) -> AppState:
        return self._of_company(company_id)

    def _of_company(self, company_id: int) -> AppState:
        name = self._moves.cell_of(company_id)
        if company_id in self._moves.closed_in(name):
            raise is_moving()
        return self._named(name)

    async def _of_all(self, keys: Sequence[Key]) -> AppState:
        """Return the state of the one cell that has these users and teams; the default cell for unknown ones."""
        found = await self._cells_of(keys)
        if len(found) > 1:
            says = f"names recipients of the cells {' and '.join(sorted(found))}, which cannot accept an event together"
            raise Invalid([field_error("notify", "prohibited", says)])
        name = found.pop() if found else self.cells.default.name
        app_state = self._named(name)
        if closed := self._moves.closed_in(name):
            await _refuse_closed(app_state, keys, closed)
        return app_state

    async def _cells_of(self, keys: Sequence[Key]) -> set[str]:
        """Return the names of the cells of users and teams. Raises like `_names_of`."""
        return {name for name in await self._names_of(keys) if name}

    async def _names_of(self, keys: Sequence[Key]) -> list[str | None]:
        """Return the name of the cell of each of these users and teams, None for unknown ones.

        Raises `Unavailable` if one may be in a cell that is away.
        """
        names = [self._remembered.get(key) for key in keys]
        if None in names:
            unknown = [key for key, name in zip(keys, names, strict=True) if name is None]
            found = await self._looks.of(tuple(unknown))
            if found and not found.without.isdisjoint(unknown):
                raise unavailable(f"The cell {' or '.join(found.missed)} is not available.")
            names = [self._remembered.get(key) for key in keys]
        return names

    async def _look_up(self, asked: Sequence[tuple[Key, ...]]) -> dict[tuple[Key, ...], Looked]:
        """Look users and teams up for several requests, by one statement for each cell, and remember their cells."""
        keys = {key for each in asked for key in each}
        missed = self.away
        found = await self.ask_all(lambda each: known_in(each.database, keys))
        for name, known in found.items():
            if isinstance(known, Unavailable | Overrun):
                missed.append(name)
            elif isinstance(known, BaseException):
                raise known
        in_cells = {name: known for name, known in found.items() if not isinstance(known, BaseException)}
        copies = await self._copies(in_cells, missed) if missed else set[Key]()
        without, several = set[Key](), dict[Key, Sequence[str]]()
        for key in keys:
            there = [name for name, known in in_cells.items() if key in known]
            if len(there) > 1:
                several[key] = there
            elif there and key not in copies:
                self._remembered[key] = there[0]
            elif missed:
                without.add(key)
        self._remembered.update(await self._owners_of(several))
        return dict.fromkeys(asked, Looked(missed, without))

    async def _copies(self, found: Mapping[str, set[Key]], missed: Collection[str]) -> set[Key]:
        """Return which users and teams are only copies: their company is in a missed cell, and moves from there."""
        copies = set[Key]()
        for name, known in found.items():
            if not known:
                continue
            await self.look(name)
            coming = {company_id for company_id, each in self._moves.of(name).items() if each.is_coming}
            for company_id in coming | self._moves.copied:
                if self._moves.cell_of(company_id) in missed:
                    copies |= await known_in(self.states[name].database, known, company_id)
        return copies

    async def _owners_of(self, several: Mapping[Key, Sequence[str]]) -> dict[Key, str]:
        """Return which of several cells has these users and teams, while their company moves: that of the company."""
        owners = dict[Key, str]()
        for company_id in self._moves.copied if several else ():
            name = self._moves.cell_of(company_id)
            if name in self.states:
                owners |= dict.fromkeys(await known_in(self.states[name].database, several, company_id), name)
        for key in several.keys() - owners.keys():
            with suppress(NotFound):  # it has just been deleted
                owners[key] = await self._owner_of(key, several[key])
        return owners

    async def _owner_of(self, key: Key, names: Sequence[str]) -> str:
        database = self.states[names[0]].database
        kind, id_ = key
        if kind == "users":
            company_id = (await directory.get_user(database, id_, None)).company_id
        else:
            company_id = (await directory.get_team(database, id_, None)).company_id
        name = self._moves.cell_of(company_id)
        return name if name in names else names[0]

    async def in_other_cells(self, own: AppState, keys: Sequence[Key]) -> set[Key]:
        """Return which users and teams, which are to be put into a cell, another one has.

        They are looked up also if their cell is remembered, since they may have been deleted there. Raises
        `Unavailable` if one may be in a cell that is away.
        """
        for key in keys:
            self._remembered.pop(key, None)
        found = zip(keys, await self._names_of(keys), strict=True)
        return {key for key, name in found if name and self.states[name].database is not own.database}

    def _named(self, name: str) -> AppState:
        if name not in self.states:
            raise unavailable(f"The cell {name} is not available.")
        return self.states[name]


async def _refuse_closed(app_state: AppState, keys: Sequence[Key], closed: Sequence[int]) -> None:
    """Raise `Unavailable` if one of these users and teams is in a closed company, or gone and one has just left."""
    for company_id in closed:
        if await known_in(app_state.database, keys, company_id):
            raise is_moving()
    if {*keys} - await known_in(app_state.database, keys) and await has_left(app_state.database, closed):
        raise is_moving()
