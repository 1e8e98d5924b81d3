"""A handle of curl, used for one request after another."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pycurl

from tocsin.http_client.messages import Answer, Request
from tocsin.http_client.public_addresses import is_public, origin_of
from tocsin.http_client.tls import Trust

FORBIDDEN = "forbidden address"
"""The error of a guarded request to an address that is not allowed."""

_OURS = ("Accept:",)
_MAX_REFUSALS = 20
_BOTH = pycurl.PROTO_HTTPS | pycurl.PROTO_HTTP
_OLDEST_CONNECTION = 3600
_IDLE_TIMEOUT = 600
_QUICK_EXIT = 322  # pycurl has no name for it: close without waiting for name look-ups


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds for a push, of which `connecting` for its connection, and maximum `bytes` of an answer."""

    seconds: float = 10.0
    connecting: float = 5.0
    bytes: int = 64 * 1024


@dataclass(slots=True)
class Pending:
    """A request that waits for its answer. `refusals` counts its streams that the server refused unprocessed."""

    request: Request
    future: asyncio.Future[Answer]
    refusals: int = 0


class CurlHandle:
    """One handle. `may_go` is called just before a request is sent on a connection; if it returns False, it waits."""

    def __init__(
        self,
        may_go: Callable[["CurlHandle", int], bool],
        opening: Callable[[], None],
        trust: Trust,
        limits: Limits,
        allowed_origins: frozenset[str],
    ) -> None:
        self.curl = pycurl.Curl()
        self.pending: Pending | None = None
        self.port = 0
        """The local port of the connection of the request; 0: not sent yet."""
        self.doubtful = False
        """Whether that connection broke."""
        self._may_go, self._opening = may_go, opening
        self._limits, self._allowed = limits, allowed_origins
        self._sent_at = datetime.now(UTC)
        self._guarded = self._forbidden = self._held = False
        self._goes = 0
        self._opened: list[socket.socket] = []
        self._parts: list[bytes] = []
        self._lines: list[bytes] = []
        self._set_up(trust)

    def begin(self, pending: Pending, now: datetime) -> str:
        """Prepare the handle for a request; return why that is impossible, or an empty string."""
        request = pending.request
        self._sent_at = now
        self._goes, self._held, self._forbidden = 0, False, False
        self.port, self.doubtful = 0, False
        origin = origin_of(request.url) if request.guarded else ""
        if origin is None:
            return FORBIDDEN
        try:
            self._guard(guarded=request.guarded and origin not in self._allowed)
            self.curl.setopt(pycurl.URL, request.url)
            self.curl.setopt(pycurl.HTTPHEADER, [*_OURS, *[f"{name}: {value}" for name, value in request.headers]])
            self.curl.setopt(pycurl.POSTFIELDS, request.body)
        except (ValueError, TypeError, pycurl.error) as error:
            return f"no request can be made of this: {error}"
        self.pending = pending
        return ""

    def end(self, code: int, message: str) -> Answer | None:
        """Return the answer for curl's result (0: complete); None: the request must be sent again."""
        if code == 0:
            answer = Answer(self.curl.getinfo(pycurl.RESPONSE_CODE), self._headers(), self._body(), self._sent_at)
        elif self._to_be_sent_again(code):
            answer = None
        else:
            answer = self.unanswered(self._in_words(code, message))
        self._parts.clear()
        self._lines.clear()
        if self._opened:
            self._close_sockets()
        return answer

    def close(self) -> None:
        """Close the handle."""
        self.curl.close()
        self._close_sockets()

    def unanswered(self, error: str) -> Answer:
        """Return the answer with status 0 of a request that got none."""
        return Answer(0, {}, b"", self._sent_at, error)

    @staticmethod
    def never(error: str) -> Answer:
        """Return the answer with status 0 of a request that was not sent."""
        return Answer(0, {}, b"", datetime.now(UTC), error)

    def _guard(self, *, guarded: bool) -> None:
        if guarded is not self._guarded:
            self._guarded = guarded
            self.curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTPS if guarded else _BOTH)

    def _to_be_sent_again(self, code: int) -> bool:
        """Return whether the server did not process the request: it was held back, or its stream was refused.

        Curl repeats refused requests (a reset stream or GOAWAY), but also requests that got no answer before their
        connection broke, and that may have been processed.
        """
        if code != pycurl.E_ABORTED_BY_CALLBACK or self._forbidden or self.pending is None:
            return False
        if self._held:
            return True
        self.pending.refusals += 1
        encrypted = self.pending.request.url.startswith("https:")  # HTTP/1.1 has no refusals
        return encrypted and not self.doubtful and self.pending.refusals <= _MAX_REFUSALS

    def _about_to_go(self, address: str, _own: str, _port: int, own_port: int) -> int:
        """Called by curl before a request is written, also before it is written again."""
        self._goes += 1
        self.port = own_port if self._goes == 1 else self.port
        if self._guarded and not is_public(address):
            self._forbidden = True
        elif self._goes == 1:
            self._held = not self._may_go(self, own_port)
        go = self._goes == 1 and not self._forbidden and not self._held
        return pycurl.PREREQFUNC_OK if go else pycurl.PREREQFUNC_ABORT

    def _open(self, _purpose: int, address: tuple[int, int, int, Any]) -> socket.socket | int:
        """Open a socket for exactly this address, if it is allowed."""
        family, kind, protocol, where = address
        if self._guarded and not (family in (socket.AF_INET, socket.AF_INET6) and is_public(where[0])):
            self._forbidden = True
            return pycurl.SOCKET_BAD
        self._opening()
        self._opened.append(socket.socket(family, kind, protocol))  # curl duplicates it
        return self._opened[-1]

    def _close_sockets(self) -> None:
        for opened in self._opened:
            opened.close()
        self._opened.clear()

    def _headers(self) -> dict[str, str]:
        """Return the headers, including those of informational answers and trailers."""
        found = dict(map(_header_of, self._lines))
        del found[""]  # the status line, and the empty line at the end
        return found

    def _body(self) -> bytes:
        return b"".join(self._parts) if self._parts else b""

    def _in_words(self, code: int, message: str) -> str:  # noqa: PLR0911 - a table
        match code:
            case _ if self._forbidden:
                return FORBIDDEN
            case pycurl.E_UNSUPPORTED_PROTOCOL | pycurl.E_URL_MALFORMAT if self._guarded:
                return FORBIDDEN
            case pycurl.E_OPERATION_TIMEDOUT:
                return f"no whole answer within {self._limits.seconds:g} s"
            case pycurl.E_FILESIZE_EXCEEDED:
                return f"the answer has more than {self._limits.bytes} bytes"
            case pycurl.E_ABORTED_BY_CALLBACK:
                return "the connection broke, or was closed, before an answer"
            case pycurl.E_HTTP2 if not message:
                return "the connection was closed before an answer"
            case _:
                return message or f"error {code} of curl"

    def _set_up(self, trust: Trust) -> None:
        limits = self._limits
        for option, value in (
            (pycurl.POST, 1),
            (pycurl.USERAGENT, "tocsin"),
            (pycurl.PROTOCOLS, _BOTH),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS),
            (pycurl.PIPEWAIT, 1),
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.PROXY, ""),
            (pycurl.NOPROXY, "*"),
            (pycurl.NOSIGNAL, 1),
            (_QUICK_EXIT, 1),
            (pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2),
            (pycurl.TIMEOUT_MS, int(limits.seconds * 1000)),
            (pycurl.CONNECTTIMEOUT_MS, int(limits.connecting * 1000)),
            (pycurl.MAXFILESIZE, limits.bytes),
            (pycurl.MAXAGE_CONN, _IDLE_TIMEOUT),
            (pycurl.MAXLIFETIME_CONN, _OLDEST_CONNECTION),
            (pycurl.TCP_KEEPALIVE, 1),
            (pycurl.DNS_CACHE_TIMEOUT, 0),
            (pycurl.WRITEFUNCTION, self._parts.append),
            (pycurl.HEADERFUNCTION, self._lines.append),
            (pycurl.PREREQFUNCTION, self._about_to_go),
            (pycurl.OPENSOCKETFUNCTION, self._open),
        ):
            self.curl.setopt(option, value)
        trust.give(self.curl)


@lru_cache(1024)
def _header_of(line: bytes) -> tuple[str, str]:
    """Return the name and value of a header. Most headers repeat, so they are cached."""
    name, colon, value = line.decode("latin-1").partition(":")
    return (name.lower(), value.strip()) if colon else ("", "")
