"""The cells: databases for a group of companies each, which TOCSIN_CELLS_FILE names. Without the file there is one."""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from tocsin import setting_types as types
from tocsin.db.connections import Connection, connect
from tocsin.db.errors import DRIVER_ERRORS, sentence_on, url_named_by
from tocsin.db.migrate import is_current
from tocsin.db.statements import queries
from tocsin.db.url import SCHEMA
from tocsin.errors import Refusal
from tocsin.files import setting_tables
from tocsin.ids import MAX_ID, is_id
from tocsin.jobs import LEASE_TIMEOUT
from tocsin.postgres.supervisor import is_served, url_of
from tocsin.settings import PREFIX, Settings

MAX_CELLS = 100
"""Maximum cells: each has pools of its own in every process."""

MAX_LISTED = 20
"""Maximum companies that `tocsin cell list` names as moved from a cell."""

MAIN = "main"
"""The only cell of a service without a file."""

PATIENCE = 60.0
"""Seconds that counting what is in a cell may take."""

WHAT = "The file of cells"

_SQL = queries("cells")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_RANGE = re.compile(r"([1-9][0-9]{0,9})-([1-9][0-9]{0,9})")


def _companies(value: Any) -> Any:
    """Read one range of companies: an id, or a text such as 100-199."""
    if is_id(value):
        return range(value, value + 1)
    found = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if found and int(found[1]) <= int(found[2]) <= MAX_ID:
        return range(int(found[1]), int(found[2]) + 1)
    raise ValueError('write the id of a company, or a range such as "100-199"')


class CellEntry(BaseModel, extra="forbid", frozen=True):
    """A cell in the file. The table has its name."""

    default: Annotated[bool, Field(strict=True)] = False
    url: types.DatabaseUrl | None = None
    schema_name: Annotated[types.Schema, Field(alias="schema")] = SCHEMA
    replica_url: types.DatabaseUrl | None = None
    companies: Annotated[tuple[Annotated[Any, BeforeValidator(_companies)], ...], Field(max_length=100_000)] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: a database, which may share its server or its PostgreSQL database with others, and its companies.

    The default cell has all companies that no other one has. Without a url, it is in the database of the settings.
    """

    name: str
    entry: CellEntry

    @property
    def is_default(self) -> bool:
        """Whether it has the companies that the file does not name."""
        return self.entry.default

    def settings(self, settings: Settings) -> Settings:
        """Return the settings of a service of this cell alone."""
        changed: dict[str, Any] = {"cells_file": None, "database_schema": self.entry.schema_name}
        if self.entry.url:
            changed |= {"database_url": self.entry.url, "replica_url": self.entry.replica_url}
        elif self.entry.replica_url:
            changed["replica_url"] = self.entry.replica_url
        return settings.of_cell("" if self.is_default else self.name, changed)


@dataclass(frozen=True)
class Cells:
    """All cells, by their names."""

    by_name: Mapping[str, Cell]

    def __iter__(self) -> Iterator[Cell]:
        """Return the cells in the order of the file."""
        return iter(self.by_name.values())

    @cached_property
    def default(self) -> Cell:
        """The cell of the companies that the file does not name."""
        return next(cell for cell in self if cell.is_default)

    def named(self, name: str) -> Cell:
        """Return the cell with a name. Raises `Refusal` if there is no such cell."""
        if name not in self.by_name:
            raise Refusal(f"There is no cell {name}: use {', '.join(self.by_name)}.")
        return self.by_name[name]

    def cell_of(self, company_id: int) -> Cell:
        """Return the cell that the file gives a company; it may have moved since."""
        return next((cell for cell in self if any(company_id in each for each in cell.entry.companies)), self.default)


def cells_of(settings: Settings) -> Cells | None:
    """Return the cells of the file, None without one. Raises `Refusal` with all errors of the file."""
    return None if settings.cells_file is None else _read(setting_tables(settings.cells_file, WHAT), settings)


def with_cell(settings: Settings, name: str, table: Mapping[str, Any]) -> Cell:
    """Return a cell as it would be after its addition to the file. Raises `Refusal` if it does not fit the others."""
    tables = setting_tables(settings.cells_file, WHAT) if settings.cells_file else {MAIN: {"default": True}}
    if name in tables:
        raise Refusal(f"There is a cell {name} already.")
    return _read({**tables, name: table}, settings).named(name)


def _read(tables: Mapping[str, Any], settings: Settings) -> Cells:
    found, problems = dict[str, Cell](), list[str]()
    for name, table in tables.items():
        try:
            found[name] = Cell(name, CellEntry.model_validate(table))
        except ValidationError as error:
            problems += [
                f"[{name}] {'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}"
                for each in error.errors(include_url=False, include_input=False)
            ]
    if not problems:
        problems = [*_problems(found, settings)]
    if problems:
        raise Refusal("\n".join(f"{settings.cells_file or WHAT}: {problem}." for problem in problems))
    return Cells(found)


def of_cell(settings: Settings, name: str | None) -> Settings:
    """Return the settings of one cell, without a name of the default one. Raises `Refusal` if there is none."""
    cells = cells_of(settings)
    if cells is None:
        if name not in {None, MAIN}:
            raise Refusal(f"There is no cell {name}: {PREFIX}CELLS_FILE is not set.")
        return settings
    return (cells.named(name) if name else cells.default).settings(settings)


def other_cells(settings: Settings, name: str | None) -> dict[str, Settings]:
    """Return the settings of all cells but one, without a name the default one, by their names."""
    cells = cells_of(settings)
    if cells is None:
        return {}
    one = cells.named(name) if name else cells.default
    return {cell.name: cell.settings(settings) for cell in cells if cell is not one}


def every_cell(settings: Settings, name: str | None = None) -> list[Settings]:
    """Return the settings of each cell, or of the one with this name. Raises `Refusal` if there is none."""
    cells = cells_of(settings)
    return [of_cell(settings, name)] if cells is None or name else [cell.settings(settings) for cell in cells]


def text_of(name: str, table: Mapping[str, Any]) -> str:
    """Return the table of a cell as it is written in the file."""
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Connection]:
    """Connect to the database of a cell, if it runs, for the block. Raises `Refusal` for an error of the database."""
    if settings.database_url is None and not is_served(settings.data_dir):
        raise Refusal("The embedded PostgreSQL does not run.")
    named_before = url_named_by.set(settings.url_setting)
    try:
        connection = await connect(settings.own_database_url or url_of(settings.data_dir), PATIENCE)
        try:
            yield connection
        finally:
            connection.terminate()
    except (*DRIVER_ERRORS, ValueError) as error:
        raise Refusal(sentence_on(error)) from error
    finally:
        url_named_by.reset(named_before)


async def state_of(settings: Settings) -> str:
    """Return whether the database of a cell can be used, and what is in it, in words."""
    try:
        async with connected(settings) as connection:
            if not await is_current(connection):
                return "migrations are pending"
            counts = await connection.fetchrow(_SQL["counts"], LEASE_TIMEOUT, MAX_LISTED)
    except Refusal as error:
        return str(error).rstrip(".")
    companies, users, workers, moved = counts or (0, 0, 0, None)
    left = f"; moved from here: {moved}" if moved else ""
    return f"ready, {companies} companies, {users} users, {workers} workers{left}"


def _problems(found: Mapping[str, Cell], settings: Settings) -> Iterator[str]:
    """Yield what is wrong with the cells together."""
    if not 1 <= len(found) <= MAX_CELLS:
        yield f"it has {len(found)} cells; write 1 to {MAX_CELLS}"
    for name in found:
        if not _NAME.fullmatch(name):
            yield f"[{name}] is not a name: write up to 40 of a-z, 0-9 and -, with a letter first"
    defaults = [name for name, cell in found.items() if cell.is_default]
    if len(defaults) != 1:
        said = f"{' and '.join(defaults)} are" if defaults else "no cell is"
        yield f"{said} the default: write `default = true` in exactly one table"
    embedded = [name for name, cell in found.items() if cell.settings(settings).database_url is None]
    for name in embedded:
        if not found[name].is_default or found[name].entry.schema_name != SCHEMA:
            yield f"[{name}] needs a url: the embedded PostgreSQL has the default cell alone"
    places = dict[str, str]()
    for name, cell in found.items():
        place = cell.settings(settings).own_database_url
        if place and (other := places.get(place)):
            yield f"[{other}] and [{name}] are the same schema of the same database"
        places[place or ""] = name
    yield from _overlaps(found)


def _overlaps(found: Mapping[str, Cell]) -> Iterator[str]:
    """Yield the companies that two cells have."""
    ranges = sorted((each.start, each.stop, name) for name, cell in found.items() for each in cell.entry.companies)
    for (_, end, one), (start, _, other) in pairwise(ranges):
        if start < end:
            yield f"[{one}] and [{other}] both have company {start}"
