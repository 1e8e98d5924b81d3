"""What requests name, and in which cells it is: for processes that serve all cells, or one of several."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from starlette.types import Scope

from tocsin.api.requests import named_in
from tocsin.api.state import PLACED, AppState
from tocsin.backoff import Backoff
from tocsin.cells import Cells
from tocsin.db.pool import Database
from tocsin.errors import Problem, Unavailable
from tocsin.ids import is_id, parsed_id
from tocsin.whereabouts import Whereabouts, whereabouts
from tocsin.whereabouts import cell_of as moved_to

MAX_REMEMBERED, REMEMBERED_FOR = 200_000, 600.0
"""Maximum users and teams whose cells are remembered, and for how many seconds."""

WATCH_INTERVAL = 1.0
"""Seconds between two looks which companies are moving or have moved."""

RETRY_AFTER = 5
"""Seconds after which a request to a cell that is away is repeated."""

F = TypeVar("F")
S = TypeVar("S")
T = TypeVar("T")

Key = tuple[str, int]
"""A user or a team: `("users", 7)`."""


class Moves:
    """What the cells said last of the companies that are moving or have moved."""

    def __init__(self, cells: Cells) -> None:
        self.said: Mapping[str, Mapping[int, Whereabouts]] = {}
        self.changes = 0
        """How often a cell said something else than before."""
        self._cells = cells

    async def ask(self, databases: Mapping[str, Database]) -> bool:
        """Ask these cells; return whether one says something else than before. One that is away says the same."""
        found = await ask_all(databases, whereabouts)
        return self.note({name: each for name, each in found.items() if not isinstance(each, BaseException)})

    def note(self, found: Mapping[str, Mapping[int, Whereabouts]]) -> bool:
        """Take what cells say; return whether one says something else than before."""
        said = {**self.said, **found}
        said = {name: each for name, each in said.items() if each}  # a cell that is new says nothing of its companies
        before, self.said = self.said, said
        self.changes += said != before
        return said != before

    def of(self, name: str) -> Mapping[int, Whereabouts]:
        """Return what a cell said, by the companies."""
        return self.said.get(name, {})

    def closed_in(self, name: str) -> list[int]:
        """Return the companies of a cell that are closed, as they are for seconds while they move."""
        return [company_id for company_id, each in self.of(name).items() if each.is_closed]

    @property
    def copied(self) -> set[int]:
        """The companies that are being copied from one cell to another."""
        return {id_ for said in self.said.values() for id_, each in said.items() if each.state == "copying"}

    def others_of(self, name: str) -> list[int]:
        """Return the companies of which a cell has rows, although another one is theirs: they move."""
        moving = [company_id for company_id, each in self.of(name).items() if each.is_coming or each.is_leaving]
        return [company_id for company_id in moving if self.cell_of(company_id) != name]

    def cell_of(self, company_id: int) -> str:
        """Return the cell of a company: the one that it moved to, or else that of the file."""
        name = moved_to(company_id, self.said.values())
        return name if name and name in self._cells.by_name else self._cells.cell_of(company_id).name


class _Placed(NamedTuple):
    """How the cell of a request is found, how often the cells had said something else before, and what was found."""

    find: Callable[[], Awaitable[Any]]
    changes: int
    found: Any


class Places(Generic[F]):
    """Finds the places of requests, and finds that of a request again if a company has moved since."""

    def __init__(self, cells: Cells) -> None:
        self._moves = Moves(cells)

    async def _place(self, scope: Scope, find: Callable[[], Awaitable[F]]) -> F:
        changes = self._moves.changes
        found = await find()
        scope["state"][PLACED] = _Placed(find, changes, found)
        return found

    async def in_other_cells(self, own: AppState, keys: Sequence[Key]) -> set[Key]:  # noqa: ARG002 - for several
        """Return which users and teams, which are to be put into a cell, another one has: none is looked up."""
        return set()

    async def refuse_moved(self, scope: Scope) -> None:
        """Raise `Unavailable` if the company of a request has moved since the request was placed, or is moving.

        A request that is late, because the service is busy or the request waited for a lock, does not find its users
        in their former cell. Before it answers that they are unknown, it looks here.
        """
        placed: _Placed | None = scope["state"].get(PLACED)
        if placed is None or placed.changes == self._moves.changes:
            return
        try:
            is_there = await placed.find() is placed.found
        except Unavailable:
            raise
        except Problem:  # the request is wrong in any cell
            return
        if not is_there:
            raise is_moving()


async def watch(look: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Look every second at the moves of companies, forever."""
    await Backoff("companies that move").repeat(look, WATCH_INTERVAL)


async def ask_all(states: Mapping[str, S], ask: Callable[[S], Coroutine[Any, Any, T]]) -> dict[str, T | BaseException]:
    """Ask all cells at the same time; return the answer or the error of each, by its name."""
    names = list(states)
    answers = await asyncio.gather(*(ask(states[name]) for name in names), return_exceptions=True)
    return dict(zip(names, answers, strict=True))


async def has_left(database: Database, closed: Iterable[int]) -> bool:
    """Return whether one of these companies, which were closed when they were last seen, has moved since."""
    said = await whereabouts(database)
    return any(said[company_id].state == "moved" for company_id in closed if company_id in said)


def recipients_of(given: Mapping[str, Any]) -> list[Key] | None:
    """Return the users and teams that an event, a batch or a resolution names; None for other bodies."""
    events = given["events"] if isinstance(given.get("events"), list) else [given] if "notify" in given else None
    if events is None:
        return _keys(given["users"], []) if "about" in given and isinstance(given.get("users"), list) else None
    return [key for event in events if isinstance(event, dict) for key in _keys(*named_in(event))]


def _keys(users: Sequence[Any], teams: Sequence[Any]) -> list[Key]:
    named = [*(("users", id_) for id_ in users), *(("teams", id_) for id_ in teams)]
    return list(dict.fromkeys(key for key in named if is_id(key[1])))


def keys_of(names: Mapping[str, Any]) -> list[Key]:
    """Return the user or team in a path."""
    given = [(kind, parsed_id(str(names.get(name, "")))) for kind, name in (("teams", "team_id"), ("users", "user_id"))]
    return [(kind, id_) for kind, id_ in given if id_ is not None][:1]


def is_moving() -> Unavailable:
    """Return the refusal of a request for a company that moves."""
    return unavailable("The company is moving to another database.")


def unavailable(message: str) -> Unavailable:
    """Return the refusal of a request to a cell that cannot answer it now."""
    return Unavailable(f"{message} Please try again.", retry_after=RETRY_AFTER)
