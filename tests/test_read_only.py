"""`tocsin serve --read-only` on a standby that follows a primary."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.support.database import value
from tests.support.events import accepted, custom
from tests.support.processes import Program, data_folder
from tests.support.servers import nats
from tests.support.service import HOUR, SECRET, Api, serving
from tests.support.standbys import Pair, pair_of
from tests.support.streams import watching
from tests.support.waiting import reaches, until
from tocsin import readiness
from tocsin.auth.minting import mint_service, mint_user
from tocsin.catalogue import Catalogue
from tocsin.cli.doctor.database import check_database
from tocsin.db.pool import Database, fetch
from tocsin.db.statements import queries
from tocsin.db.url import is_read_only, read_only
from tocsin.errors import Refusal
from tocsin.nats_access import Access
from tocsin.nats_bus import ByNats
from tocsin.pubsub import PubSub
from tocsin.serve import serve, work

pytestmark = pytest.mark.processes

ID = "0195d3f0-4c00-7000-8000-000000000001"
WRITES = (
    ("POST", "/events"),
    ("POST", "/notifications"),
    ("PUT", "/notifications/read"),
    ("PUT", f"/notifications/{ID}/read"),
    ("DELETE", f"/notifications/{ID}"),
    ("PATCH", "/notifications/preferences"),
    ("POST", "/notifications/devices/" + "a" * 64),
    ("PUT", "/directory/users/1"),
    ("POST", "/directory/import"),
    ("POST", "/operations/console"),
)
READS = (
    "/notifications",
    "/notifications?show=unread",
    "/notifications/changes",
    "/notifications/kinds",
    "/notifications/preferences",
    "/notifications/devices",
)
OPERATIONS = (
    "/metrics",
    "/operations/lanes",
    "/operations/history",
    "/operations/dead-letters",
    "/operations/users/1",
    "/operations/users/1/events",
    "/operations/audit",
)


@pytest.fixture(scope="module")
async def pair(catalogue: Catalogue) -> AsyncIterator[Pair]:
    async with pair_of(catalogue) as pair:
        yield pair


async def doctored(pair: Pair) -> str:
    return next(str(each) for each in [each async for each in check_database(pair.settings)])


@asynccontextmanager
async def reading(pair: Pair, catalogue: Catalogue, **more: Any) -> AsyncIterator[Api]:
    """Run a read-only service in this process."""
    url = read_only(pair.standby_url)
    async with serving(url, catalogue, with_worker=False, **more) as api:
        yield api


async def test_a_read_only_server_reads_from_a_standby_and_refuses_every_write(pair: Pair) -> None:
    id_ = await pair.api.post(custom(1))
    await pair.replayed()
    variables = {"TOCSIN_DATABASE_URL": pair.standby_url}
    async with AsyncExitStack() as stack:
        data = await stack.enter_async_context(data_folder())
        program = Program(data, "serve", "--read-only", variables=variables)
        await stack.enter_async_context(program)
        host, port = program.address
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=20))
        user = {"Authorization": f"Bearer {mint_user(SECRET, 1, HOUR)}"}
        scopes = ["operations", "events:write", "directory:write"]
        service = {"Authorization": f"Bearer {mint_service(SECRET, 'crm', scopes, HOUR)}"}
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["status"], ready.json()["problems"]) == (200, "read-only", [])
        page = (await http.get("/notifications", headers=user)).json()
        assert [entry["id"] for entry in page["data"]][:1] == [id_]
        assert page == (await pair.api.inbox(1)) | {"pagination": page["pagination"]}
        for paths, token in ((READS, user), ((*OPERATIONS, f"/events/{id_}?wait=1"), service)):
            for path in (*paths, *([f"/notifications/{id_}"] if token is user else [])):
                answer = await http.get(path, headers=token)
                assert answer.status_code == 200, (path, answer.text)
        for method, path in WRITES:
            token = user if path.startswith("/notifications") else service
            answer = await http.request(method, path, headers={**token, "Idempotency-Key": "one"}, json={})
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, "unavailable"), path
            assert answer.json()["errors"][0]["message"].startswith("This server is read-only."), path
            assert answer.headers["retry-after"]
        assert (await http.get("/notifications", headers={"Authorization": "Bearer none"})).status_code == 401
        await program.stop()
        assert program.status == 0
        assert program.complaints() == []


async def test_read_only_processes_serve_reads_and_streams_with_nats(pair: Pair, port: int, tmp_path: Path) -> None:
    """A message of NATS comes before the standby has what it is about."""
    await accepted(pair.api, 2)
    await pair.replayed()
    variables = {"TOCSIN_DATABASE_URL": pair.standby_url, "TOCSIN_NATS_URL": f"nats://127.0.0.1:{port}"}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(nats(port, tmp_path))
        data = await stack.enter_async_context(data_folder())
        program = Program(data, "serve", "--read-only", "--processes", "2", variables=variables)
        await stack.enter_async_context(program)
        host, own_port = program.address
        # each request has a connection of its own, which the kernel gives to either of the processes
        alone = httpx.Limits(max_keepalive_connections=0)
        http = httpx.AsyncClient(base_url=f"http://{host}:{own_port}", timeout=20, limits=alone)
        api = Api(await stack.enter_async_context(http), pair.api.app_state, None)
        expected = (await pair.api.inbox(2))["data"]
        for _ in range(8):
            ready = (await api.http.get("/readyz")).json()
            assert (ready["status"], ready["problems"]) == ("read-only", [])
            assert (await api.inbox(2))["data"] == expected
            assert (await api.as_user(2, "PUT", "/notifications/read")).status_code == 503
        streams = [await stack.enter_async_context(watching(api, 2)) for _ in range(4)]
        for stream in streams:
            await stream.until_received("count")
        bus = ByNats(Access(f"nats://127.0.0.1:{port}"))
        stack.push_async_callback(bus.close)
        sending = PubSub(pair.standby_url, pair.api.app_state.database, bus)
        id_ = str(await accepted(pair.api, 2))
        sending.publish_changes([2])
        await sending.close()
        for stream in streams:
            assert [each["id"] for each in await stream.until_received("notification")] == [id_]
        await program.stop()
        assert program.status == 0


async def test_streams_of_a_read_only_server_follow_the_standby(pair: Pair, catalogue: Catalogue) -> None:
    async with reading(pair, catalogue) as api:
        async with watching(api, 2) as watch:
            await watch.until_received("count")
            ids = [str(await accepted(pair.api, 2)) for _ in range(3)]
            received = await watch.until_received("notification", 3)
        assert [each["id"] for each in received] == ids
        async with watching(api, 2, watch.mark) as again:
            later = str(await accepted(pair.api, 2))
            assert [each["id"] for each in await again.until_received("notification")] == [later]


async def test_a_read_only_server_counts_requests_in_memory(pair: Pair, catalogue: Catalogue) -> None:
    async with reading(pair, catalogue, limit_user_requests="3/minute") as api:
        statuses = [(await api.as_user(1, "GET", "/notifications")).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert (await api.as_user(2, "GET", "/notifications")).headers["ratelimit"].startswith('"user-requests";r=2;')


async def test_a_standby_that_lags_or_is_alone_is_a_problem_and_no_failure(
    pair: Pair, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "FRESH", 0.0)
    monkeypatch.setattr(readiness, "MAX_BEHIND", 0.5)
    async with reading(pair, catalogue) as api:
        await pair.replayed()
        before = await api.unread(1)
        assert "is a standby, for a read-only server" in await doctored(pair)
        await pair.pause()
        await pair.api.post(custom(1))
        late = ["the standby is more than 0 s behind its primary"]
        await reaches(partial(problems, api), late)
        assert late[0] in await doctored(pair)
        assert await api.unread(1) == before
        await pair.resume()
        await reaches(partial(problems, api), [])
        assert await api.unread(1) == before + 1
        conninfo = await value(pair.standby_url, "select quote_literal(current_setting('primary_conninfo'))")
        try:
            await pair.standby.run("alter system set primary_conninfo = ''", "select pg_reload_conf()")
            await reaches(partial(problems, api), ["the standby receives no changes from its primary"])
            assert "receives no changes" in await doctored(pair)
        finally:
            await pair.standby.run(f"alter system set primary_conninfo = {conninfo}", "select pg_reload_conf()")
        await reaches(partial(problems, api), [])


async def test_the_first_change_after_a_pause_is_not_late(
    pair: Pair, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "FRESH", 0.0)
    monkeypatch.setattr(readiness, "MAX_BEHIND", 0.5)
    monkeypatch.setattr(readiness, "REPLAY_TIME", 0)
    lags: list[float] = []

    async def fetch_and_resume(database: Database, statement: str, *arguments: Any) -> Any:
        rows = await fetch(database, statement, *arguments)
        if statement == queries("readiness")["replay"] and not lags:
            lags.append(rows[0]["behind"])
            await pair.resume()
            await pair.replayed()
        return rows

    async with reading(pair, catalogue) as api:
        await pair.replayed()
        await asyncio.sleep(0.6)  # without a change
        await pair.pause()
        try:
            await pair.api.post(custom(1))
            await until(partial(value, pair.standby_url, "select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()"))
            monkeypatch.setattr(readiness, "fetch", fetch_and_resume)
            assert await problems(api) == []
        finally:
            await pair.resume()
    assert lags[0] > readiness.MAX_BEHIND


async def problems(api: Api) -> list[str]:
    answer = await api.call("GET", "/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "read-only"), answer.text
    found: list[str] = answer.json()["problems"]
    return found


async def test_a_read_only_server_writes_nothing_to_a_primary(pair: Pair, catalogue: Catalogue) -> None:
    url = read_only(pair.url)
    async with serving(url, catalogue, with_worker=False) as api:
        assert (await api.call("GET", "/readyz")).json()["status"] == "read-only"
        assert (await api.as_service("POST", "/events", json=custom(1))).status_code == 503
        await api.inbox(1)
        async with watching(api, 1) as watch:
            await watch.until_received("count")
            process = api.app_state.streams._open._process  # noqa: SLF001 - the name of its rows
            recorded = await value(url, "select count(*) from streams where process_id = $1", process)
        assert recorded == 0


async def test_worker_refuses_a_standby_but_waits_for_one_of_several_hosts(pair: Pair) -> None:
    async with data_folder() as data:
        refused = Program(data, "worker", variables={"TOCSIN_DATABASE_URL": pair.standby_url})
        try:
            assert "A worker writes, and the database cannot be used: it is a standby" in await refused.output()
        finally:
            await refused.kill()
        assert refused.status == 1
        both = pair.standby_url.replace("/tocsin", f",127.0.0.1:{pair.standby.port}/tocsin")
        async with Program(data, "worker", variables={"TOCSIN_DATABASE_URL": both}) as waiting:
            await until(lambda: "the database is read-only" in waiting.log())
            assert waiting.alive


async def test_a_read_only_server_needs_a_database_with_the_schema(pair: Pair) -> None:
    empty = await pair.primary.fresh("empty")
    await pair.replayed()
    url = SecretStr(pair.standby.url(database=empty))
    settings = pair.settings.model_copy(update={"database_url": url, "port": 0})
    with pytest.raises(Refusal, match="lacks migrations of this release, and this server is read-only"):
        await serve(settings)
    with pytest.raises(Refusal, match="set TOCSIN_DATABASE_URL"):
        await serve(settings.model_copy(update={"database_url": None}))
    with pytest.raises(Refusal, match="A worker writes"):
        await work(settings)


@pytest.mark.parametrize("url", ["postgresql://a@b/c", "postgresql://a@b/c?target_session_attrs=prefer-standby"])
def test_a_read_only_url_keeps_its_parameters(url: str) -> None:
    assert not is_read_only(url)
    assert is_read_only(read_only(url))
    assert read_only(read_only(url)) == read_only(url)
    assert read_only(url).startswith(url)
