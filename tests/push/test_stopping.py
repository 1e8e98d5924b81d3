"""What a worker that stops does with the pushes under way."""

from typing import Any
from uuid import UUID

import pytest

from tests.support.events import accepted
from tests.support.pushes import IPHONE
from tests.support.service import Api
from tests.support.waiting import until
from tocsin.db.connections import Connection, connect
from tocsin.errors import Locked
from tocsin.http_client.curl_handle import Limits
from tocsin.push.lanes import ANSWER_TIMEOUT, Lane
from tocsin_phones import Phones


@pytest.fixture
async def phone(pushing: Api) -> str:
    """The iPhone of user 1."""
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    return IPHONE


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """The events of which a result could not be recorded, each time."""
    found: list[UUID] = []
    set_aside = Lane.set_aside

    def watched(lane: Lane, answered: Any, seconds: float) -> None:
        found.append(answered.delivery.key.event_id)
        set_aside(lane, answered, seconds)

    monkeypatch.setattr(Lane, "set_aside", watched)
    return found


def stop(api: Api) -> None:
    assert api.worker
    api.worker.stop()


async def result(dba: Connection) -> tuple[str, int]:
    """Wait until the only delivery is leased no more; return its state and its attempts."""
    row = await until(lambda: dba.fetchrow("select state, attempts from deliveries where worker_id is null"))
    return row["state"], row["attempts"]


@pytest.mark.usefixtures("phone")
async def test_answers_of_pushes_under_way_are_waited_for(pushing: Api, phones: Phones, dba: Connection) -> None:
    phones.answer("apns", after_ms=1000)
    await accepted(pushing, 1)
    await until(lambda: phones.pushes("apns"))
    stop(pushing)
    assert await result(dba) == ("delivered", 1)


def test_answers_are_waited_for_as_long_as_a_push_may_take() -> None:
    assert Limits().seconds <= ANSWER_TIMEOUT


@pytest.mark.usefixtures("phone")
async def test_result_that_waits_for_a_lock_is_recorded_before_leases_are_released(
    url: str, pushing: Api, phones: Phones, dba: Connection, tries: list[UUID]
) -> None:
    assert pushing.worker
    assert pushing.worker.dispatcher
    writer = pushing.worker.dispatcher._results  # noqa: SLF001 - expects conflicts, so that no statement waits long
    writer._conflicts["apns/default"].note(Locked())  # noqa: SLF001
    locking = await connect(url)
    async with locking.transaction():
        await locking.execute("lock table devices in exclusive mode")
        event = await accepted(pushing, 1)
        await until(lambda: tries)
        stop(pushing)
        so_far = len(tries)
        await until(lambda: len(tries) >= so_far + 3)
    await locking.close()
    assert await result(dba) == ("delivered", 1)
    assert len(phones.pushes("apns")) == 1
    assert set(tries) == {event}
