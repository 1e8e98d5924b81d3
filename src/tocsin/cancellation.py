"""Cancellation: an event that is cancelled, or replaced by a later one with its key, notifies no further recipients."""

from collections.abc import Sequence
from uuid import UUID

from tocsin import audit
from tocsin.audit import Actor
from tocsin.db.connections import Connection, Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import NotFound, TooLate
from tocsin.event_status import Viewer
from tocsin.pubsub import PubSub

ANY_COMPANY = 0
"""The company in the keys of a service that is not bound to a company."""

_SQL = queries("cancellation")


async def cancel(  # noqa: PLR0913, PLR0917 - what to cancel, and for whom
    database: Database, pubsub: PubSub, id_: UUID, owner: Viewer, actor: Actor, operator: str | None = None
) -> None:
    """Cancel an event. No further recipients are notified. Raises `NotFound`, and `TooLate` if it was delivered.

    The status of the event names the `operator`, unless the operator posted it.
    """
    async with database.transaction() as connection:
        event = await connection.fetchrow(_SQL["owned"], id_, owner.service, owner.company_id)
        if event is None:
            raise NotFound
        await _cancel(connection, event, actor, None if event["service"] == operator else operator)
    _publish_settled(pubsub)


async def cancel_by_key(database: Database, pubsub: PubSub, key: str, owner: Viewer, actor: Actor) -> None:
    """Cancel the event that a service's key names; raises like `cancel`."""
    async with database.transaction() as connection:
        id_ = await connection.fetchval(_SQL["key"], owner.service, owner.company_id or ANY_COMPANY, key)
        event = id_ and await connection.fetchrow(_SQL["owned"], id_, None, None)
        if event is None:
            raise NotFound
        await _cancel(connection, event, actor)
    _publish_settled(pubsub)


async def hold(connection: Connection, ids: Sequence[UUID]) -> None:
    """Lock what is left to deliver of these events, until the end of the transaction.

    A statement that waits for a lock does not see that a job failed or was replayed since it began. So the next one
    cancels. Call this before inboxes are locked, as workers lock jobs first.
    """
    await connection.execute(_SQL["hold"], ids)


async def replace(connection: Connection, pairs: Sequence[tuple[UUID, UUID]]) -> None:
    """Cancel events that are not completely delivered, each in favour of its replacement, after `hold`."""
    await connection.execute(_SQL["replace"], *map(list, zip(*pairs, strict=True)))


async def _cancel(connection: Connection, event: Record, actor: Actor, operator: str | None = None) -> None:
    await hold(connection, [event["id"]])
    is_new = await connection.fetchval(_SQL["cancel"], event["id"], operator)
    if is_new is None:
        raise TooLate
    if is_new:
        await audit.record(connection, actor, "event_cancelled", f"event:{event['id']}", event["company_id"])


def _publish_settled(pubsub: PubSub) -> None:
    for topic in ("settled", "direct"):
        pubsub.publish(topic)
