"""A client for services that post events: one module without dependencies.

    Error                     the server is not Tocsin
    ├── Refused               the request was refused, as a retry would be: status, code, field errors
    │   ├── Unauthenticated   401
    │   ├── Unauthorized      403
    │   ├── NotFound          404
    │   ├── Conflict          409
    │   │   └── TooLate       409 conflict.too_late: it is delivered
    │   └── Invalid           422, with all field errors
    └── Unavailable           no answer, or only 408, 429 and 5xx, until the deadline

Requests without answer, or with 408, 429 or 5xx, are retried until the deadline. An event without an id gets one before
the first try, so that retries never create a second notification.
"""

import contextlib
import json
import logging
import os
import random
import re
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import TracebackType
from typing import Any, ClassVar, Literal, NotRequired, Required, Self, TypedDict, Unpack
from urllib.parse import quote, urlsplit
from uuid import UUID, uuid4

__all__ = [
    "Client",
    "Conflict",
    "Error",
    "FieldError",
    "Invalid",
    "NotFound",
    "Posted",
    "Refused",
    "State",
    "Team",
    "TooLate",
    "Unauthenticated",
    "Unauthorized",
    "Unavailable",
    "User",
]

MIN_DELAY, MAX_DELAY = 0.2, 10.0
"""Seconds before the first retry, doubled each time up to the second value, and reduced at random by up to half."""

_UNAUTHENTICATED, _NOT_FOUND, _OURS = 401, 404, 500
_TEMPORARY = {408, 429}
_BEARER = re.compile(r"[\x21-\x7e]+")

log = logging.getLogger(__name__)


class Error(Exception):
    """A call failed. `status` is that of the answer, if there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class FieldError:
    """An error: a sentence for developers, a stable code, and the field if it is about one."""

    message: str
    code: str
    field: str | None = None


class Refused(Error):  # noqa: N818 - the answers have their own names
    """The service refused the request; a retry would be refused too. `request_id` is in its log."""

    def __init__(
        self, message: str, status: int, field_errors: Sequence[FieldError] = (), request_id: str | None = None
    ) -> None:
        super().__init__(message, status)
        self.field_errors = tuple(field_errors)
        self.request_id = request_id

    @property
    def code(self) -> str:
        """The code of the first error, such as `conflict.too_late`; empty if the server is not Tocsin."""
        return self.field_errors[0].code if self.field_errors else ""

    @property
    def fields(self) -> tuple[str, ...]:
        """The dotted paths of all invalid values, such as `notify.users.1`."""
        return tuple(field_error.field for field_error in self.field_errors if field_error.field)


class Unauthenticated(Refused):
    """The token is missing, invalid or expired."""


class Unauthorized(Refused):
    """The token is valid, but does not allow this."""


class NotFound(Refused):
    """The id is unknown, or not accessible for this caller."""


class Conflict(Refused):
    """The request conflicts with an earlier one."""


class TooLate(Conflict):
    """The event was delivered before it was cancelled."""


class Invalid(Refused):
    """The request is invalid; `field_errors` has all errors."""


class Unavailable(Error):  # noqa: N818 - the answers have their own names
    """The request did not succeed before the deadline. Whether the service processed it is unknown.

    The events can be posted again with the same `ids`, at any time; they are delivered once.
    """

    def __init__(self, message: str, status: int | None = None, ids: Sequence[str] = ()) -> None:
        super().__init__(message, status)
        self.ids = tuple(ids)


@dataclass(frozen=True, slots=True)
class Posted:
    """An accepted event, and its unknown recipients that were skipped (`unknown: skip`)."""

    id: str
    skipped_users: tuple[int, ...] = ()
    skipped_teams: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """The state of an event: `held`, `queued`, `delivering`, `delivered`, `cancelled` or `failed`, with counts."""

    id: str
    type: str
    state: str
    recipients: int
    read: int
    pushes: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    reason: str | None = None
    replaced_by: str | None = None

    @property
    def settled(self) -> bool:
        """Whether the state is final."""
        return self.state in {"delivered", "cancelled", "failed"}


class User(TypedDict):
    """The fields of a user; those left out get their default."""

    first_name: Required[str]
    last_name: Required[str]
    profile_picture: NotRequired[str | None]
    email: NotRequired[str | None]
    company_id: NotRequired[int | None]
    locale: NotRequired[str]
    time_zone: NotRequired[str]
    active: NotRequired[bool]


class Team(TypedDict):
    """The fields of a team; `users` replaces its members."""

    name: Required[str]
    company_id: NotRequired[int | None]
    users: NotRequired[Sequence[int]]


class Client:
    """The service at `url`, for any number of threads; also a context manager, which closes its connections.

    `token` is a service's token, or a function that returns one: it is asked first, and again once when a token is no
    longer good. `deadline` is the seconds that one call may take with all its tries; `timeout` the seconds of silence
    after which a try has got no answer; `connections` how many are kept open. No proxy is asked, no redirect followed.
    """

    def __init__(  # noqa: PLR0913 - all settings of the client
        self,
        url: str,
        token: str | Callable[[], str],
        *,
        deadline: float = 30.0,
        timeout: float = 10.0,
        connections: int = 8,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._token = _Token(token)
        self._deadline, self._timeout = deadline, timeout
        self._pool = _Pool(self.url, connections, tls)
        self._prefix = urlsplit(self.url).path

    def post(self, event: Mapping[str, Any]) -> Posted:
        """Post an event; return after the service has stored it durably."""
        [named] = _named([event])
        answer = self._call("POST", "/events", named, ids=[named["id"]])
        with self._understood():
            return _posted(answer["id"], answer.get("skipped", {}))

    def post_batch(self, events: Iterable[Mapping[str, Any]]) -> list[Posted]:
        """Post 1 to 1,000 events, all or none. They are delivered in their order."""
        named = _named(events)
        answer = self._call("POST", "/events/batch", {"events": named}, ids=[event["id"] for event in named])
        with self._understood():
            skipped = {entry["id"]: entry for entry in answer.get("skipped", [])}
            return [_posted(id_, skipped.get(id_, {})) for id_ in answer["ids"]]

    def cancel(self, id_: str) -> None:
        """Cancel an event that is not delivered yet. Raises `TooLate`."""
        self._call("DELETE", f"/events/{_quoted(id_)}")

    def cancel_by_key(self, key: str) -> None:
        """Cancel what was posted under a key. Raises `TooLate` if it is delivered."""
        self._call("DELETE", f"/events/by-key/{_quoted(key)}")

    def resolve(
        self, about: str, how: Literal["read", "gone", "erased"] = "read", *, users: Sequence[int] | None = None
    ) -> None:
        """Resolve the notifications about a subject (`lead:220f5f6e-...`), for all or these users."""
        body = {"about": about, "as": how, **({} if users is None else {"users": list(users)})}
        self._call("POST", "/events/resolve", body, headers={"Idempotency-Key": str(uuid4())})

    def state(self, id_: str, *, wait: int = 0) -> State:
        """Return the state of an event; with `wait` (up to 30 s) as soon as it is final."""
        answer = self._call("GET", f"/events/{_quoted(id_)}?wait={wait}", patience=wait)
        with self._understood():
            return State(**{name: answer[name] for name in _OF_STATES if name in answer})

    def put_user(self, id_: int, **user: Unpack[User]) -> None:
        """Create or replace a user."""
        self._call("PUT", f"/directory/users/{_quoted(id_)}", user)

    def delete_user(self, id_: int) -> None:
        """Erase a user with all their data."""
        self._call("DELETE", f"/directory/users/{_quoted(id_)}", gone_is_done=True)

    def put_team(self, id_: int, **team: Unpack[Team]) -> None:
        """Create or replace a team and its members."""
        self._call("PUT", f"/directory/teams/{_quoted(id_)}", {**team, "users": list(team.get("users", ()))})

    def delete_team(self, id_: int) -> None:
        """Delete a team. Its members stay."""
        self._call("DELETE", f"/directory/teams/{_quoted(id_)}", gone_is_done=True)

    def put_member(self, team: int, user: int) -> None:
        """Add a user to a team."""
        self._call("PUT", f"/directory/teams/{_quoted(team)}/users/{_quoted(user)}")

    def delete_member(self, team: int, user: int) -> None:
        """Remove a user from a team."""
        self._call("DELETE", f"/directory/teams/{_quoted(team)}/users/{_quoted(user)}")

    def close(self) -> None:
        """Close idle connections. The client can still be used."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(  # noqa: PLR0913 - all parts of a request
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        patience: float = 0,
        ids: Sequence[str] = (),
        gone_is_done: bool = False,
    ) -> Any:
        """Send a request until there is an answer, and return its JSON. `patience` is the expected time."""
        end = time.monotonic() + self._deadline + patience
        request = _Request(method, self._prefix + path, _encoded(body), dict(headers or {}))
        attempt = 0
        while True:
            wanted, cause = 0.0, None
            try:
                answer = self._authorized(request, min(self._timeout + patience, max(0.001, end - time.monotonic())))
            except (OSError, HTTPException) as error:
                failure, cause = Unavailable(f"{self.url} did not answer: {error!r}.", None, ids), error
            else:
                if answer.status == _NOT_FOUND and answer.field_errors and gone_is_done and attempt:
                    return None
                if answer.status not in _TEMPORARY and answer.status < _OURS:
                    with self._understood():
                        return answer.content_or_error(self.url)
                failure = Unavailable(f"{self.url} answers {answer.words}", answer.status, ids)
                wanted = answer.retry_after
            attempt += 1
            if isinstance(cause, _Stale):
                continue
            pause = max(wanted, _backoff(attempt))
            if time.monotonic() + pause >= end or isinstance(cause, ssl.SSLCertVerificationError):
                raise failure from cause
            log.warning("%s Retrying in %.1f s.", failure, pause)
            time.sleep(pause)

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """Raise `Error` if a successful answer is not one of Tocsin."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Error(f"The server at {self.url} is not Tocsin.") from None

    def _authorized(self, request: "_Request", seconds: float) -> "_Answer":
        """Send a request with the token, and again with a new one if that one has expired."""
        token = self._token.current()
        answer = self._pool.exchange(request, token, seconds)
        if answer.status == _UNAUTHENTICATED and self._token.renew(token):
            answer = self._pool.exchange(request, self._token.current(), seconds)
        return answer


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    content: bytes | None
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    FAMILY: ClassVar[Mapping[int, type[Refused]]] = {
        401: Unauthenticated,
        403: Unauthorized,
        404: NotFound,
        409: Conflict,
        422: Invalid,
    }

    def content_or_error(self, url: str) -> Any:
        """Return the JSON of a success. Raises the error of a refusal."""
        if not 200 <= self.status < 300:  # noqa: PLR2004 - the 2xx statuses
            field_errors = self.field_errors
            of_status = self.FAMILY.get(self.status, Refused) if field_errors else Refused
            kind = TooLate if field_errors and field_errors[0].code == "conflict.too_late" else of_status
            raise kind(f"{url} answers {self.words}", self.status, field_errors, self.headers.get("x-request-id"))
        return json.loads(self.content) if self.content else None

    @property
    def field_errors(self) -> list[FieldError]:
        """The errors in the answer; empty if the server is not Tocsin."""
        try:
            errors = json.loads(self.content)["errors"]
            return [FieldError(str(error["message"]), str(error["code"]), error.get("field")) for error in errors]
        except (ValueError, KeyError, TypeError, AttributeError):
            return []

    @property
    def words(self) -> str:
        """The status and the errors as text."""
        return f"{self.status}: " + (
            " ".join(field_error.message for field_error in self.field_errors) or "this is not an answer of Tocsin."
        )

    @property
    def retry_after(self) -> float:
        """The seconds of `Retry-After` (RFC 9110, section 10.2.3), a number or a date."""
        value = self.headers.get("retry-after", "").strip()
        if value.isascii() and value.isdigit():
            return float(value)
        with contextlib.suppress(ValueError):
            moment = parsedate_to_datetime(value)
            return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
        return 0.0


class _Token:
    """A token that can be renewed. Several threads may renew it at once; that is harmless."""

    def __init__(self, given: str | Callable[[], str]) -> None:
        self._make = None if isinstance(given, str) else given
        self._value = None if callable(given) else _checked(given)

    def current(self) -> str:
        if self._value is None:
            assert self._make is not None  # noqa: S101 - only a fixed token has no `_make`, and it always has a value
            self._value = _checked(self._make())
        return self._value

    def renew(self, old: str) -> bool:
        """Discard an expired token; return False if there can be no other."""
        if self._make is not None and self._value == old:
            self._value = None
        return self._make is not None


class _Stale(ConnectionError):  # noqa: N818 - not an error
    """The server closed an idle connection, which is normal: retry without a delay."""


class _Pool:
    """Connections that are kept open. There are no locks that a fork could inherit."""

    def __init__(self, url: str, size: int, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        if (
            parts.scheme not in {"http", "https"}
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username
        ):
            raise ValueError("The url must be the address of a service, such as https://notify.example.com.")
        self._host, self._port = parts.hostname, parts.port
        self._tls = tls or (ssl.create_default_context() if parts.scheme == "https" else None)
        self._size = size
        self._idle: list[HTTPConnection] = []
        self._process = os.getpid()

    def exchange(self, request: _Request, token: str, seconds: float) -> _Answer:
        """Send a request and return its answer. Raises `OSError` or `HTTPException` without one."""
        kept = self._kept()
        try:
            return self._exchange(kept or self._new(), request, token, seconds)
        except (ConnectionError, TimeoutError) as error:
            if kept is None:
                raise
            self.close()  # the others are no better: the server or a firewall has closed them, or this computer slept
            if isinstance(error, TimeoutError):
                raise
            raise _Stale(*error.args) from error

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _exchange(self, connection: HTTPConnection, request: _Request, token: str, seconds: float) -> _Answer:
        headers = {"Authorization": f"Bearer {token}", "User-Agent": "tocsin-client", **request.headers}
        if request.content is not None:
            headers["Content-Type"] = "application/json"
        connection.timeout = seconds
        is_sent = False
        try:
            if connection.sock:
                connection.sock.settimeout(seconds)
            else:
                connection.connect()
            with contextlib.suppress(ConnectionError):  # the server may have refused a large body before its end
                connection.request(request.method, request.path, request.content, headers)
                is_sent = True
            response = connection.getresponse()
            answer = _Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        except BaseException:
            connection.close()
            raise
        if not is_sent or response.will_close or len(self._idle) >= self._size:
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    def _kept(self) -> HTTPConnection | None:
        """Return an idle connection of this process, not one of the parent process."""
        if self._process != os.getpid():
            self.close()
            self._process = os.getpid()
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return None

    def _new(self) -> HTTPConnection:
        if self._tls:
            return HTTPSConnection(self._host, self._port, context=self._tls)
        return HTTPConnection(self._host, self._port)


_OF_STATES = [column.name for column in fields(State)]


def _named(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the events, each with an id."""
    return [{**event, "id": str(event.get("id") or _new_id())} for event in events]


def _new_id() -> UUID:
    """Return a UUID of version 7: the service stores those of a month together."""
    return UUID(
        int=time.time_ns() // 1_000_000 << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)
    )


def _posted(id_: str, skipped: Mapping[str, Sequence[int]]) -> Posted:
    return Posted(id_, tuple(skipped.get("users", ())), tuple(skipped.get("teams", ())))


def _encoded(body: Mapping[str, Any] | None) -> bytes | None:
    return None if body is None else json.dumps(body, allow_nan=False).encode()


def _quoted(id_: str | int) -> str:
    return quote(str(id_), safe="")


def _checked(token: str) -> str:
    """Return a valid token. Raises `ValueError` without repeating it."""
    if not _BEARER.fullmatch(token):
        raise ValueError("The token has characters that a bearer token cannot have, such as a line break.")
    return token


def _backoff(attempt: int) -> float:
    longest = min(MAX_DELAY, MIN_DELAY * 2.0 ** min(attempt - 1, 30))
    return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads retries; not for security
