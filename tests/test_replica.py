"""Reads from a replica: a user sees their own writes at once, and never an older inbox than before."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.database import value
from tests.support.events import custom
from tests.support.servers import OwnServer, standby_of
from tests.support.service import SECRET, Api, serving
from tests.support.standbys import DATABASE, Pair, pair_of
from tests.support.waiting import reaches, until
from tocsin import readiness, replica
from tocsin.catalogue import Catalogue
from tocsin.cli.doctor.database import check_replica
from tocsin.settings import Settings

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
async def pair(catalogue: Catalogue) -> AsyncIterator[Pair]:
    async with pair_of(catalogue) as pair:
        yield pair


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "SAMPLE_INTERVAL", 0.05)
    monkeypatch.setattr(replica, "RETRY_INTERVAL", 0.2)
    monkeypatch.setattr(readiness, "FRESH", 0.0)


@asynccontextmanager
async def reading(pair: Pair, catalogue: Catalogue, url: str = "", **more: Any) -> AsyncIterator[Api]:
    """Run a service on the primary that reads from the standby, or from another server."""
    more = {"replica_url": url or pair.standby_url, **more}
    async with serving(pair.url, catalogue, with_worker=False, **more) as api:
        await reaches(partial(problems, api), [])
        yield api


async def problems(api: Api) -> list[str]:
    answer = await api.call("GET", "/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready"), answer.text
    found: list[str] = answer.json()["problems"]
    return found


@contextmanager
def hanging(server: OwnServer) -> Iterator[None]:
    """Stop all processes of a server for the duration of the block, first the one that starts others."""
    main = server.process.pid
    stopped: list[int] = []
    try:
        server.process.send_signal(signal.SIGSTOP)
        stopped = [int(pid) for pid in Path(f"/proc/{main}/task/{main}/children").read_text("ascii").split()]
        for pid in stopped:
            with suppress(ProcessLookupError):  # a worker has ended
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in (*stopped, main):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def reads(api: Api, target: str) -> int:
    """Return how often inboxes were read there."""
    return int(api.app_state.metrics._inbox_reads.labels(target)._value.get())  # noqa: SLF001 - of one target


async def unread_of(api: Api, user: int = 1) -> dict[str, bool]:
    return {entry["id"]: entry["read"] for entry in (await api.inbox(user, "?per_page=100"))["data"]}


async def test_writes_are_seen_at_once_by_every_process_while_the_replica_lags(
    pair: Pair, catalogue: Catalogue
) -> None:
    patient = partial(reading, pair, catalogue, replica_max_lag=600)
    async with patient() as api, patient() as other:
        ids = [await pair.api.post(custom(1)) for _ in range(3)]
        await pair.replayed()
        cursor = (await api.as_user(1, "GET", "/notifications/changes")).json()["cursor"]
        before = reads(api, "replica")
        assert not any((await unread_of(api)).values())
        assert reads(api, "replica") == before + 1
        await pair.pause()
        try:
            for number, id_ in enumerate(ids):
                await api.as_user(1, "PUT", f"/notifications/{id_}/read")
                for each in (api, other):
                    assert (await unread_of(each))[id_]
                    found = (await each.as_user(1, "GET", f"/notifications/changes?since={cursor}")).json()
                    assert [change["data"]["id"] for change in found["data"]] == ids[: number + 1]
            await other.as_user(1, "DELETE", f"/notifications/{ids[0]}")
            assert ids[0] not in await unread_of(api)
            later = await pair.api.post(custom(1))
            assert later in await unread_of(api)
            assert reads(api, "behind") >= 2 * len(ids)
            before = reads(api, "replica")
            assert await unread_of(api, 2) == {}
            assert reads(api, "replica") == before + 1, "who has no new changes is read from the replica all the same"
        finally:
            await pair.resume()
        await pair.replayed()
        before = reads(api, "replica")
        assert later in await unread_of(api)
        assert reads(api, "replica") == before + 1


async def test_a_client_never_gets_an_older_page_than_before(pair: Pair, catalogue: Catalogue) -> None:
    async with reading(pair, catalogue) as api:
        old = await api.as_user(1, "GET", "/notifications")
        await pair.replayed()
        await pair.pause()
        try:
            await pair.api.post(custom(1))
            new = await api.as_user(1, "GET", "/notifications", headers={"If-None-Match": old.headers["etag"]})
            assert (new.status_code, new.headers["etag"] == old.headers["etag"]) == (200, False)
            again = await api.as_user(1, "GET", "/notifications", headers={"If-None-Match": new.headers["etag"]})
            assert again.status_code == 304
            assert (await api.as_user(1, "GET", "/notifications")).json() == new.json()
            following = new.json()["pagination"]["urls"]["next"]
            assert following is None or (await api.as_user(1, "GET", following)).status_code == 200
        finally:
            await pair.resume()


async def test_users_who_are_deactivated_or_new_are_so_at_once(pair: Pair, catalogue: Catalogue) -> None:
    async with reading(pair, catalogue) as api:
        await pair.api.people(3)
        await pair.replayed()
        await pair.pause()
        try:
            await pair.api.people(3, active=False)
            assert (await api.as_user(3, "GET", "/notifications")).status_code == 401
            await pair.api.people(4)
            assert (await api.as_user(4, "GET", "/notifications")).status_code == 200
        finally:
            await pair.resume()


async def test_a_replica_that_is_too_late_is_not_asked(pair: Pair, catalogue: Catalogue) -> None:
    async with reading(pair, catalogue, replica_max_lag=1) as api:
        await pair.replayed()
        await pair.pause()
        try:
            await pair.api.post(custom(1))
            late = "inboxes are read from the primary: the replica is more than 1 s behind"
            await reaches(partial(problems, api), [late])
            before = reads(api, "primary"), reads(api, "replica")
            await api.inbox(2)
            assert (reads(api, "primary"), reads(api, "replica")) == (before[0] + 1, before[1])
        finally:
            await pair.resume()
        await reaches(partial(problems, api), [])


async def test_a_replica_that_hangs_is_left_after_a_moment(pair: Pair, catalogue: Catalogue) -> None:
    async with reading(pair, catalogue) as api:
        await pair.replayed()
        await api.inbox(1)
        before, started = (reads(api, "primary"), reads(api, "replica")), time.monotonic()
        with hanging(pair.standby):
            answers = await asyncio.gather(*(api.as_user(1, "GET", "/notifications") for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
            assert time.monotonic() - started >= replica.PATIENCE, "it was asked"
            assert (reads(api, "primary"), reads(api, "replica")) == (before[0] + 20, before[1])
            assert await problems(api) == ["inboxes are read from the primary: the replica cannot be read"]
        await reaches(partial(problems, api), [])


async def test_no_request_fails_while_a_replica_is_killed(pair: Pair, catalogue: Catalogue) -> None:
    async with standby_of(pair.primary) as standby, reading(pair, catalogue, standby.url(database=DATABASE)) as api:
        statuses: list[int] = []

        async def ask() -> None:
            for path in ("/notifications", "/notifications/changes?since=1-1", "/notifications?show=unread") * 30:
                answer = await api.as_user(1, "GET", path)
                statuses.append(answer.status_code)

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        await until(lambda: reads(api, "replica") > 10)
        standby.kill()
        await asyncio.gather(*asking)
        assert set(statuses) == {200}
        await reaches(partial(problems, api), ["inboxes are read from the primary: the replica cannot be read"])
        before = reads(api, "primary")
        await api.inbox(1)
        assert reads(api, "primary") == before + 1
        given = {"replica_url": standby.url(database=DATABASE), "jwt_secret": SECRET}
        [finding] = [each async for each in check_replica(Settings.model_validate(given))]
        assert (finding.level, "cannot be read" in str(finding)) == ("warn", True)


async def test_nothing_is_read_from_a_replica_that_was_promoted(
    pair: Pair, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        standby_of(pair.primary) as standby,
        reading(pair, catalogue, url := standby.url(database=DATABASE)) as api,
    ):
        await api.inbox(1)
        monkeypatch.setattr(replica, "SAMPLE_INTERVAL", 3600.0)
        await asyncio.sleep(0.1)  # the last look before that
        await value(standby.url(), "select pg_promote(true)")
        await value(url, "update heads set position = position + 1000, unread = 77 where user_id = 1")
        before = reads(api, "replica")
        assert (await api.inbox(1))["pagination"]["unread"] != 77
        assert reads(api, "replica") == before
        assert await problems(api) == ["inboxes are read from the primary: the replica is no standby"]
        given = {"replica_url": url, "jwt_secret": SECRET}
        [finding] = [each async for each in check_replica(Settings.model_validate(given))]
        assert "the replica is no standby" in str(finding)
    given = {"replica_url": pair.standby_url, "jwt_secret": SECRET}
    [finding] = [each async for each in check_replica(Settings.model_validate(given))]
    assert finding.level == "ok", str(finding)
    assert [each async for each in check_replica(Settings.model_validate({"jwt_secret": SECRET}))] == []
