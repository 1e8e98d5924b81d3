"""A page of another origin that embeds the inbox under a strict policy, and its browser."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    Request,
    expect,
)

from tests.support.barriers import barriers_of
from tests.support.service import HOUR, SECRET, Api
from tests.support.waiting import reaches
from tocsin.auth.minting import mint_user

REFUSED = re.compile("Content Security Policy|requires 'Trusted", re.IGNORECASE)

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)

STARTED = """
const inbox = document.querySelector("tocsin-inbox");
window.heard = [];
for (const type of ["tocsin-open", "tocsin-count", "tocsin-error"]) {
  addEventListener(type, (event) => {
    const { status, code, unread, link, notification } = event.detail;
    heard.push({ type, status, code, unread, link, id: notification?.id });
    if (type === "tocsin-open" && window.prevents) event.preventDefault();
  });
}
"""

ALLOWED = {"Access-Control-Allow-Origin": "*"}
"""CORS headers of responses that a test makes up."""

PROVIDED = 'inbox.tokenProvider = async () => (await fetch("/token")).text();\n'


BODY = "body { margin: 16px; font-family: sans-serif } header { text-align: end }\n"


@dataclass
class Host:
    """A small server on the loopback whose content a test can change."""

    origin: str
    service: Api = field(init=False)
    api: str = ""
    user: int = 1
    lifetime: timedelta = HOUR
    body: str = ""
    script: str = STARTED + PROVIDED
    lang: str = "en"
    tokens: int = 0
    style: str = ":root { color-scheme: light dark }"
    strict: bool = True
    cache: str = "no-store"
    trusted: str = "tocsin-inbox"
    embedded: bool = True
    subscribe: Callable[[str], dict[str, Any]] | None = None

    def serves(self, api: Api) -> None:
        """Connect the page with this service."""
        self.service, self.api = api, str(api.http.base_url).rstrip("/")
        self.embed()

    def embed(self, attributes: str = "", inside: str = "", around: str = "<header>{}</header>") -> None:
        element = f'<tocsin-inbox src="{self.api}" {attributes}>{inside}</tocsin-inbox>'
        self.body = around.format(element)

    def token(self, user: int | None = None) -> str:
        return mint_user(SECRET, user or self.user, self.lifetime)

    def answer(self, path: str) -> tuple[str, str] | None:
        """Return the media type and the content of a file."""
        if path == "/token":
            self.tokens += 1
            return "text/plain", self.token()
        if path == "/subscription" and self.subscribe:
            return "application/json", json.dumps(self.subscribe(""))
        found = {
            "/page.js": ("text/javascript", self.script),
            "/page.css": ("text/css", BODY + self.style),
            "/worker.js": ("text/javascript", f'importScripts("{self.api}/inbox-worker.js");'),
            "/plain": ("text/html", "<!doctype html><title>elsewhere</title><p>elsewhere"),
        }
        return found.get(path) or (("text/html", self._page()) if path in {"/", "/other"} else None)

    def _page(self) -> str:
        element = f'<script type="module" src="{self.api}/inbox.js"></script>' if self.embedded else ""
        return f"""<!doctype html><html lang="{self.lang}"><meta charset="utf-8"><title>Host</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<link rel="stylesheet" href="/page.css">{element}
<script defer src="/page.js"></script><body><main><h1>Host</h1>{self.body}</main></body></html>"""

    @property
    def policy(self) -> str:
        return (
            f"default-src 'none'; script-src 'self' {self.api}; connect-src 'self' {self.api}; style-src 'self'; "
            "img-src https: data:; worker-src 'self'; base-uri 'none'; form-action 'none'; "
            f"require-trusted-types-for 'script'; trusted-types {self.trusted}"
        )


@asynccontextmanager
async def hosting() -> AsyncIterator[Host]:
    """Serve a page on a free port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:  # a connection that the browser kept in reserve
            writer.close()
            return
        found = host.answer(head.split(" ")[1].partition("?")[0])
        kind, content = found or ("text/plain", "nothing")
        body = content.encode()
        policy = f"Content-Security-Policy: {host.policy}\r\n" if kind == "text/html" and host.strict else ""
        status = "200 OK" if found else "404 Not Found"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {len(body)}\r\n{policy}"
            f"Cache-Control: {host.cache}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host = Host(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server:
        yield host


@dataclass
class Window:
    """A tab with the host's page, and its errors."""

    page: Page
    host: Host
    complaints: list[str] = field(default_factory=list)

    @property
    def bell(self) -> Locator:
        return self.page.locator("tocsin-inbox .bell")

    @property
    def panel(self) -> Locator:
        return self.page.locator("tocsin-inbox .panel")

    @property
    def rows(self) -> Locator:
        return self.page.locator("tocsin-inbox .row")

    @property
    def badge(self) -> Locator:
        return self.page.locator("tocsin-inbox .badge")

    def row(self, text: str) -> Locator:
        return self.rows.filter(has_text=text)

    def button(self, name: str) -> Locator:
        return self.panel.get_by_role("button", name=name, exact=True)

    def part(self, name: str) -> Locator:
        return self.page.locator(f"tocsin-inbox [part={name}]")

    async def go(self, path: str = "/") -> None:
        await self.page.goto(self.host.origin + path)

    async def open(self) -> None:
        await self.bell.click()
        await self.panel.wait_for()

    async def focused(self) -> str:
        """Return the text and label of the focused part of the element."""
        text: str = await self.page.evaluate(
            """() => {
              const at = document.querySelector("tocsin-inbox").shadowRoot.activeElement;
              return at ? (at.getAttribute("aria-label") ?? (at.innerText || at.closest(".row")?.innerText)) : "";
            }"""
        )
        return text

    async def heard(self, type_: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = await self.page.evaluate("() => window.heard")
        return [event for event in events if event["type"] == type_]

    async def barriers(self) -> list[str]:
        """Return the findings of axe in the page as text."""
        return await barriers_of(self.page)


class Windows:
    """Tabs of one browser profile."""

    def __init__(self, context: BrowserContext, host: Host) -> None:
        self.context = context
        self.host = host
        self.all: list[Window] = []

    async def new(self, *, go: bool = True) -> Window:
        window = Window(await self.context.new_page(), self.host)
        self.all.append(window)

        def note(message: ConsoleMessage) -> None:
            if REFUSED.search(message.text):
                window.complaints.append(message.text)

        def broken(error: Error) -> None:
            window.complaints.append(str(error))

        window.page.on("console", note)
        window.page.on("pageerror", broken)
        if go:
            await window.go()
        return window


@asynccontextmanager
async def browsing(browser: Browser, host: Host, **more: Any) -> AsyncIterator[Windows]:
    """Open a profile; errors and policy violations in it fail the test."""
    async with AsyncExitStack() as stack:
        context = await browser.new_context(**{"viewport": {"width": 900, "height": 760}, **more})
        stack.push_async_callback(context.close)
        context.set_default_timeout(60_000)
        windows = Windows(context, host)
        yield windows
        assert [complaint for window in windows.all for complaint in window.complaints] == []


def asked(windows: Windows, what: str) -> list[str]:
    """Return a list that records all later requests whose method and URL contain this text."""
    found: list[str] = []

    def note(request: Request) -> None:
        if what in (line := f"{request.method} {request.url}"):
            found.append(line)

    windows.context.on("request", note)
    return found


async def notify(api: Api, *messages: str, user: int = 1, by: int | None = None) -> list[str]:
    """Post notifications in this order, and return their ids."""
    sender = {"data": {"user": by}} if by else {}
    return [
        await api.post({"type": "custom", "notify": {"users": [user]}, "params": {"body": message}, **sender})
        for message in messages
    ]


async def opened(windows: Windows, *messages: str) -> Window:
    """Post these notifications, the last one newest, and open the panel."""
    await notify(windows.host.service, *messages)
    window = await windows.new()
    await window.open()
    await expect(window.rows).to_have_count(min(len(messages), 20))
    return window


async def stop_clock(page: Page) -> None:
    """Stop the clock of a page, so that no time for undo and no toast ends before the test lets it.

    If a busy machine takes more than a second for it, the clock has stopped after the given time, which is an error.
    """
    await page.clock.install()
    try:
        await page.clock.pause_at(datetime.now(UTC) + timedelta(seconds=1))
    except Error:
        await page.clock.pause_at(datetime.now(UTC) + timedelta(seconds=1))


async def texts(window: Window) -> list[str]:
    """Return the first line of each row, including rows that are not rendered."""
    found: list[str] = await window.page.locator("tocsin-inbox .text").evaluate_all(
        "(found) => found.map((text) => (text.querySelector('p') ?? text).textContent)"
    )
    return found


async def unread_of(api: Api, user: int = 1) -> list[str]:
    """Return the unread notifications of the service, the newest first."""
    return [entry["message"] for entry in (await api.inbox(user, "?show=unread&per_page=100"))["data"]]


async def settles(api: Api, *messages: str) -> None:
    """Wait until just these are unread."""
    await reaches(lambda: unread_of(api), list(messages))


async def many(api: Api, count: int) -> None:
    """Post this number of notifications in one batch."""
    events = [{"type": "custom", "notify": {"users": [1]}, "params": {"body": f"Note {at}"}} for at in range(count)]
    answer = await api.as_service("POST", "/events/batch", json={"events": events})
    await api.as_service("GET", f"/events/{answer.json()['ids'][-1]}?wait=30")
    await reaches(lambda: api.app_state.database.value("select count(*) from inbox where user_id = 1"), count)


async def imported(api: Api, ages: dict[str, int]) -> None:
    """Import notifications of this number of days ago, the oldest first."""
    lines = []
    for message, days in ages.items():
        at = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%d %H:%M:%S")
        note: dict[str, Any] = {"user_id": 1, "id": str(uuid4()), "type": "custom", "data": {}, "message": message}
        lines.append(
            {"notification": {**note, "message_formatted": f"<p>{message}</p>", "read_at": None, "created_at": at}}
        )
    answer = await api.as_service(
        "POST",
        "/directory/import",
        "directory:write",
        content="\n".join(map(json.dumps, lines)),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 200, answer.text


SCREENSHOTS = Path(os.environ.get("SCREENSHOTS") or Path(__file__).parents[2] / "screenshots")
"""The folder of screenshots."""


async def streams(page: Windows | Host, count: int) -> None:
    """Wait until the service has this number of streams."""
    service = (page if isinstance(page, Host) else page.host).service
    await reaches(lambda: service.app_state.streams.count, count)


async def live(windows: Windows) -> Window:
    window = await windows.new()
    await expect(window.bell).to_be_visible()
    await streams(windows, 1)
    return window


SUBSCRIBING = """
// Stands in for the browser's own push service, which is out on the internet: everything else is the browser's.
(() => {
  let current = null;
  window.subscribed = [];
  PushManager.prototype.getSubscription = async () => current;
  PushManager.prototype.subscribe = async ({ applicationServerKey }) => {
    const json = await (await fetch("/subscription")).json();
    subscribed.push(json.endpoint);
    current = {
      endpoint: json.endpoint, toJSON: () => json,
      options: { applicationServerKey: window.formerKey ?? applicationServerKey.buffer },
      unsubscribe: async () => { current = null; return true; },
    };
    return current;
  };
})();
"""


SWITCH = "Notify me in this browser"


async def browsers_of(api: Api, user: int = 1) -> int:
    devices = (await api.as_user(user, "GET", "/notifications/devices")).json()["data"]
    return len([device for device in devices if device["type"] == "Web"])


async def switched(window: Window, *, on: bool) -> None:
    """Switch pushes on or off, and wait until the service knows it."""
    switch = window.panel.get_by_role("switch", name=SWITCH)
    await switch.click()
    await reaches(lambda: browsers_of(window.host.service), int(on))
    await expect(switch).to_be_checked(checked=on)


async def opened_preferences(windows: Windows) -> Window:
    window = await windows.new()
    await window.open()
    await window.button("Preferences").click()
    await expect(window.panel.get_by_role("switch").first).to_be_visible()
    return window
