"""The Python client: events are posted exactly once despite network errors."""

import asyncio
import contextlib
import datetime as dt
import json
import re
import shutil
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

import tocsin_client
from tests.support.events import custom, in_future
from tests.support.service import HOUR, SECRET, Api
from tests.support.waiting import reaches
from tocsin.auth.minting import mint_service
from tocsin_client import (
    Client,
    Conflict,
    Error,
    Invalid,
    NotFound,
    Posted,
    Refused,
    TooLate,
    Unauthenticated,
    Unauthorized,
    Unavailable,
)
from tocsin_phones import Phones

ROOT = Path(__file__).parents[2]
SCOPES = ("events:write", "directory:write")
CASE = {"id": "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88", "case_number": 6, "relations_path_name": "Case type"}

Treatment = str | bytes


class Line:
    """A proxy between a client and the service that applies the next step of its script to each request.

    `swallow` passes the request on and closes instead of answering, `drop` closes immediately, `hold` sends nothing,
    `sever` answers and then closes, bytes are the response; without a script requests are passed on.
    """

    def __init__(self, api: Api) -> None:
        self._host, self._port = str(api.http.base_url.host), api.http.base_url.port
        self.script: list[Treatment] = []
        self.asked: list[tuple[str, bytes]] = []
        self.url = ""
        self.accepted = 0
        self._clients: list[Client] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def client(self, given: str | Callable[[], str] = "", **more: Any) -> Client:
        """Return a client at this end, which is closed with the line."""
        self._clients.append(Client(self.url, given or token(), **more))
        return self._clients[-1]

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.asked if body]

    def header(self, name: str) -> list[str]:
        return [value for head, _ in self.asked for value in re.findall(rf"(?im)^{name}: (.*?)\r$", head)]

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Line"]:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as listening:
            self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            yield self
            for client in self._clients:
                client.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while await self._treat(*await _message(reader), writer):
                await writer.drain()

    async def _treat(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Apply the next step of the script to a request, and return whether the connection stays open."""
        self.asked.append((head.decode(), body))
        treatment = self.script.pop(0) if self.script else "pass"
        if isinstance(treatment, bytes):
            writer.write(treatment)
            return True
        if treatment == "hold":
            await asyncio.sleep(30)
        if treatment in {"drop", "hold"}:
            return False
        answer = await self._ask(head + body)
        if treatment != "swallow":
            writer.write(answer)
        return treatment == "pass"

    async def _ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(request)
        answer = b"".join(await _message(reader))
        writer.close()
        return answer


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return head, await reader.readexactly(int(found[1]) if found else 0)


@pytest.fixture
async def line(api: Api) -> AsyncIterator[Line]:
    await api.people(1, 2, 4)
    async with Line(api).open() as line:
        yield line


@pytest.fixture
def client(line: Line) -> Client:
    return line.client()


def token(*scopes: str) -> str:
    return mint_service(SECRET, "crm", scopes or SCOPES, HOUR)


def answer(status: int, *headers: str, body: str = "") -> bytes:
    head = [f"HTTP/1.1 {status} No reason", *headers, f"Content-Length: {len(body)}"]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


def pauses(caplog: pytest.LogCaptureFixture) -> list[float]:
    found = [record.args[1] for record in caplog.records if isinstance(record.args, tuple)]
    return [pause for pause in found if isinstance(pause, float)]


class TestLostAnswers:
    async def test_lost_responses_of_an_event_cause_one_notification(
        self, api: Api, line: Line, client: Client
    ) -> None:
        line.script = ["swallow", "swallow", "drop"]
        posted = await asyncio.to_thread(client.post, custom(1, body="Once"))
        assert len(line.asked) == 4
        assert {body["id"] for body in line.bodies} == {posted.id}
        state = await asyncio.to_thread(client.state, posted.id, wait=30)
        assert (state.state, state.recipients, state.read, state.settled) == ("delivered", 1, 0, True)
        assert await api.ids(1) == [posted.id]

    async def test_lost_responses_of_a_batch_cause_one_delivery_in_order(
        self, api: Api, line: Line, client: Client
    ) -> None:
        line.script = ["swallow", "swallow"]
        posted = await asyncio.to_thread(client.post_batch, [custom(1, body=f"{number}") for number in range(5)])
        await asyncio.to_thread(client.state, posted[-1].id, wait=30)
        assert len(line.asked) == 4
        assert await api.ids(1) == [event.id for event in reversed(posted)]

    async def test_lost_response_of_a_resolution_is_retried_with_same_key(
        self, api: Api, line: Line, client: Client
    ) -> None:
        event = {**custom(1), "about": ["order:42"]}
        first = await asyncio.to_thread(client.post, event)
        await asyncio.to_thread(client.state, first.id, wait=30)
        line.script = ["swallow"]
        await asyncio.to_thread(client.resolve, "order:42")
        one, other = line.header("Idempotency-Key")
        assert one == other
        await reaches(lambda: api.unread(1), 0)

    @pytest.mark.parametrize("what", ["user", "team"])
    async def test_lost_response_of_a_user_deletion_counts_as_deleted(
        self, api: Api, line: Line, client: Client, what: str
    ) -> None:
        await api.team(4, 1)
        delete = client.delete_user if what == "user" else client.delete_team
        line.script = ["swallow"]
        await asyncio.to_thread(delete, 4)
        assert len(line.asked) == 2
        with pytest.raises(NotFound):
            await asyncio.to_thread(delete, 4)

    async def test_dropped_keep_alive_connection_is_retried_without_delay(
        self, line: Line, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        line.script = ["sever"]
        await asyncio.to_thread(client.post, custom(1))
        await asyncio.to_thread(client.post, custom(1))
        assert pauses(caplog) == []
        assert len(line.asked) == 2

    async def test_deletion_is_done_if_connection_closes_after_it(self, line: Line, client: Client) -> None:
        await asyncio.to_thread(client.post, custom(1))
        line.script = ["swallow"]
        await asyncio.to_thread(client.delete_user, 4)
        assert len(line.asked) == 3


class TestWaiting:
    async def test_silence_on_a_kept_connection_closes_the_others(self, line: Line) -> None:
        client = line.client(timeout=3)
        held = await asyncio.to_thread(client.post, {**custom(1), "deliver_at": in_future()})
        await asyncio.gather(*(asyncio.to_thread(client.state, held.id, wait=1) for _ in range(3)))
        kept = line.accepted
        assert kept > 1
        line.script = ["hold"]
        await asyncio.to_thread(client.post, custom(1))
        assert line.accepted == kept + 1

    async def test_page_of_a_proxy_is_no_proof_of_a_deletion(self, api: Api, line: Line, client: Client) -> None:
        line.script = [answer(502), answer(404, "Content-Type: text/plain", body="404 page not found")]
        with pytest.raises(Refused):
            await asyncio.to_thread(client.delete_user, 1)
        assert (await api.as_service("GET", "/directory/users/1", "directory:write")).status_code == 200

    async def test_retry_waits_for_retry_after(
        self, line: Line, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
        line.script = [
            answer(429, "Retry-After: 1"),
            answer(503, f"Retry-After: {format_datetime(soon, usegmt=True)}"),
            answer(502, "Retry-After: in a while", body="<h1>Bad gateway</h1>"),
        ]
        await asyncio.to_thread(client.post, custom(1))
        asked, until, ours = pauses(caplog)
        assert asked == 1.0
        assert 0 < until <= 2
        assert ours < 1
        assert SECRET not in caplog.text
        assert "Bearer" not in caplog.text

    async def test_request_that_arrived_too_slowly_is_retried(self, line: Line, client: Client) -> None:
        line.script = [answer(408, "Connection: close")]
        await asyncio.to_thread(client.post, custom(1))
        assert len(line.asked) == 2

    async def test_retry_stops_at_the_deadline(self, line: Line, caplog: pytest.LogCaptureFixture) -> None:
        body = json.dumps({"errors": [{"message": "Please try again.", "code": "unavailable"}]})
        line.script = [answer(503, "Retry-After: 3600", body=body)]
        with pytest.raises(Unavailable, match=r"503: Please try again\.") as raised:
            await asyncio.to_thread(line.client(deadline=60).post, custom(1))
        assert (raised.value.status, pauses(caplog)) == (503, [])

    async def test_unanswered_event_raises_and_can_be_posted_again_with_its_id(self, api: Api, line: Line) -> None:
        line.script = ["swallow", *["hold"] * 9]
        hasty = line.client(deadline=1, timeout=0.2)
        with pytest.raises(Unavailable, match="did not answer") as raised:
            await asyncio.to_thread(hasty.post, custom(1))
        [id_] = raised.value.ids
        assert isinstance(raised.value.__cause__, OSError)
        line.script = []
        posted = await asyncio.to_thread(line.client().post, {**custom(1), "id": id_})
        await asyncio.to_thread(line.client().state, id_, wait=30)
        assert await api.ids(1) == [posted.id] == [id_]

    async def test_retry_delays_grow_with_jitter(self) -> None:
        found = [[tocsin_client._backoff(attempt) for attempt in range(1, 9)] for _ in range(20)]  # noqa: SLF001 - they can't be seen from outside without waiting for them
        for row in found:
            assert all(0.1 * 2**number <= pause <= 0.2 * 2**number for number, pause in enumerate(row[:6]))
            assert all(pause <= tocsin_client.MAX_DELAY for pause in row)
        assert len({row[0] for row in found}) > 1

    async def test_refused_connection_raises_after_the_deadline(self) -> None:
        nowhere = Client("http://127.0.0.1:1", token(), deadline=0.5)
        with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1 did not answer"):
            await asyncio.to_thread(nowhere.put_user, 1, first_name="John", last_name="Doe")

    async def test_untrusted_certificate_is_not_retried(
        self, phones: Phones, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = phones.credentials(tmp_path)["TOCSIN_APNS_URL"]
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(Client(url, token()).cancel, str(uuid.uuid4()))
        assert pauses(caplog) == []

    async def test_custom_certificate_authority_is_trusted(self, phones: Phones, tmp_path: Path) -> None:
        given = phones.credentials(tmp_path)
        trusting = ssl.create_default_context(cafile=given["TOCSIN_PUSH_CA_FILE"])
        with pytest.raises(Error) as raised:  # they speak HTTP/2 alone, and say so once there is a connection
            await asyncio.to_thread(Client(given["TOCSIN_APNS_URL"], token(), tls=trusting, deadline=0).cancel, "x")
        assert "CERTIFICATE" not in str(raised.value)


class TestRefusals:
    async def test_client_reports_all_errors_with_their_fields(self, client: Client, line: Line) -> None:
        with pytest.raises(Invalid) as raised:
            await asyncio.to_thread(client.post_batch, [custom(1), {**custom(1, 99), "data": {"colour": "red"}}])
        error = raised.value
        assert (error.status, error.code) == (422, "validation.prohibited")
        assert set(error.fields) == {"events.1.notify.users.1", "events.1.data.colour"}
        assert {field_error.code for field_error in error.field_errors} == {
            "validation.unknown",
            "validation.prohibited",
        }
        assert error.request_id
        assert "events.1.notify.users.1" in str(error)
        assert len(line.asked) == 1

    async def test_each_refusal_raises_its_own_exception(self, api: Api, client: Client, line: Line) -> None:
        sent = await api.post(custom(1))
        nothing = str(uuid.uuid4())
        cases: list[tuple[type[Refused], str, Callable[[], object]]] = [
            (TooLate, "conflict.too_late", lambda: client.cancel(sent)),
            (Conflict, "conflict.id_reused", lambda: client.post({**custom(1, body="Other"), "id": sent})),
            (NotFound, "not_found", lambda: client.state(nothing)),
            (NotFound, "not_found", lambda: client.cancel("../directory/users/4")),
            (NotFound, "not_found", lambda: client.cancel_by_key("none of ours")),
            (Unauthorized, "unauthorized", lambda: line.client(token("directory:write")).post(custom(1))),
            (Unauthenticated, "unauthenticated", lambda: line.client("nonsense").post(custom(1))),
            (Invalid, "validation.numeric_between", lambda: client.state(sent, wait=31)),
        ]
        for kind, code, call in cases:
            with pytest.raises(Refused) as raised:
                await asyncio.to_thread(call)
            assert (type(raised.value), raised.value.code) == (kind, code)
        assert len(line.asked) == len(cases)
        assert not any("/../" in head.split()[1] for head, _ in line.asked)

    async def test_body_that_is_refused_before_its_end_is_not_retried(
        self, api: Api, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Client(str(api.http.base_url), token(), deadline=3) as client:
            for _ in range(3):
                with pytest.raises(Refused, match="413") as raised:
                    await asyncio.to_thread(client.post, custom(1, body="x" * 2**26))
                assert raised.value.code == "too_large"
                with pytest.raises(NotFound):
                    await asyncio.to_thread(client.cancel, str(uuid.uuid4()))
        assert pauses(caplog) == []

    async def test_id_in_a_path_leads_to_no_other_path(self, api: Api, client: Client, line: Line) -> None:
        await api.as_user(1, "POST", f"/notifications/devices/{'ab' * 32}")
        calls: list[Callable[[Any], object]] = [
            client.delete_user,
            client.delete_team,
            lambda id_: client.put_user(id_, first_name="John", last_name="Doe"),
            lambda id_: client.put_team(id_, name="Sales"),
            lambda id_: client.put_member(7, id_),
            lambda id_: client.delete_member(id_, 1),
        ]
        for call in calls:
            with pytest.raises(Refused):
                await asyncio.to_thread(call, "1/devices?")
        assert all("/1%2Fdevices%3F" in head.split()[1] for head, _ in line.asked)
        assert len((await api.as_user(1, "GET", "/notifications/devices")).json()["data"]) == 1

    async def test_response_of_another_server_is_detected(self, client: Client, line: Line) -> None:
        page = "<h1>Please log in</h1>"
        line.script = [answer(302, "Location: /elsewhere"), answer(404, body=page), answer(200, body=page)]
        for status in (302, 404):
            with pytest.raises(Refused, match="not an answer of Tocsin") as raised:
                await asyncio.to_thread(client.post, custom(1))
            assert (type(raised.value), raised.value.status, raised.value.code) == (Refused, status, "")
        for strange in (page, "{}", "[]", "7"):
            line.script = [answer(200, body=strange)]
            with pytest.raises(Error, match="is not Tocsin"):
                await asyncio.to_thread(client.post, custom(1))
        assert not any("elsewhere" in head.split("\r\n")[0] for head, _ in line.asked)

    @pytest.mark.parametrize(
        "url", ["notify.example.com", "ftp://x", "http://", "http://me:secret@x", "http://x/?a=b", "http://x/#a"]
    )
    def test_invalid_url_is_rejected_immediately(self, url: str) -> None:
        with pytest.raises(ValueError, match="such as https://") as raised:
            Client(url, token())
        assert "secret" not in str(raised.value)


class TestTokens:
    async def test_expired_token_is_renewed_once(self, line: Line) -> None:
        made: list[str] = []

        def make() -> str:
            made.append(mint_service(SECRET, "crm", SCOPES, HOUR if made else -HOUR))
            return made[-1]

        client = line.client(make)
        await asyncio.to_thread(client.post, custom(1))
        await asyncio.to_thread(client.post, custom(1))
        assert (len(made), len(line.asked)) == (2, 3)
        assert {body["id"] for body in line.bodies[:2]} == {line.bodies[0]["id"]}

    async def test_repeatedly_rejected_token_raises_unauthenticated(self, line: Line) -> None:
        client = line.client(lambda: "nonsense")
        with pytest.raises(Unauthenticated):
            await asyncio.to_thread(client.post, custom(1))
        assert len(line.asked) == 2

    @pytest.mark.parametrize("bad", ["secret\r\nX-Other: 1", "secret word", "gehëim", ""])
    def test_token_with_invalid_characters_is_rejected_without_repeating_it(self, bad: str) -> None:
        with pytest.raises(ValueError, match="characters that a bearer token cannot have") as raised:
            Client("http://127.0.0.1:1", bad)
        assert "secret" not in str(raised.value)


class TestCalls:
    async def test_users_and_teams_are_put_and_deleted(self, api: Api, client: Client) -> None:
        await asyncio.to_thread(client.put_user, 9, first_name="Ana", last_name="Lund", locale="da", active=False)
        await asyncio.to_thread(client.put_team, 7, name="Sales", users=(1,))
        await asyncio.to_thread(client.put_member, 7, 2)
        await asyncio.to_thread(client.delete_member, 7, 1)
        user = (await api.as_service("GET", "/directory/users/9")).json()
        assert (user["first_name"], user["locale"], user["active"]) == ("Ana", "da", False)
        assert (await api.as_service("GET", "/directory/teams/7")).json()["users"] == [2]
        await asyncio.to_thread(client.delete_team, 7)
        await asyncio.to_thread(client.delete_user, 9)
        for path in ("/directory/users/9", "/directory/teams/7"):
            assert (await api.as_service("GET", path)).status_code == 404

    async def test_skipped_recipients_are_returned(self, client: Client) -> None:
        event = {**custom(1, 99, teams=(98,)), "notify": {"users": [1, 99], "teams": [98], "unknown": "skip"}}
        posted = await asyncio.to_thread(client.post, event)
        assert (posted.skipped_users, posted.skipped_teams) == ((99,), (98,))
        plain, skipping = await asyncio.to_thread(client.post_batch, [custom(1), event])
        assert plain == Posted(plain.id)
        assert skipping == Posted(skipping.id, (99,), (98,))

    async def test_event_key_may_have_any_characters(self, client: Client) -> None:
        tomorrow = (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).isoformat()
        key = "task 7/8?#%2F æ"
        posted = await asyncio.to_thread(client.post, {**custom(1), "key": key, "deliver_at": tomorrow})
        await asyncio.to_thread(client.cancel_by_key, key)
        assert (await asyncio.to_thread(client.state, posted.id)).state == "cancelled"

    async def test_value_that_is_not_json_is_not_sent(self, client: Client, line: Line) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            await asyncio.to_thread(client.post, {**custom(1), "data": {"amount": float("nan")}})
        assert line.asked == []

    async def test_post_does_not_change_the_callers_event(self, client: Client) -> None:
        event = custom(1)
        await asyncio.to_thread(client.post, event)
        assert event == custom(1)

    async def test_many_threads_share_a_client(self, api: Api, client: Client, line: Line) -> None:
        calls = [asyncio.to_thread(client.post, custom(1, body=f"{number}")) for number in range(60)]
        posted = await asyncio.gather(*calls)
        for event in posted:
            await asyncio.to_thread(client.state, event.id, wait=30)
        assert set(await api.ids(1)) == {event.id for event in posted}
        assert [
            body["params"]["body"] for body in line.bodies[:60] if body["params"]["body"] not in map(str, range(60))
        ] == []


FORKING = """
import os, sys
from tocsin_client import Client
client = Client(sys.argv[1], sys.argv[2])
def name(user):
    client.put_user(user, first_name="A", last_name="B")
    for number in range(30):
        event = {"type": "custom", "notify": {"users": [user]}, "params": {"body": str(number)}}
        assert client.state(client.post(event).id).type == "custom"
name(1)
child = os.fork()
name(2 if child else 4)
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""

ALONE = """
import sys
before = set(sys.modules)
import {module} as client
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(new - set(sys.stdlib_module_names)))
client.Client("https://notify.example.com", "token").close()
"""


async def run(*arguments: str, cwd: Path = ROOT) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=cwd,
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (0, b""), err.decode()
    return out.decode().strip()


async def test_client_works_in_both_processes_after_a_fork(line: Line) -> None:
    await run("-c", FORKING, line.url, token())
    assert len([head for head, _ in line.asked if head.startswith("GET /events/")]) == 90


async def test_client_import_loads_no_dependencies() -> None:
    assert await run("-c", ALONE.format(module="tocsin_client")) == "tocsin_client"


async def test_client_works_as_a_single_file(tmp_path: Path) -> None:
    shutil.copy(tocsin_client.__file__, tmp_path / "notify.py")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + ALONE.format(module="notify")
    assert await run("-I", "-S", "-c", script, cwd=tmp_path) == "notify"


class Outbox(list[Any]):
    keep = list.append


async def test_client_documentation_examples_work(api: Api, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/reference/python-client.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```") // 2 == 7
    script = "\n".join(blocks).replace("https://notify.example.com", line.url)
    known = {name: getattr(dt, name) for name in ("UTC", "datetime", "timedelta")}
    outbox = Outbox()
    shown: list[str] = []
    names: dict[str, Any] = {**known, **vars(tocsin_client), "asyncio": asyncio, "outbox": outbox}
    names["print"] = lambda *words: shown.append(" ".join(map(str, words)))
    monkeypatch.setenv("NOTIFY_TOKEN", token())
    await asyncio.to_thread(exec, script, names)
    id_ = await asyncio.to_thread(asyncio.run, names["notify"]("Hello from a loop"))
    await asyncio.to_thread(names["tocsin"].state, id_, wait=30)
    names["tocsin"].close()
    assert shown[0] == "delivered 1 0"
    assert shown[1] == "422 validation.required ('params.body', 'notify.users.1')"
    assert [line.split()[:2] for line in shown[2:]] == [
        ["params.body", "validation.required"],
        ["notify.users.1", "validation.unknown"],
    ]
    assert outbox == []
    messages = [entry["message"] for entry in (await api.inbox(1))["data"]]
    assert "Hello from a loop" in messages  # in any place: the queue may deliver the others later
    assert any(message.startswith("Bernita Kilback ") for message in messages), messages
    ends = Client("http://127.0.0.1:1", token(), deadline=0)
    await asyncio.to_thread(exec, blocks[4], {**names, "tocsin": ends})
    assert len(outbox) == 1
