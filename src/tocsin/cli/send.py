"""`tocsin send`: makes an event from a message or a file, and posts it to a running service."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tocsin.auth.from_settings import signer_of
from tocsin.auth.minting import Signer, mint_service
from tocsin.errors import Malformed, Refusal
from tocsin.http_client.fetch import FetchError, fetch
from tocsin.settings import Settings
from tocsin.strict_json import parse_object

SERVICE = "tocsin-send"
"""The name of the service in the token."""

WAIT_TIMEOUT = 60.0
"""Seconds to wait for the final state of an event."""

_LIFETIME = timedelta(minutes=5)
_REQUEST_TIMEOUT = 15.0
_MAX_ANSWER_BYTES = 2**20
_STEP = 5
_UNDER_WAY = frozenset({"queued", "delivering"})
_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - addresses to listen on, not to connect to


def event_of(message: str | None, users: Sequence[int], teams: Sequence[int], file: str | None) -> dict[str, Any]:
    """Return the event of a message to users and teams, or that of a file (`-`: stdin). Raises `Refusal`."""
    if (message is None) == (file is None):
        raise Refusal("Give a message, or an event with --file.")
    if message is not None and not _is_utf8(message):
        raise Refusal("The message is not UTF-8: set the terminal to UTF-8, or give the event with --file.")
    if file is None and not users and not teams:
        raise Refusal("Give at least one recipient with --user or --team.")
    if file is None:
        return {"type": "custom", "notify": {"users": list(users), "teams": list(teams)}, "params": {"body": message}}
    if users or teams:
        raise Refusal("An event from a file names its recipients: leave out --user and --team.")
    return _read(file)


@dataclass(frozen=True, slots=True)
class EventSender:
    """The service at `url`, and a token for it."""

    url: str
    token: str

    @classmethod
    def of(cls, settings: Settings, signer: Signer | str, url: str | None) -> Self:
        """Return the service at `url`, or the one that the settings describe. Raises `Refusal`."""
        return cls(base_of(url or url_of(settings)), mint_service(signer, SERVICE, ["events:write"], _LIFETIME))

    async def post(self, event: dict[str, Any]) -> str:
        """Post an event and return its id. Raises `Refusal` with all field errors."""
        return str((await self._call("/events", event))["id"])

    async def wait(self, id_: str) -> str:
        """Return the final state of an event, or its state after `WAIT_TIMEOUT`."""
        end = time.monotonic() + WAIT_TIMEOUT
        while True:
            state = str((await self._call(f"/events/{id_}?wait={_STEP}"))["state"])
            if state not in _UNDER_WAY or time.monotonic() > end:
                return state

    async def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        headers = (f"Authorization: Bearer {self.token}", "Content-Type: application/json")
        try:
            answer = await fetch(
                self.url + path, body=content, headers=headers, seconds=_REQUEST_TIMEOUT, limit=_MAX_ANSWER_BYTES
            )
            return parse_object(answer)
        except FetchError as error:
            if error.status:
                raise Refusal(
                    f"The service at {self.url} answered {error.status}: {_messages_in(error.body)}"
                ) from None
            reason = str(error).rstrip(".")
            raise Refusal(
                f"No service answers at {self.url} ({reason}): start `tocsin serve`, or give --url."
            ) from None
        except Malformed:
            raise Refusal(f"The server at {self.url} is not Tocsin: give --url.") from None


def tokens(settings: Settings, service: str) -> Callable[[], str]:
    """Return a function that makes a token of a service that may post events. Raises `Refusal` without a key."""
    signer = signer_of(settings, "services")
    return lambda: mint_service(signer, service, ["events:write"], _LIFETIME)


def base_of(url: str) -> str:
    """Return the url of a service without a slash at its end. Raises `Refusal` if paths cannot be appended to it."""
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname and not parts.query and not parts.fragment:
            return url.rstrip("/")
    except ValueError:  # such as `http://[::1`
        pass
    raise Refusal(f"{url!r} is not the url of a service: write it like http://127.0.0.1:8080.")


def url_of(settings: Settings) -> str:
    """Return the url of the service by the settings. Raises `Refusal` if its port is not known."""
    if settings.base_url:
        return settings.base_url
    if settings.port == 0:
        raise Refusal("The port is not known with TOCSIN_PORT=0: give it with --url.")
    return f"{local_url(settings, settings.port)}{settings.root_path}"


def console_url_of(settings: Settings) -> str:
    """Return the url of the console by the settings. Raises `Refusal` if its port is not known."""
    if settings.console_url:
        return settings.console_url
    port = settings.operations_port
    return f"{url_of(settings) if port is None else local_url(settings, port)}/console"


def local_url(settings: Settings, port: int) -> str:
    """Return the url of a port that the service listens on, for a client on the same machine."""
    host = _WILDCARDS.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _read(file: str) -> dict[str, Any]:
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise Refusal(f"The file {file} cannot be read: {error.strerror}.") from None
    try:
        return parse_object(content)
    except Malformed as error:
        raise Refusal(f"The file {file} is not an event: {error}") from None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _messages_in(body: bytes) -> str:
    """Return the messages of an error answer of Tocsin."""
    try:
        return " ".join(str(field_error["message"]) for field_error in json.loads(body)["errors"])
    except (ValueError, KeyError, TypeError):
        return "this is not an answer of Tocsin."
