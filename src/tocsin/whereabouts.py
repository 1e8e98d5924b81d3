"""Where companies are that have moved from one database (a cell) to another: `moving` moves them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Refusal

_SQL = queries("moving")


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What a cell says of a company: `moved`, `copying` to another cell, or `here`.

    `is_closed`: not served now. `is_leaving`: it has moved, and something of it is still here. `is_coming`: it is being
    copied here, or has come.
    """

    company_id: int
    turn: int
    state: str
    other: str
    is_closed: bool
    is_leaving: bool
    is_coming: bool


async def whereabouts(database: Database) -> dict[int, Whereabouts]:
    """Return what a cell says about the companies that moved, by their ids. It is one small look-up."""
    return {row["company_id"]: Whereabouts(*row) for row in await database.rows(_SQL["whereabouts"])}


async def has_company(database: Database, company_id: int) -> bool:
    """Return whether a company has users or teams in a cell."""
    return bool(await database.value(_SQL["has_company"], company_id))


def cell_of(company_id: int, said: Iterable[Mapping[int, Whereabouts]]) -> str | None:
    """Return the cell that a company moved to, by what all cells say; None: it never moved."""
    moved = [each[company_id] for each in said if company_id in each and each[company_id].state == "moved"]
    return max(moved, key=lambda each: each.turn).other if moved else None


def origin_of(company_id: int, to: str, said: Mapping[str, Mapping[int, Whereabouts]], first: str) -> str:
    """Return the cell that a company leaves or has left for another; `first` is its cell if it never moved.

    It is the cell itself if the company is there and is being copied to another one. Raises `Refusal` if it is there
    without a move, which could continue or be given up, or if another move has not ended.
    """
    for name, each in said.items():
        if company_id in each and each[company_id].is_leaving:
            if each[company_id].other == to:
                return name
            raise not_ended(company_id, each[company_id].other)
    now = cell_of(company_id, said.values()) or first
    if now != to:
        return now
    left = [
        (each[company_id].turn, name)
        for name, each in said.items()
        if company_id in each and (each[company_id].state, each[company_id].other) == ("moved", to)
    ]
    if left:
        return max(left)[1]
    if company_id in said.get(to, {}) and said[to][company_id].state == "copying":
        return to
    raise Refusal(f"Company {company_id} is in cell {to} already.")


def not_ended(company_id: int, other: str) -> Refusal:
    """Return the refusal of a command while another move has not ended."""
    command = f"tocsin cell move {company_id} --to {other}"
    return Refusal(f"The move of company {company_id} to cell {other} has not ended. Repeat `{command}`.")
