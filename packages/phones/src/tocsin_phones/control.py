"""The control port: received pushes, screens and programmed answers; JSON over plain HTTP/1.1.

It asks for no token, so it answers only to a name of this machine, and not to pages of other origins.
"""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from tocsin_phones.answers import demand_of
from tocsin_phones.book import Book
from tocsin_phones.browser import Browser
from tocsin_phones.exchange import IncomingRequest, Reply
from tocsin_phones.local_calls import is_local
from tocsin_phones.strict_json import MalformedJson, parse_object

_JSON = ("content-type", "application/json")
_Door = Callable[[IncomingRequest, dict[str, str]], Reply]


class Control:
    """The routes of the control port, which listens at `host`, a loopback address."""

    def __init__(self, book: Book, browser: Browser, cut: Callable[[], None], host: str) -> None:
        self._book = book
        self._browser = browser
        self._cut = cut
        self._host = host
        self._routes: dict[str, dict[str, _Door]] = {
            "/pushes": {"GET": self._pushes, "DELETE": self._forget},
            "/answers": {"POST": self._add_answer, "DELETE": self._remove_answers},
            "/subscriptions": {"POST": self._subscribe, "DELETE": self._unsubscribe},
            "/screen": {"GET": self._screen},
            "/connections": {"DELETE": self._close_connections},
        }

    def handle(self, request: IncomingRequest) -> Reply:
        """Answer a call; errors have a sentence in `error`."""
        if not is_local(request.headers, self._host, self._host):
            return _wrong(403, "The control port answers only to localhost, and not to pages of other origins.")
        routes = self._routes.get(request.path)
        if routes is None:
            return _wrong(404, f"Unknown path {request.path}: use {', '.join(self._routes)}.")
        handler = routes.get(request.method)
        if handler is None:
            return _wrong(405, f"{request.path} allows {' and '.join(routes)}.")
        try:
            return handler(request, dict(parse_qsl(request.query)))
        except MalformedJson as error:
            return _wrong(400, str(error))

    def _pushes(self, request: IncomingRequest, query: dict[str, str]) -> Reply:  # noqa: ARG002 - the signature of all handlers
        return _json(200, self._book.received(query.get("provider"), query.get("token")))

    def _forget(self, request: IncomingRequest, query: dict[str, str]) -> Reply:  # noqa: ARG002
        self._book.forget()
        return Reply(204)

    def _add_answer(self, request: IncomingRequest, query: dict[str, str]) -> Reply:  # noqa: ARG002
        self._book.demands.waiting.append(demand_of(parse_object(request.body)))
        return Reply(204)

    def _remove_answers(self, request: IncomingRequest, query: dict[str, str]) -> Reply:  # noqa: ARG002
        self._book.demands.waiting.clear()
        return Reply(204)

    def _subscribe(self, request: IncomingRequest, query: dict[str, str]) -> Reply:  # noqa: ARG002
        key = parse_object(request.body or b"{}").get("applicationServerKey") or ""
        if not isinstance(key, str):
            raise MalformedJson("`applicationServerKey` must be a string.")
        return _json(201, self._browser.subscribe(key).as_json())

    def _unsubscribe(self, request: IncomingRequest, query: dict[str, str]) -> Reply:  # noqa: ARG002
        there = self._browser.unsubscribe(query.get("endpoint", ""))
        return Reply(204) if there else _wrong(404, "Unknown subscription: pass its `endpoint`.")

    def _screen(self, request: IncomingRequest, query: dict[str, str]) -> Reply:  # noqa: ARG002
        if "token" not in query:
            raise MalformedJson("Pass the token of a device: ?token=...")
        return _json(200, self._book.screen(query["token"], query.get("provider")).as_json())

    def _close_connections(self, request: IncomingRequest, query: dict[str, str]) -> Reply:  # noqa: ARG002
        self._cut()
        return Reply(204)


def _wrong(status: int, message: str) -> Reply:
    return _json(status, {"error": message})


def _json(status: int, value: Any) -> Reply:
    return Reply(status, (_JSON,), json.dumps(value, ensure_ascii=False).encode())
