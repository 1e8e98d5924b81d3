"""The log: one line per event, as text or JSON, without secrets.

Records of structlog, and those that libraries write to the standard `logging`, are formatted in the same way.
"""

import asyncio
import atexit
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from select import PIPE_BUF
from typing import Any, Literal, TextIO
from urllib.parse import unquote

import structlog
from structlog.typing import EventDict, Processor

MASK = "***"
"""Replaces a secret."""

SHOWN_OF_A_TOKEN = 6
"""The number of characters at the end of a device token that are shown."""

MAX_TEXT_LENGTH = 8_192
"""Maximum characters of a value. Longer values are shortened before secrets are masked."""

MAX_PATH_LENGTH = 500
"""Maximum characters of the path of a request."""

_MAX_DEPTH = 6
_LEFT_OUT = "[…]"
"""Replaces removed parts of a value."""

_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)|secret|token(?!_ending)|authorization|cookie|credential|(api|private)[_-]?key|dsn|database_?url",
    re.IGNORECASE,
)
_SECRETS_IN_TEXT = (
    (re.compile(r"\b(bearer) +[^\s'\",;]+", re.IGNORECASE), rf"\1 {MASK}"),
    # A shortened value can end within a secret.
    (re.compile(rf"(://[^\s/:@]*):(?:[^\s/]*|\S{{0,100}})(@|(?={re.escape(_LEFT_OUT)}))"), rf"\1:{MASK}\2"),
    (re.compile(r"\b(password|secret|token)=[^\s&'\"]+", re.IGNORECASE), rf"\1={MASK}"),
    # PostgreSQL's detail of a duplicate key: Key (token)=(...) already exists.
    (re.compile(r"(\([^()]{0,60}token[^()]{0,60}\))=\([^()]*+\)?"), rf"\1=({MASK})"),
    # Other details of PostgreSQL contain values of rows.
    (re.compile(r"\bDETAIL: .*?(?=\n\n(?:The above|During handling)|\Z)", re.DOTALL), f"DETAIL: {MASK}"),
    # Possessive, so that the search takes linear time.
    (re.compile(r"\beyJ[\w-]{5,}+(?:\.[\w-]*+){0,4}+", re.ASCII), MASK),
)
_DEVICES = re.compile(r"/devices(?:/|%2f)", re.IGNORECASE)
_KEYS = re.compile(r"(/by-key(?:/|%2f)).+", re.IGNORECASE | re.DOTALL)
_PATH_WORD = re.compile(r"[a-z][a-z-]{0,19}|")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OTHER_NAMES = {"uvicorn.error": "uvicorn.server"}
"""Replacements for misleading names of loggers: `uvicorn.error` also logs starts and stops."""

_ids_of_request: ContextVar[Mapping[str, str]] = ContextVar("ids of the request", default={})  # noqa: B039 - never changed
_json_output: "_Output | None" = None

_LEVELS = ("debug", "info", "warning", "error", "critical")


def configure(log_format: Literal["console", "json"], stream: TextIO | None = None) -> None:
    """Configure logging to `stream` (default: standard error). Call this once, before the first log line."""
    global _json_output  # noqa: PLW0603 - as the configuration of structlog
    output = _Output(stream or sys.stderr)
    _json_output = output if log_format == "json" else None
    renderers: list[Processor] = [_as_json] if log_format == "json" else [_visible, _console(output)]
    structlog.configure(
        processors=[
            with_ids,
            structlog.processors.format_exc_info,
            _without_secrets,
            _stamp,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=True,
    )
    _take_in_the_libraries()


def refuse(sentence: str) -> None:
    """Write the message of a `Refusal`: as a log line if the format is JSON, otherwise as plain text."""
    if structlog.is_configured() and structlog.get_config()["processors"][-1] is _as_json:
        structlog.get_logger().error("refused", reason=sentence)
    else:
        _Output(sys.stderr).write(f"tocsin: {sentence}")


def log_request(method: str, path: str, status: int, ms: float, caller: str | None) -> None:
    """Write the line of a request, at the level `info`.

    JSON is written directly, because this is the line of every request: the processors take three times as long.
    """
    if _json_output is None:
        structlog.get_logger().info("request", method=method, path=path, status=status, ms=ms, caller=caller)
        return
    ids = "".join([f', "{name}": {_quoted(value)}' for name, value in _ids_of_request.get().items()])
    called = "null" if caller is None else _shown(caller)
    _json_output.write_soon(
        f'{{"timestamp": "{_timestamp()}", "level": "info", "event": "request"{ids}, "method": "{method}", '
        f'"path": {_shown(path)}, "status": {status}, "ms": {ms}, "caller": {called}}}'
    )


def bind_request(request_id: str, trace_id: str | None = None) -> None:
    """Add the request id and the trace id to all further log lines in this context."""
    _ids_of_request.set({"request_id": request_id, "trace_id": trace_id} if trace_id else {"request_id": request_id})


def with_ids(_logger: Any, _level: str, line: EventDict) -> EventDict:
    """Add the ids of the request to a log line."""
    return {**_ids_of_request.get(), **line}


def cut_path(path: str) -> str:
    """Return the path with device tokens shortened to their last characters."""
    found = _DEVICES.search(path)
    if found is None or found.end() == len(path):
        return path
    token, *rest = path[found.end() :].split("/")
    # A token contains no slash. If a slash follows it anyway, only plain words after it are shown.
    words = (word if _PATH_WORD.fullmatch(word) else "…" for word in rest)
    return "/".join([f"{path[: found.end()]}…{unquote(token)[-SHOWN_OF_A_TOKEN:]}", *words])


def shown_path(path: str) -> str:
    """Return the path for the log: shortened, without device tokens and keys of events."""
    path = _KEYS.sub(r"\1…", cut_path(path))
    return path if len(path) <= MAX_PATH_LENGTH else path[:MAX_PATH_LENGTH] + _LEFT_OUT


class _Output:
    """Writes complete lines. Errors of a full or closed stream are ignored."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lock = threading.Lock()
        self._waiting = ""
        atexit.register(self.flush)

    def write(self, line: str) -> None:
        with self._lock:
            self._empty()
            self._put(f"{line}\n")

    def write_soon(self, line: str) -> None:
        """Write an ASCII line in the next turn of the event loop, with others of this turn.

        Together they are short enough that lines of other processes on the same pipe are not between their parts.
        """
        with self._lock:
            if len(self._waiting) + len(line) >= PIPE_BUF:
                self._empty()
            if not self._waiting:
                asyncio.get_running_loop().call_soon(self.flush)
            self._waiting += f"{line}\n"

    def flush(self) -> None:
        with self._lock:
            self._empty()

    def _empty(self) -> None:
        if self._waiting:
            text, self._waiting = self._waiting, ""
            self._put(text)

    def _put(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            pass

    debug = info = warning = error = critical = write


class _FromLibraries(logging.Handler):
    """Forwards records of the standard `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write = getattr(structlog.get_logger(), _level_of(record.levelno))
            write(record.getMessage(), logger=_OTHER_NAMES.get(record.name, record.name), exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - as in every handler
            self.handleError(record)


def _take_in_the_libraries() -> None:
    logging.basicConfig(level=logging.WARNING, handlers=[_FromLibraries()], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncpg", "asyncio"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = name != "uvicorn.access"  # Tocsin logs requests itself, with their ids and without tokens
    logging.getLogger("uvicorn").setLevel(logging.INFO)


def _level_of(number: int) -> str:
    return _LEVELS[min(max(number // 10, 1), len(_LEVELS)) - 1]


def _console(output: _Output) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=output.stream.isatty(), sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )


def _stamp(_logger: Any, level: str, line: EventDict) -> EventDict:
    return {"timestamp": _timestamp(), "level": level, "event": line.pop("event", ""), **line}


def _timestamp() -> str:
    second, fraction = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_in_utc(second)}.{fraction:06}Z"


@lru_cache(maxsize=1)
def _in_utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _as_json(_logger: Any, _level: str, line: EventDict) -> str:
    return _encode(line)


_encode = json.JSONEncoder().encode


def _without_secrets(_logger: Any, _level: str, line: EventDict) -> EventDict:
    return {name: MASK if _is_secret(name) else _masked(value) for name, value in line.items()}


@lru_cache(maxsize=1000)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _masked(value: Any, depth: int = 0) -> Any:
    """Return a value for JSON, without secrets."""
    if isinstance(value, str):
        return _masked_text(value)
    if value is None or isinstance(value, int | float):
        return value
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        names = {str(name): inner for name, inner in value.items()}
        return {name: MASK if _is_secret(name) else _masked(inner, depth + 1) for name, inner in names.items()}
    if depth < _MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
        return [_masked(inner, depth + 1) for inner in value]
    return _masked_text(str(value))


def _masked_text(text: str) -> str:
    if len(text) > MAX_TEXT_LENGTH:
        text = _shortened(text)
    if text.isalnum() and "eyJ" not in text:
        return text
    # Each pattern requires one of these strings, and most values contain none: this check is cheaper than the patterns.
    if "=" in text or "DETAIL:" in text or "://" in text or "eyJ" in text or "bearer" in text.lower():
        for secret, instead in _SECRETS_IN_TEXT:
            text = secret.sub(instead, text)
    return text


@lru_cache(maxsize=1000)
def _shown(text: str) -> str:
    """Return a text as JSON, without secrets: routes and callers repeat."""
    return _quoted(_masked_text(text))


def _shortened(text: str) -> str:
    """Return the beginning of a text and its last complete lines, which contain the error of a traceback."""
    half = MAX_TEXT_LENGTH // 2
    _, newline, end = text[-half:].partition("\n")
    return f"{text[:half]}{_LEFT_OUT}{newline}{end}"


def _visible(_logger: Any, _level: str, line: EventDict) -> EventDict:
    """Escape control characters, which could move the cursor of a terminal or change its colours."""
    return {name: _spelt_out(value) if isinstance(value, str) else value for name, value in line.items()}


def _spelt_out(text: str) -> str:
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
