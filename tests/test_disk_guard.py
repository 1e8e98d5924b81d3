"""A disk that fills: new events are refused before PostgreSQL fails, other work continues, and no event is lost."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import structlog

from tests.support.answers import codes_of
from tests.support.events import accepted, custom, in_future, post, state
from tests.support.places import fill, tmpfs
from tests.support.processes import data_folder
from tests.support.service import Api, serving
from tests.support.waiting import until
from tocsin import disk_guard, readiness
from tocsin.catalogue import Catalogue
from tocsin.cli.doctor.machine import check_free_space
from tocsin.db.connections import connect
from tocsin.db.migrate import migrate
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Refusal, Unavailable
from tocsin.postgres.supervisor import Embedded
from tocsin.settings import Settings, read_settings

pytestmark = pytest.mark.processes

MIB = 2**20
LIMIT = 20 * MIB
"""What must be free on a disk of 200 MiB."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure each time."""
    monkeypatch.setattr(disk_guard, "INTERVAL", 0.0)
    monkeypatch.setattr(readiness, "FRESH", 0.0)


@pytest.fixture
async def small() -> AsyncIterator[Embedded]:
    """An embedded server whose disk has 200 MiB."""
    async with data_folder() as data:
        with tmpfs(data, "200m"):
            async with Embedded(data) as embedded:
                await migrate(embedded.url)
                yield embedded


def data_of(server: Embedded) -> Path:
    return Path(parse_qs(urlsplit(server.url).query)["host"][0]).parent


async def ready(api: Api) -> tuple[int, list[str]]:
    answer = await api.call("GET", "/readyz")
    return answer.status_code, answer.json()["problems"]


async def metric(api: Api, name: str) -> float:
    lines = (await api.as_service("GET", "/metrics", "operations")).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


async def every_intake(api: Api) -> list[httpx.Response]:
    """Return the answers to all requests that add notifications."""
    lines = '{"user": {"id": 9, "first_name": "Jane", "last_name": "Doe"}}\n'
    ndjson = {"Content-Type": "application/x-ndjson"}
    return [
        await post(api, custom(1)),
        await post(api, custom(1), headers={"Idempotency-Key": "one"}),
        await api.as_service("POST", "/events/batch", json={"events": [custom(1), custom(2)]}),
        await api.as_user(1, "POST", "/notifications", json={"message": "x", "notify": {"users": [2]}}),
        await api.as_service("POST", "/directory/import", "directory:write", content=lines, headers=ndjson),
    ]


async def test_almost_full_disk_refuses_new_events_while_other_work_continues(
    small: Embedded, catalogue: Catalogue
) -> None:
    data = data_of(small)
    async with serving(small.url, catalogue, data_dir=data) as api:
        await api.people(1, 2)
        first = await accepted(api, 1)
        assert (await state(api, first, 30))["state"] == "delivered"
        held = await accepted(api, 1, deliver_at=in_future(timedelta(seconds=4)))
        with structlog.testing.capture_logs() as lines:
            fill(data / "filler", LIMIT - MIB)
            for answer in await every_intake(api):
                assert codes_of(answer) == (503, [("unavailable", None)])
                assert "the disk of the database is almost full" in answer.text
                assert answer.headers["Retry-After"] == "60"
            assert await ready(api) == (200, ["new events are refused: the disk of the database is almost full"])
            assert await metric(api, "tocsin_disk_low") == 1
            assert await metric(api, "tocsin_disk_free_bytes") < LIMIT
            [finding] = check_free_space(data, None)
            assert (finding.level, finding.what) == ("FAIL", "disk")
            assert "20 MiB" in str(finding)
            assert (await state(api, held, 30))["state"] == "delivered"
            assert (await api.as_user(1, "GET", "/notifications")).json()["pagination"]["unread"] == 2
            assert (await api.as_user(1, "PUT", f"/notifications/{first}/read")).status_code == 204
            assert (await api.as_user(1, "DELETE", f"/notifications/{held}")).status_code == 204
            (data / "filler").unlink()
            fill(data / "filler", LIMIT + MIB)
            assert (await post(api, custom(1))).status_code == 503, "without hysteresis, it would flap"
            (data / "filler").unlink()
            assert [answer.status_code for answer in await every_intake(api)] == [202, 202, 202, 202, 200]
        said = [line["event"] for line in lines if "disk" in line["event"]]
        assert said == ["disk almost full: new events are refused", "disk has space again: new events are accepted"]
        assert await ready(api) == (200, [])
        assert await metric(api, "tocsin_disk_low") == 0


async def test_postgresql_that_exits_on_a_full_disk_loses_no_accepted_event(
    small: Embedded, catalogue: Catalogue
) -> None:
    data, ids = data_of(small), list[str]()
    async with serving(small.url, catalogue, data_dir=data, min_free_disk="none") as api:
        await api.people(1)
        ids += [str(await accepted(api, 1)) for _ in range(20)]
        fill(data / "filler")
        pid = (data / "postgres/postmaster.pid").read_text().split()[0]

        async def is_refused() -> bool:
            answer = await post(api, custom(1))
            await next_segment(small.url)
            if answer.status_code == 202:
                ids.append(answer.json()["id"])
                return False
            assert codes_of(answer) == (503, [("unavailable", None)])
            assert int(answer.headers["Retry-After"]) >= 1
            return True

        await until(is_refused)
        await until(lambda: _has_exited(int(pid)))
        assert (await post(api, custom(1))).status_code == 503
        (data / "filler").unlink()

        async def is_accepted() -> bool:
            return (await post(api, custom(1))).status_code == 202

        await until(is_accepted, 60)
        for id_ in ids:
            assert (await state(api, id_, 30))["state"] == "delivered"
        assert (await api.call("GET", "/readyz")).status_code == 200


async def next_segment(url: str) -> None:
    """Begin the next segment of the log, as if the current one were full. On a full disk, PostgreSQL exits."""
    try:
        connection = await connect(url)
        await connection.fetchval("select pg_switch_wal()")
        await connection.close()
    except Exception:  # noqa: BLE001 - it exited
        return


def _has_exited(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_default_limit_is_one_gib_or_a_tenth_of_a_small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        f_frsize, f_bavail = 4096, 10**6

    for size, needed in ((2 * 2**40, 2**30), (10 * 2**30, 2**30), (10 * MIB, MIB)):
        Disk.f_blocks = size // 4096  # type: ignore[attr-defined]
        monkeypatch.setattr("os.statvfs", lambda _: Disk)
        assert disk_guard.free_and_needed(Path("/"), None) == (4096 * 10**6, needed)
    assert disk_guard.free_and_needed(Path("/"), 5)[1] == 5


def test_guard_without_limit_or_folder_refuses_nothing(tmp_path: Path) -> None:
    for guard in (DiskGuard(None, 2**62), DiskGuard(tmp_path, 0), DiskGuard(tmp_path / "missing", 2**62)):
        guard.check()
    with pytest.raises(Unavailable):
        DiskGuard(tmp_path, 2**62).check()


@pytest.mark.parametrize(("text", "size"), [("none", 0), ("0", 0), ("2GiB", 2**31), ("500MB", 5 * 10**8)])
def test_limit_of_the_disk_is_read_with_its_unit(text: str, size: int) -> None:
    assert _settings(text).min_free_disk == size
    assert Settings().min_free_disk is None


def test_limit_of_the_disk_without_a_size_is_refused() -> None:
    for text in ("lots", "-1", "5%"):
        with pytest.raises(Refusal, match="TOCSIN_MIN_FREE_DISK is not usable"):
            _settings(text)


def _settings(text: str) -> Settings:
    return read_settings({"TOCSIN_MIN_FREE_DISK": text}, Path("/nonexistent"))
