import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from select import PIPE_BUF
from typing import Any, TextIO

import asyncpg
import pytest
import structlog
import structlog.testing
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.cost import cost
from tests.support.service import Api
from tocsin import fanout, jobs, logs
from tocsin.logs import MAX_PATH_LENGTH, MAX_TEXT_LENGTH, bind_request, configure, cut_path, log_request, shown_path

LIBRARIES = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncpg", "asyncio")
HEX = "0123456789abcdef" * 4
FCM = "dQw4w9WgXcQ:APA91b_-" + "Zz9" * 40 + "last_6"
SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Restore the logging of the process."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    configuration = structlog.get_config()
    yield
    structlog.configure(**configuration)
    logs._json_output = None  # noqa: SLF001 - as before `configure`
    logs._ids_of_request.set({})  # noqa: SLF001 - as before a request
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(stream: io.StringIO) -> Any:
    configure("json", stream)
    return structlog.get_logger()


def fail(error: Exception) -> None:
    raise error


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_log_line_is_a_json_object_with_time_level_and_event(log: Any, stream: io.StringIO) -> None:
    log.info("request", method="GET", path="/notifications", status=200, ms=1.5)
    (line,) = lines(stream)
    assert list(line) == ["timestamp", "level", "event", "method", "path", "status", "ms"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
    assert (line["level"], line["event"], line["status"], line["ms"]) == ("info", "request", 200, 1.5)


def test_debug_lines_are_not_written(log: Any, stream: io.StringIO) -> None:
    log.debug("noise")
    logging.getLogger("uvicorn.error").debug("noise")
    assert stream.getvalue() == ""


def test_log_line_escapes_line_breaks_and_control_characters(log: Any, stream: io.StringIO) -> None:
    log.info("a\nb", path="/\r\n\x1b[2J\u2028\ud800😀")
    (line,) = stream.getvalue().splitlines()
    assert line.isascii()
    assert json.loads(line)["path"] == "/\r\n\x1b[2J\u2028\ud800😀"


def test_log_writes_values_that_are_not_json_as_text(log: Any, stream: io.StringIO) -> None:
    around: list[Any] = []
    around.append(around)
    log.info("odd", where=Path("/x"), names={"b"}, raw=b"x", around=around, error=ValueError("no"), by={4: Path("y")})
    (line,) = lines(stream)
    assert (line["where"], line["names"], line["error"], line["by"]) == ("/x", ["b"], "no", {"4": "y"})


def test_exception_is_logged_without_local_variables(log: Any, stream: io.StringIO) -> None:
    def fails(password: str) -> None:
        raise ValueError("no " + password[:2])

    try:
        fails(SECRET)
    except ValueError:
        log.exception("a bug")
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback (most recent call last)")
    assert "ValueError: no hu" in line["exception"]
    assert SECRET not in stream.getvalue()


async def test_every_log_line_of_a_request_has_its_request_id(log: Any, stream: io.StringIO) -> None:
    async def request(id_: str) -> None:
        bind_request(id_)
        log.info("first", of=id_)
        await asyncio.sleep(0)
        logging.getLogger("asyncpg").warning("of %s", id_)
        await asyncio.create_task(later(id_))

    async def later(id_: str) -> None:
        log.info("later", of=id_)

    await asyncio.gather(*(asyncio.create_task(request(f"r{number}")) for number in range(5)))
    log.info("outside")
    *inside, outside = lines(stream)
    assert len(inside) == 15
    assert all(line.get("of", line["event"][3:]) == line["request_id"] for line in inside)
    assert "request_id" not in outside


@given(st.text(), st.none() | st.text(), st.none() | st.text(alphabet="0123456789abcdef", min_size=32, max_size=32))
@example("/events/password=hunter2-hunter2", "user:1", None)
def test_line_of_a_request_is_written_like_every_other(path: str, caller: str | None, trace: str | None) -> None:
    stream = io.StringIO()
    configure("json", stream)
    asyncio.run(_log_both(path, caller, trace))
    one, other = (line.partition(', "level"')[2] for line in stream.getvalue().splitlines())
    assert one == other
    assert lines(stream)[0]["timestamp"][:10] == lines(stream)[1]["timestamp"][:10]


async def _log_both(path: str, caller: str | None, trace: str | None) -> None:
    bind_request("r1", trace)
    log_request("GET", path, 200, 1.25, caller)
    structlog.get_logger().info("request", method="GET", path=path, status=200, ms=1.25, caller=caller)


class Writes(io.StringIO):
    """A stream that notes each text that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def write(self, text: str) -> int:
        self.texts.append(text)
        return super().write(text)


async def test_lines_of_requests_of_one_turn_of_the_loop_are_one_write() -> None:
    stream = Writes()
    configure("json", stream)
    for path in ("/first", "/second"):
        log_request("GET", path, 200, 1.25, "user:1")
    assert stream.texts == []
    await asyncio.sleep(0)
    [text] = stream.texts
    assert [json.loads(line)["path"] for line in text.splitlines()] == ["/first", "/second"]


async def test_line_after_that_of_a_request_is_written_after_it() -> None:
    stream = io.StringIO()
    configure("json", stream)
    log_request("GET", "/notifications", 200, 1.25, "user:1")
    structlog.get_logger().info("later")
    assert [line["event"] for line in lines(stream)] == ["request", "later"]


async def test_lines_written_together_fit_into_a_pipe_at_once() -> None:
    stream = Writes()
    configure("json", stream)
    for _ in range(100):
        log_request("GET", "/notifications", 200, 1.25, "user:1")
    await asyncio.sleep(0)
    assert len(lines(stream)) == 100
    assert 1 < len(stream.texts) < 20
    assert max(map(len, stream.texts)) <= PIPE_BUF


def test_line_of_the_last_request_is_written_when_the_program_ends() -> None:
    program = (
        "import asyncio; from tocsin import logs\n"
        "async def end():\n    logs.log_request('GET', '/last', 200, 1.25, None); asyncio.get_running_loop().stop()\n"
        "logs.configure('json'); loop = asyncio.new_event_loop(); loop.create_task(end()); loop.run_forever()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(ended.stderr.splitlines()[0])["path"] == "/last"


def test_line_of_a_request_is_readable_in_the_console(stream: io.StringIO) -> None:
    configure("console", stream)
    log_request("GET", "/notifications", 200, 1.25, "user:1")
    assert re.search(r"request +method=GET path=/notifications status=200 ms=1.25 caller=user:1", stream.getvalue())


def test_second_request_id_replaces_the_first(log: Any, stream: io.StringIO) -> None:
    bind_request("one")
    bind_request("two")
    log.info("x")
    assert lines(stream)[0]["request_id"] == "two"


def test_server_start_is_not_logged_under_an_error_name(log: Any, stream: io.StringIO) -> None:
    log.info("ours")
    logging.getLogger("uvicorn.error").info("Started server process")
    assert lines(stream)[-1]["logger"] == "uvicorn.server"


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.asgi", "asyncio", "asyncpg", "any.other"])
def test_libraries_write_to_the_same_log(log: Any, stream: io.StringIO, name: str) -> None:
    log.info("ours")
    try:
        fail(OSError("gone"))
    except OSError:
        logging.getLogger(name).exception("lost %d of %s", 3, "them")
    ours, theirs = lines(stream)
    assert list(theirs)[:3] == list(ours)
    assert (theirs["level"], theirs["event"], theirs["logger"]) == ("error", "lost 3 of them", name)
    assert theirs["exception"].endswith("OSError: gone")


def test_library_message_is_not_formatted_twice(log: Any, stream: io.StringIO) -> None:
    assert log
    logging.getLogger("asyncpg").warning("100%% of %s", "%s %(x)s {y}")
    assert lines(stream)[0]["event"] == "100% of %s %(x)s {y}"


@pytest.mark.parametrize(("number", "level"), [(20, "info"), (25, "info"), (30, "warning"), (99, "critical")])
def test_library_log_levels_are_mapped(log: Any, stream: io.StringIO, number: int, level: str) -> None:
    assert log
    logging.getLogger("uvicorn.error").log(number, "x")
    assert lines(stream)[0]["level"] == level


def test_server_access_log_is_off_and_notices_are_on(stream: io.StringIO) -> None:
    configure("json", stream)
    access = logging.getLogger("uvicorn.access")
    assert not access.hasHandlers()
    access.info('"GET /notifications/devices/%s"', HEX)
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    logging.getLogger("httpx").info("HTTP Request: POST https://push.example.com/3/device/%s", HEX)
    assert [line["event"] for line in lines(stream)] == ["Application startup complete."]


def test_handlers_added_by_libraries_are_removed(stream: io.StringIO) -> None:
    theirs = io.StringIO()
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(theirs))
    configure("json", stream)
    logging.getLogger("uvicorn").warning("once")
    assert (len(lines(stream)), theirs.getvalue()) == (1, "")


@pytest.mark.parametrize(
    "name",
    [
        *("password", "Password", "db_password", "passwd", "secret", "jwt_secret", "secrets", "token", "access_token"),
        *("device_token", "tokens", "authorization", "Authorization", "proxy-authorization", "dsn", "database_url"),
        *("DATABASE_URL", "TOCSIN_DATABASE_URL", "cookie", "set-cookie", "api_key", "X-Api-Key", "private_key"),
    ],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_fields_named_like_secrets_are_masked(stream: io.StringIO, name: str, log_format: Any) -> None:
    configure(log_format, stream)
    nested = {"headers": [{name: SECRET}]}
    structlog.get_logger().info("x", **{name: SECRET, "inside": nested})
    structlog.get_logger().bind(**{name: [SECRET]}).info("y")
    assert SECRET not in stream.getvalue()
    assert "***" in stream.getvalue()
    assert nested == {"headers": [{name: SECRET}]}


def test_fields_that_only_resemble_secrets_are_shown(log: Any, stream: io.StringIO) -> None:
    shown = {"token_ending": "abc123", "path": "/x", "passed": 3, "caller": "user 4", "author": "me"}
    log.info("x", **shown)
    assert {name: lines(stream)[0][name] for name in shown} == shown


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"Bearer {SECRET}", "Bearer ***"),
        (f"sent 'authorization: bearer  {SECRET}', why?", "sent 'authorization: bearer ***', why?"),
        (f"BEARER {SECRET}", "BEARER ***"),
        (f"postgres://user:{SECRET}@db:5432/x", "postgres://user:***@db:5432/x"),
        (f"cannot reach postgresql://u:{SECRET}@db/x?y=1 now", "cannot reach postgresql://u:***@db/x?y=1 now"),
        (f"postgres://user:a@{SECRET}@db/x", "postgres://user:***@db/x"),
        (f"postgres://user:a/{SECRET}/b@db/x", "postgres://user:***@db/x"),
        (f"nats://:{SECRET}@host", "nats://:***@host"),
        (f"postgres:///x?user=u&password={SECRET}&host=/run", "postgres:///x?user=u&password=***&host=/run"),
        (f"host=db password={SECRET} user=u", "host=db password=*** user=u"),
        (f"DETAIL:  Key (token)=({SECRET}) already exists.", "DETAIL: ***"),
        (f"Key (user_id, token)=(4, {SECRET}) exists", "Key (user_id, token)=(***) exists"),
        (f"no key for eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.{SECRET}", "no key for ***"),
        ("http://127.0.0.1:8080/notifications?page=2", "http://127.0.0.1:8080/notifications?page=2"),
        ("see https://example.com/a@b", "see https://example.com/a@b"),
    ],
)
def test_secrets_inside_text_are_masked(log: Any, stream: io.StringIO, text: str, masked: str) -> None:
    log.info("x", error=text, deep=[{"y": (text,)}], field_error=ValueError(text))
    log.warning(text)
    logging.getLogger("asyncpg").warning("%s", text)
    try:
        fail(RuntimeError(text))
    except RuntimeError:
        log.exception("x")
    first, second, third, fourth = lines(stream)
    assert (first["error"], first["deep"], first["field_error"]) == (masked, [{"y": [masked]}], masked)
    assert (second["event"], third["event"]) == (masked, masked)
    assert fourth["exception"].endswith(masked)
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("part", ["://a:", "(token", "bearer ", "eyJ.", "password=", "Bearer", "://", "token"])
def test_masking_of_long_text_is_fast(log: Any, stream: io.StringIO, part: str) -> None:
    flood = part * (200_000 // len(part)) + " ="
    plain = "word " * (len(flood) // 5)
    assert cost(lambda: log.info("x", error=flood)) < 50 * cost(lambda: log.info("x", error=plain)) + 0.01
    assert len(lines(stream)) == 2


@pytest.mark.parametrize(
    ("path", "cut"),
    [
        (f"/notifications/devices/{HEX}", "/notifications/devices/…abcdef"),
        (f"/notifications/devices/{HEX}/test", "/notifications/devices/…abcdef/test"),
        (f"/notifications/devices/{HEX}/", "/notifications/devices/…abcdef/"),
        (f"/api/notifications/devices/{FCM}", "/api/notifications/devices/…last_6"),
        (f"/directory/users/4/devices/{FCM}", "/directory/users/4/devices/…last_6"),
        (f"/a/b/directory/users/4/devices/{FCM}/test", "/a/b/directory/users/4/devices/…last_6/test"),
        (f"/notifications/devices/{FCM.replace(':', '%3A')}", "/notifications/devices/…last_6"),
        (f"/notifications/devices/{HEX}%3Aab", "/notifications/devices/…def:ab"),
        (f"/notifications/devices%2F{HEX}", "/notifications/devices%2F…abcdef"),
        (f"/notifications/Devices/{HEX}", "/notifications/Devices/…abcdef"),
        (f"/notifications/devices//{HEX}", "/notifications/devices/…/…"),
        (f"/notifications/devices/abc/{HEX}+/x9=/test", "/notifications/devices/…abc/…/…/test"),
        (f"/notifications/devices/{HEX}/devices/{HEX}", "/notifications/devices/…abcdef/devices/…"),
        ("/notifications", "/notifications"),
        ("/notifications/devices", "/notifications/devices"),
        ("/notifications/devices/", "/notifications/devices/"),
        ("/notifications/devicesque/0123456789", "/notifications/devicesque/0123456789"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_device_tokens_in_paths_are_truncated(path: str, cut: str) -> None:
    assert cut_path(path) == cut


@given(
    st.sampled_from(["", "/api", "/a/b", "/devices/x"]),
    st.sampled_from(["/notifications", "/directory/users/4"]),
    st.text("0123456789abcdefABCDEF:_-%+=/", min_size=16, max_size=200).filter(lambda text: not text[-12:].islower()),
    st.sampled_from(["", "/test"]),
)
def test_log_shows_at_most_six_characters_of_a_token(root: str, handler: str, token: str, tail: str) -> None:
    cut = cut_path(f"{root}{handler}/devices/{token}{tail}")
    shown = set(re.findall(r"[0-9A-F:_%+=]{7,}", cut))
    assert not shown
    assert cut.endswith(tail)


def test_console_format_is_readable(stream: io.StringIO) -> None:
    configure("console", stream)
    structlog.get_logger().info("serving", url="http://127.0.0.1:8080", port=8080)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\S+Z \[info +\] serving +url=http://127\.0\.0\.1:8080 port=8080\n", stream.getvalue()
    )


def test_console_format_shows_exceptions_without_local_variables(stream: io.StringIO) -> None:
    configure("console", stream)
    password = SECRET
    try:
        fail(ValueError("no"))
    except ValueError:
        structlog.get_logger().exception("a bug")
    assert "Traceback (most recent call last)" in stream.getvalue()
    assert "ValueError: no" in stream.getvalue()
    assert password not in stream.getvalue()


def test_console_format_escapes_terminal_sequences(stream: io.StringIO) -> None:
    configure("console", stream)
    structlog.get_logger().info("request\x1b[2J", path="/\x1b]0;x\x07\r\x9b1A\u202e\ud800")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", stream.getvalue())
    assert "\\x1b]0;x" in stream.getvalue()


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


class Broken(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("make", [Broken, closed])
def test_unwritable_log_stream_raises_nothing(make: Any) -> None:
    stream: TextIO = make()
    configure("json", stream)
    structlog.get_logger().info("x")
    logging.getLogger("asyncpg").warning("y")


def test_log_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        configure("json", stream)
        log = structlog.get_logger()

        async def all_at_once() -> None:
            await asyncio.gather(*(asyncio.to_thread(write, number) for number in range(8)))

        def write(number: int) -> None:
            for count in range(200):
                log.info("line", number=number, count=count, padding="x" * 500)

        asyncio.run(all_at_once())
    found = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {(line["number"], line["count"]) for line in found} == {(n, c) for n in range(8) for c in range(200)}


def test_log_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    structlog.get_logger().info("here")
    written = capsys.readouterr()
    assert (written.out, json.loads(written.err)["event"]) == ("", "here")


def test_log_line_is_flushed_before_the_call_returns(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        configure("json", stream)
        structlog.get_logger().info("now")
        written: Mapping[str, Any] = json.loads((tmp_path / "log").read_text())
    assert written["event"] == "now"


@pytest.mark.parametrize(
    "text",
    [
        f"{'x' * MAX_TEXT_LENGTH} password={SECRET}",
        f"{'x' * (MAX_TEXT_LENGTH // 2 - 30)} postgres://user:{SECRET * 9}@db/x{'x' * MAX_TEXT_LENGTH}",
        f"{'x' * (MAX_TEXT_LENGTH // 2 - 30)} eyJhbGciOiJIUzI1NiJ9.{SECRET * 9}{'x' * MAX_TEXT_LENGTH}",
        f"{'x' * (MAX_TEXT_LENGTH // 2 - 30)} Key (token)=({SECRET * 9}) {'x' * MAX_TEXT_LENGTH}",
        f"{'x' * (MAX_TEXT_LENGTH - 30)} bearer {SECRET}{'x' * MAX_TEXT_LENGTH}",
    ],
)
def test_too_long_text_is_truncated_without_leaking_a_secret(log: Any, stream: io.StringIO, text: str) -> None:
    log.info("x", error=text)
    [line] = lines(stream)
    assert len(line["error"]) <= MAX_TEXT_LENGTH + 20
    assert SECRET[:8] not in stream.getvalue()


def test_long_traceback_keeps_first_and_last_lines(log: Any, stream: io.StringIO) -> None:
    try:
        fail(RuntimeError("\n".join(["x" * 80] * 500 + ["the last line"])))
    except RuntimeError:
        log.exception("x")
    [line] = lines(stream)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("\nthe last line")
    assert len(line["exception"]) <= MAX_TEXT_LENGTH + 20


def test_logged_path_has_500_characters_and_no_event_key() -> None:
    assert shown_path("/" + "eyJ-" * 16_000) == ("/" + "eyJ-" * 125)[:MAX_PATH_LENGTH] + "[…]"
    assert shown_path("/events/by-key/Jane Doe, born 1980/x") == "/events/by-key/…"
    assert shown_path("/api/events/by-key%2FJane") == "/api/events/by-key%2F…"
    assert shown_path("/events/by-key/") == "/events/by-key/"
    assert shown_path(f"/notifications/devices/{HEX}") == "/notifications/devices/…abcdef"


async def test_postgresql_row_details_stay_out_of_logs_and_dead_letters(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        async with api.app_state.database.connection() as connection:
            await connection.execute("insert into teams (id, company_id, name) values (-1, 1, 'geheim')")

    monkeypatch.setattr(fanout, "deliver", broken)
    monkeypatch.setattr(jobs, "RETRY_DELAYS", ())
    api.app_state.intake.at_once = None
    await api.people(1)
    event = {"type": "custom", "data": {"user": 1}, "params": {"body": "x"}, "notify": {"users": [1]}}
    with structlog.testing.capture_logs() as lines:
        id_ = (await api.as_service("POST", "/events", json=event)).json()["id"]
        state = await api.as_service("GET", f"/events/{id_}?wait=30")
    assert state.json()["state"] == "failed"
    reason = await api.app_state.database.value("select reason from dead_letters")
    [told] = [line for line in lines if line["event"] == "job moved to dead letters"]
    for text in (reason, told["reason"]):
        assert "teams_id_check" in text
        assert "geheim" not in text
        assert "\n" not in text
    assert isinstance(told["exc_info"], asyncpg.CheckViolationError)
    assert "geheim" in str(told["exc_info"])
    line = {"event": "x", "exception": f"Traceback\n{told['exc_info']}\n\nThe above exception was\nx"}
    shown = logs._without_secrets(None, "error", line)["exception"]  # noqa: SLF001 - the one place where all lines pass
    assert "geheim" not in shown
    assert "teams_id_check" in shown
    assert "The above exception" in shown
