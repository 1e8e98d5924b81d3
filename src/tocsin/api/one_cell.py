"""A process that serves one of several cells: refuses what is for a company that another cell has, or will have."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from cachetools import TTLCache
from starlette.requests import Request
from starlette.types import Scope

from tocsin.api.cell_lookups import (
    MAX_REMEMBERED,
    REMEMBERED_FOR,
    Key,
    Places,
    has_left,
    is_moving,
    keys_of,
    recipients_of,
    unavailable,
    watch,
)
from tocsin.api.state import AppState
from tocsin.auth.claims import ServiceCaller, UserCaller
from tocsin.cells import Cell, Cells
from tocsin.db.pool import Database
from tocsin.directory import known_in
from tocsin.errors import Overrun, Unavailable
from tocsin.ids import is_id, parsed_id


class OneCell(Places[None]):
    """Follows which companies the cell has, and refuses requests for those that it does not serve, or not now.

    `others` are the databases of the other cells. While no company moves or has moved, nothing is looked up.
    """

    names: Sequence[str] = ()
    """The cells that requests can name."""

    def __init__(self, cells: Cells, own: Cell, app_state: AppState, others: Mapping[str, Database]) -> None:
        super().__init__(cells)
        self._own = own
        self._app_state, self._others = app_state, others
        self._closed = self._elsewhere = frozenset[int]()
        self._left: Mapping[int, str] = {}
        self._left_for: Sequence[str] = ()
        self._here: TTLCache[Key, bool] = TTLCache(MAX_REMEMBERED, REMEMBERED_FOR)

    def databases(self) -> dict[str, Database]:
        """Return the databases of all cells, by their names."""
        return {self._own.name: self._app_state.database, **self._others}

    def close_streams(self) -> None:
        """End the streams."""
        self._app_state.streams.close()

    async def watch(self) -> None:
        """Look every second at the moves of companies, forever. A cell that hangs delays no other."""
        await asyncio.gather(watch(self.look), *(watch(partial(self.look_at, name)) for name in self._others))

    async def look(self) -> None:
        """Look which companies are closed or have moved. What the cell said last stays while it is away."""
        if await self._moves.ask({self._own.name: self._app_state.database}):
            self._note()

    async def look_at(self, name: str) -> None:
        """Look at another cell, if companies have come from it: they may move on, or may still be there."""
        come_from = {each.other for each in self._moves.of(self._own.name).values() if each.is_coming}
        if name in come_from and await self._moves.ask({name: self._others[name]}):
            self._note()

    def _note(self) -> None:
        name, moves = self._own.name, self._moves
        coming = [company for company, each in moves.of(name).items() if each.is_coming]
        self._here.clear()
        self._closed = frozenset(moves.closed_in(name))
        self._elsewhere = self._closed | {company for company in coming if moves.cell_of(company) != name}
        left = {company: each.other for company, each in moves.of(name).items() if each.state == "moved"}
        self._left = {company: other for company, other in left.items() if other in self._others}
        self._left_for = sorted({*self._left.values()})

    async def place_caller(self, scope: Scope, caller: UserCaller | ServiceCaller) -> None:
        """Raise `Unavailable` if the company of a caller is not served here."""
        await self._place(scope, partial(self._refuse_caller, caller))

    async def place_service(self, request: Request, given: Mapping[str, Any] | None) -> None:
        """Raise `Unavailable` if a request of a service of all companies names one that is not served here."""
        await self._place(request.scope, partial(self._refuse_request, request, given))

    async def _refuse_caller(self, caller: UserCaller | ServiceCaller) -> None:
        if isinstance(caller, UserCaller):
            await self._refuse([("users", caller.id)])
        elif caller.company_id is not None:
            self._refuse_company(caller.company_id)

    async def _refuse_request(self, request: Request, given: Mapping[str, Any] | None) -> None:
        if given is not None and (recipients := recipients_of(given)) is not None:
            await self._refuse(recipients)
            return
        self._refuse_company((given or {}).get("company_id"))
        self._refuse_company(parsed_id(request.query_params.get("company_id", "")))
        if request.method != "PUT":
            await self._refuse(keys_of(request.path_params))

    def _refuse_company(self, company_id: Any) -> None:
        if not is_id(company_id):
            return
        if company_id in self._elsewhere:
            raise is_moving()
        if company_id in self._left:
            raise _serves(self._left[company_id])

    async def _refuse(self, keys: Sequence[Key]) -> None:
        """Raise `Unavailable` if one of these users and teams is in such a company, or in the cell that it left for."""
        if not (self._elsewhere or self._left_for):
            return
        keys = [key for key in keys if key not in self._here]
        if not keys:
            return
        database = self._app_state.database
        for company_id in self._elsewhere:
            if await known_in(database, keys, company_id):
                raise is_moving()
        missing = {*keys} - await known_in(database, keys)
        if missing and self._closed and await has_left(database, self._closed):
            raise is_moving()
        for name in self._left_for if missing else ():
            if await self._is_known(name, missing):
                raise _serves(name)
        self._here.update(dict.fromkeys({*keys} - missing, True))

    async def _is_known(self, name: str, keys: Iterable[Key]) -> bool:
        try:
            return bool(await known_in(self._others[name], keys))
        except (Unavailable, Overrun) as error:
            raise unavailable(f"The cell {name} is not available.") from error


def _serves(name: str) -> Unavailable:
    return unavailable(f"The cell {name} serves the company.")
