"""The keys of events: names that services give them. A later event with the same key replaces the earlier one."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from tocsin.acceptance import Draft
from tocsin.cancellation import ANY_COMPANY, hold, replace
from tocsin.db.connections import Connection
from tocsin.db.statements import queries

_SQL = queries("events")


async def hold_keys(connection: Connection, drafts: Mapping[UUID, Draft]) -> dict[str, UUID]:
    """Lock the keys of these events until the end of the transaction, and return the event of each key.

    A new key is assigned to the last of these events that has it. What is left to deliver of the others is locked too.
    """
    keys = {draft.key: id_ for id_, draft in drafts.items() if draft.key}
    if not keys:
        return {}
    owner = _owner(drafts)
    rows = await connection.fetch(_SQL["hold_keys"], *owner, list(keys), list(keys.values()))
    named = {row["key"]: row["event_id"] for row in rows}
    if earlier := set(named.values()) - drafts.keys():
        await hold(connection, list(earlier))
    return named


async def name_keys(
    connection: Connection, drafts: Mapping[UUID, Draft], stored: Sequence[UUID], named: Mapping[str, UUID]
) -> None:
    """Assign each key to the last stored event that has it, and cancel the earlier ones."""
    keys = {draft.key: id_ for id_ in stored if (draft := drafts[id_]).key}
    replaced = {old: keys[key] for key, old in named.items() if key in keys}
    replaced |= {id_: keys[draft.key] for id_ in stored if (draft := drafts[id_]).key}
    pairs = [(old, new) for old, new in replaced.items() if old != new]
    if pairs:
        await connection.execute(_SQL["name_keys"], *_owner(drafts), list(keys), list(keys.values()))
        await replace(connection, pairs)


def _owner(drafts: Mapping[UUID, Draft]) -> tuple[str | None, int]:
    """Return the service and the company that own the keys of a request."""
    first = next(iter(drafts.values()))
    return first.service, first.company_id or ANY_COMPANY
