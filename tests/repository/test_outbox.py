"""The outbox of docs/guides/outbox.md and `tocsin relay` post committed events once and no rolled back ones."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest

from tests.support.commands import refusal
from tests.support.database import url_for
from tests.support.events import custom
from tests.support.service import SECRET, Api
from tests.support.waiting import reaches, until
from tocsin import backoff, relay
from tocsin.auth.minting import mint_service
from tocsin.postgres.supervisor import Embedded

PAGE = (Path(__file__).parents[2] / "docs/guides/outbox.md").read_text("utf-8")
TOCSIN = str(Path(sys.executable).with_name("tocsin"))

pytestmark = pytest.mark.processes


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


WRITE = blocks("sql")[1].strip().removesuffix(";") + " returning id"


@pytest.fixture
async def crm(server: Embedded) -> AsyncIterator[asyncpg.Connection]:
    """The application's database, with the table of the page in it."""
    connection = await asyncpg.connect(server.url)
    await connection.execute("drop database if exists crm with (force)")
    await connection.execute("create database crm")
    await connection.close()
    connection = await asyncpg.connect(url_for(server, "crm"))
    await connection.execute(blocks("sql")[0])
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def relaying(
    api: Api,
    server: Embedded,
    folder: Path,
    url: str | None = None,
    command: Sequence[str | Path] = (TOCSIN, "relay"),
    **variables: str,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the relay; it is killed in the end."""
    environment = {"PATH": os.defpath, "OUTBOX_DATABASE_URL": url_for(server, "crm"), "TOCSIN_LOG_FORMAT": "json"}
    (folder / "token").write_text(mint_service(SECRET, "crm", ["events:write"], timedelta(hours=1)))
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(*command, "--token-file", folder / "token", "--url", url or str(api.http.base_url)),
            cwd=folder,
            env=environment | variables,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def waiting(crm: asyncpg.Connection) -> int:
    return int(
        await crm.fetchval("select count(*) from notifications_outbox where sent_at is null and refused is null")
    )


async def until_empty(crm: asyncpg.Connection) -> None:
    await reaches(lambda: waiting(crm), 0)


async def delivered_ids(api: Api, ids: list[str]) -> list[str]:
    """Return the ids in the inbox of user 1 once these events are settled."""
    for id_ in ids:
        assert (await api.as_service("GET", f"/events/{id_}?wait=30")).json()["state"] == "delivered"
    return await api.ids(1)


def logged(folder: Path, event: str) -> list[dict[str, object]]:
    """Return the lines of the relay's log with an event."""
    lines = [json.loads(line) for line in (folder / "log").read_text("utf-8").splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


async def test_outbox_posts_committed_events_and_no_rolled_back_ones(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    async with relaying(api, server, tmp_path):
        with contextlib.suppress(ZeroDivisionError):
            async with crm.transaction():
                await crm.fetchval(WRITE)
                raise ZeroDivisionError
        async with crm.transaction():
            kept = str(await crm.fetchval(WRITE))
        await until_empty(crm)
        assert await delivered_ids(api, [kept]) == [kept]


async def test_killed_relay_posts_each_event_once(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    for _ in range(60):
        await crm.fetchval(WRITE)
    for _ in range(3):
        async with relaying(api, server, tmp_path):
            await until(lambda: api.ids(1))  # killed as soon as a part has arrived, at an arbitrary step
        await crm.execute("update notifications_outbox set sent_at = null where number % 7 = 0")  # as if killed before
        await crm.fetchval(WRITE.replace("The contract", "Another contract"))
    ids = [str(row["id"]) for row in await crm.fetch("select id from notifications_outbox order by number")]
    async with relaying(api, server, tmp_path):
        await until_empty(crm)
    found = await delivered_ids(api, ids)
    assert sorted(found) == sorted(ids)
    assert (await api.inbox(1))["pagination"]["total"] == 63


async def test_relay_posts_in_the_order_of_the_rows(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    ids = [str(await crm.fetchval(WRITE)) for _ in range(250)]
    async with relaying(api, server, tmp_path):
        await until_empty(crm)
    await delivered_ids(api, ids[-1:])
    assert await api.ids(1) == ids[:-101:-1]


async def test_outbox_keeps_rejected_event_with_its_errors_and_continues(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    for wrong in ('{"type": "nonsense"}', "[1]", json.dumps({"type": "x" * 2**20})):
        await crm.execute("insert into notifications_outbox (event) values ($1)", wrong)
    good = str(await crm.fetchval(WRITE))
    async with relaying(api, server, tmp_path):
        await until_empty(crm)
    assert await delivered_ids(api, [good]) == [good]
    first, second, third = (
        row["refused"] for row in await crm.fetch("select refused from notifications_outbox order by number limit 3")
    )
    assert json.loads(first)["errors"][0]["code"] == "validation.in"
    assert second == "The event is not a JSON object of at most 4194304 bytes."
    assert json.loads(third)["errors"][0]["code"] == "too_large"
    assert len(logged(tmp_path, "event refused")) == 3


async def test_event_too_deep_to_be_encoded_again_delays_no_others(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    for depth in range(900, 1000):  # some can be decoded in Python, and not be encoded a few calls deeper
        event = f'{{"type": "custom", "params": {"[" * depth}{"]" * depth}}}'
        await crm.execute("insert into notifications_outbox (event) values ($1)", event)
    good = str(await crm.fetchval(WRITE))
    async with relaying(api, server, tmp_path):
        await until_empty(crm)
    assert await crm.fetchval("select count(*) from notifications_outbox where refused is not null") == 100
    assert await delivered_ids(api, [good]) == [good]


async def test_event_of_many_bytes_in_utf_8_fits_into_a_request(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    event = custom(1) | {"params": {"body": "Hello", "unused": "æ" * 400_000}}
    await crm.execute("insert into notifications_outbox (event) values ($1)", json.dumps(event))
    async with relaying(api, server, tmp_path):
        await until_empty(crm)
    refused = json.loads(await crm.fetchval("select refused from notifications_outbox"))
    assert [error["code"] for error in refused["errors"]] == ["validation.prohibited"]


async def test_relay_reads_no_more_large_events_than_a_request_holds(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    await crm.execute(
        "insert into notifications_outbox (event)"
        " select jsonb_build_object('type', repeat('x', 12000000)) from generate_series(1, 60)"
    )
    good = str(await crm.fetchval(WRITE))
    async with relaying(api, server, tmp_path) as process:
        await until_empty(crm)
        assert peak_memory(process.pid) < 300 * 2**20
    assert await delivered_ids(api, [good]) == [good]


def peak_memory(pid: int) -> int:
    """Return the greatest number of bytes that a process had in memory."""
    [kib] = re.findall(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("utf-8"), re.MULTILINE)
    return int(kib) * 1024


@contextlib.asynccontextmanager
async def answering(head: str, body: str) -> AsyncIterator[str]:
    """Serve the same answer to every request; yields the url."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            request = await reader.readuntil(b"\r\n\r\n")
            [length] = re.findall(rb"(?i)content-length: (\d+)", request)
            await reader.readexactly(int(length))
            writer.write(f"HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            await writer.drain()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("status", ["200 OK", "202 Accepted", "204 No Content", "400 Bad Request", "422 Unprocessable"])
async def test_answer_of_another_server_neither_accepts_nor_refuses(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path, status: str
) -> None:
    await api.people(1)
    ids = [str(await crm.fetchval(WRITE)) for _ in range(2)]
    page = "" if status.startswith("204") else "<h1>Back soon</h1>"
    async with answering(status, page) as elsewhere, relaying(api, server, tmp_path, elsewhere):
        await until(lambda: logged(tmp_path, "work failed; it will be retried"))
        assert await waiting(crm) == 2
    async with relaying(api, server, tmp_path):
        await until_empty(crm)
    assert await delivered_ids(api, ids) == ids[::-1]


async def test_event_too_large_for_a_proxy_delays_no_others(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await crm.fetchval(WRITE)
    async with (
        answering("413 Request Entity Too Large", "<h1>Too large</h1>") as proxy,
        relaying(api, server, tmp_path, proxy),
    ):
        await until_empty(crm)
    assert await crm.fetchval("select refused from notifications_outbox") == "<h1>Too large</h1>"


async def test_relay_waits_for_the_service_for_its_url_and_for_a_valid_token(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path, port: int
) -> None:
    await api.people(1)
    id_ = str(await crm.fetchval(WRITE))
    for wrong in (f"http://127.0.0.1:{port}", f"{api.http.base_url}/elsewhere"):
        async with relaying(api, server, tmp_path, wrong):
            await until(lambda: logged(tmp_path, "work failed; it will be retried"))
            assert "exception" not in logged(tmp_path, "work failed; it will be retried")[0]
            assert await waiting(crm) == 1
        (tmp_path / "log").unlink()
    async with relaying(api, server, tmp_path):
        await until_empty(crm)
        (tmp_path / "token").write_text("expired")
        other = str(await crm.fetchval(WRITE))
        await until(lambda: logged(tmp_path, "work failed; it will be retried"))
        [line] = logged(tmp_path, "work failed; it will be retried")
        assert line["reason"] == "The answer has the status 401: The token is not a JWT"
        assert await waiting(crm) == 1
        (tmp_path / "token").unlink()
        await until(lambda: len(logged(tmp_path, "work failed; it will be retried")) == 2)
        line = logged(tmp_path, "work failed; it will be retried")[-1]
        assert line["reason"] == f"The token file {tmp_path / 'token'} cannot be read: No such file or directory"
        (tmp_path / "token").write_text(mint_service(SECRET, "crm", ["events:write"], timedelta(hours=1)))
        await until_empty(crm)
    assert await delivered_ids(api, [id_, other]) == [other, id_]


async def test_relay_waits_for_its_database_and_names_the_variable_of_its_url(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    id_ = str(await crm.fetchval(WRITE))
    url = url_for(server, "crm")
    [run] = parse_qs(urlsplit(url).query)["host"]
    away = tmp_path / "run"
    hidden = url.replace(quote(run, safe=""), quote(str(away), safe=""))
    async with relaying(api, server, tmp_path, OUTBOX_DATABASE_URL=hidden):
        await until(lambda: logged(tmp_path, "work failed; it will be retried"))
        away.symlink_to(run)
        await until_empty(crm)
    assert await delivered_ids(api, [id_]) == [id_]
    [line] = logged(tmp_path, "work failed; it will be retried")
    assert str(line["reason"]).startswith("The database cannot be used: ")
    assert str(line["reason"]).endswith("see that it runs, and that OUTBOX_DATABASE_URL leads there.")
    assert "exception" not in line


async def test_spare_relay_takes_over_when_the_first_is_killed(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    spare = tmp_path / "spare"
    spare.mkdir()
    async with relaying(api, server, tmp_path) as first:
        await until(lambda: logged(tmp_path, "relay started"))
        async with relaying(api, server, spare):
            id_ = str(await crm.fetchval(WRITE))
            await until_empty(crm)
            assert logged(spare, "relay started") == []
            first.kill()
            await until(lambda: logged(spare, "relay started"))
            other = str(await crm.fetchval(WRITE))
            await until_empty(crm)
    assert await delivered_ids(api, [id_, other]) == [other, id_]


async def test_relay_is_a_spare_for_a_table_whose_name_is_spelled_differently(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    async with relaying(api, server, tmp_path):
        await until(lambda: logged(tmp_path, "relay started"))
        spelled = 'public."notifications_outbox"'
        asks = "select true from pg_stat_activity where query ~ '7420' and pid <> pg_backend_pid()"
        async with relaying(api, server, spare, command=(TOCSIN, "relay", "--table", spelled)):
            await until(lambda: crm.fetchval(asks))
            await asyncio.sleep(2 * relay.INTERVAL)
            assert logged(spare, "relay started") == []


async def test_spare_relay_takes_over_when_the_first_hangs(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    impatient = "from tocsin import relay; relay.IDLE_TIMEOUT = 3; from tocsin.cli.commands import main; main()"
    spare = tmp_path / "spare"
    spare.mkdir()
    async with relaying(api, server, tmp_path, command=(sys.executable, "-c", impatient, "relay")) as first:
        await until(lambda: logged(tmp_path, "relay started"))
        async with relaying(api, server, spare):
            first.send_signal(signal.SIGSTOP)
            ids = [str(await crm.fetchval(WRITE))]
            await until_empty(crm)
            assert logged(spare, "relay started")
            first.send_signal(signal.SIGCONT)
            await until(lambda: logged(tmp_path, "work failed; it will be retried"))
            ids.append(str(await crm.fetchval(WRITE)))
            await until_empty(crm)
            assert len(logged(tmp_path, "relay started")) == 1
            await until(lambda: len(logged(spare, "events relayed")) == len(ids))
    assert await delivered_ids(api, ids) == ids[::-1]


async def test_relay_prepares_no_statement_while_it_has_the_lock(
    api: Api, server: Embedded, crm: asyncpg.Connection
) -> None:
    # Of a relay that hangs between preparing and running one, the server would keep the session.
    await api.people(1)
    token = mint_service(SECRET, "crm", ["events:write"], timedelta(hours=1))
    relaying_ = relay.Relay(
        url_for(server, "crm"), "public.notifications_outbox", str(api.http.base_url), lambda: token
    )
    refused = await crm.fetchval("insert into notifications_outbox (event) values ('{}') returning id")
    ids = [str(await crm.fetchval(WRITE))]

    async def prepared(connection: asyncpg.Connection) -> int:
        return int(await connection.fetchval("select count(*) from pg_prepared_statements where statement !~ 'pg_'"))

    async with relaying_._session() as (connection, sql):  # noqa: SLF001
        before = await prepared(connection)
        work = asyncio.create_task(relaying_._work(connection, sql))  # noqa: SLF001
        await until_empty(crm)
        relaying_.stopping.set()
        await work
        assert await prepared(connection) == before > 0
    assert await crm.fetchval("select refused is not null from notifications_outbox where id = $1", refused)
    assert await delivered_ids(api, ids) == ids


def test_relay_that_waits_for_the_service_keeps_its_session() -> None:
    between = relay._REQUEST_TIMEOUT + backoff.MAX_DELAY + relay.MAX_PAUSE  # noqa: SLF001
    assert between + 15 < relay.IDLE_TIMEOUT


async def test_relay_connects_again_when_its_session_ends(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    async with relaying(api, server, tmp_path):
        await until(lambda: logged(tmp_path, "relay started"))
        await crm.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = 'crm' and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        id_ = str(await crm.fetchval(WRITE))
        await until_empty(crm)
    assert await delivered_ids(api, [id_]) == [id_]


async def test_relay_ends_at_a_signal_and_deletes_old_rows(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    for days in (6, 8):
        await crm.execute(
            "insert into notifications_outbox (event, sent_at) values ('{}', now() - make_interval(days => $1))", days
        )
    async with relaying(api, server, tmp_path) as process:
        await reaches(lambda: crm.fetchval("select count(*) from notifications_outbox"), 1)
        process.terminate()
        assert await process.wait() == 0


async def test_relay_deletes_all_old_rows_however_many(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await crm.execute(
        "insert into notifications_outbox (event, sent_at)"
        " select '{}', now() - interval '8 days' from generate_series(1, 3500)"
    )
    async with relaying(api, server, tmp_path):
        await reaches(lambda: crm.fetchval("select count(*) from notifications_outbox"), 0)


@pytest.fixture
async def lacking(crm: asyncpg.Connection) -> AsyncIterator[str]:
    """A role without rights in the application's database."""
    await crm.execute("create role lacking")
    yield "lacking"
    await crm.execute("drop owned by lacking; drop role lacking")


async def test_relay_refuses_a_wrong_table_role_database_or_token_file(
    server: Embedded, crm: asyncpg.Connection, lacking: str, tmp_path: Path
) -> None:
    where = {"OUTBOX_DATABASE_URL": url_for(server, "crm"), "TOCSIN_JWT_SECRET": SECRET}
    for table in ("public.nothing", "pg_catalog.pg_class"):
        said = await asyncio.to_thread(refusal, "relay", "--table", table, cwd=tmp_path, **where)
        assert f"The outbox {table} cannot be used" in said
    for lacks in ("select", "update", "delete"):
        rights = ", ".join({"select", "update", "delete"} - {lacks})
        await crm.execute(
            f"revoke all on notifications_outbox from {lacking}; grant {rights} on notifications_outbox to {lacking}"
        )
        by_it = where | {"OUTBOX_DATABASE_URL": f"{url_for(server, 'crm')}&role={lacking}"}
        said = await asyncio.to_thread(refusal, "relay", cwd=tmp_path, **by_it)
        assert "permission denied for table notifications_outbox; its role needs select, update and delete" in said
    missing = await asyncio.to_thread(refusal, "relay", "--token-file", "nothing", cwd=tmp_path, **where)
    assert "The token file nothing cannot be read: No such file or directory." in missing
    wrong = where | {"OUTBOX_DATABASE_URL": url_for(server, "no_such_database")}
    said = await asyncio.to_thread(refusal, "relay", cwd=tmp_path, **wrong)
    assert "or correct its name in OUTBOX_DATABASE_URL" in said
    keyless = {"OUTBOX_DATABASE_URL": url_for(server, "crm"), "TOCSIN_DATA_DIR": str(tmp_path)}
    said = await asyncio.to_thread(refusal, "relay", cwd=tmp_path, **keyless)
    assert "set TOCSIN_JWT_SECRET. Or give a file with a service token by --token-file." in said
