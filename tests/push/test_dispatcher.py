"""The order in which pushes are sent."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from tests.support.events import accepted
from tests.support.pushes import IPHONE, becomes, pushes_of
from tests.support.service import Api
from tests.support.waiting import until
from tocsin.db.pool import Connection
from tocsin_phones import Phones


async def test_single_push_does_not_wait_for_unanswered_bulk_pushes(
    pushing: Api, phones: Phones, dba: Connection
) -> None:
    lane = next(lane for lane in pushing.app_state.lanes if lane.name == "apns/default")
    lane.channel.window = 8
    await pushing.people(*range(10, 40))
    for user in range(10, 40):
        await pushing.as_user(user, "POST", f"/notifications/devices/{user:064x}")
        phones.answer("apns", after_ms=60_000, token=f"{user:064x}")
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    await becomes(
        pushing, await accepted(pushing, 1), {"delivered": 1}
    )  # until then a connection carries one push alone
    lane.waits_until = datetime.now(UTC) + timedelta(hours=1)
    many = await accepted(pushing, *range(10, 40))
    await until(lambda: _are_bulk(dba, many))
    lane.waits_until = None
    await until(lambda: _is_full(dba))
    single = await accepted(pushing, 1)
    await becomes(pushing, single, {"delivered": 1})
    assert await pushes_of(pushing, many, 0) == {"queued": 30}  # none of them was dropped


async def _are_bulk(dba: Connection, event_id: UUID) -> bool:
    done: str = await dba.execute("update deliveries set is_bulk = true where event_id = $1", event_id)
    return done == "UPDATE 30"


async def _is_full(dba: Connection) -> bool:
    return bool(await dba.fetchval("select count(*) >= 6 from deliveries where worker_id is not null"))
