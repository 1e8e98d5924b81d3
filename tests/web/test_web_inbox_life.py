"""Page lifecycle of the web inbox: frozen tabs, the back-forward cache, the app badge."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, CDPSession, async_playwright, expect

from tests.support.host_page import (
    SUBSCRIBING,
    Host,
    Windows,
    browsing,
    live,
    notify,
    opened_preferences,
    streams,
    switched,
)
from tests.support.waiting import LONGEST_WAIT, reaches

BADGES = "window.badges = []; Navigator.prototype.setAppBadge = async (count) => { badges.push(count); };"


class Tab:
    """A tab controlled by DevTools: Playwright keeps its own tabs visible, so that they cannot be frozen."""

    def __init__(self, browser: CDPSession) -> None:
        self.browser = browser
        self.answers: dict[int, asyncio.Future[Any]] = {}

    async def open(self, context: str, url: str) -> "Tab":
        target = await self.browser.send("Target.createTarget", {"url": url, "browserContextId": context})
        attached = await self.browser.send("Target.attachToTarget", {"targetId": target["targetId"], "flatten": False})
        self.session = attached["sessionId"]
        self.browser.on("Target.receivedMessageFromTarget", self._received)
        return self

    def _received(self, event: dict[str, Any]) -> None:
        answer = json.loads(event["message"])
        if event["sessionId"] == self.session and (waiting := self.answers.pop(answer.get("id"), None)):
            waiting.set_result(answer)

    async def send(self, method: str, **values: Any) -> Any:
        return (await self._answer_to(method, values))["result"]

    async def _answer_to(self, method: str, values: dict[str, Any]) -> Any:
        number = id(answer := asyncio.get_running_loop().create_future()) % 2**31
        self.answers[number] = answer
        message = json.dumps({"id": number, "method": method, "params": values})
        await self.browser.send("Target.sendMessageToTarget", {"sessionId": self.session, "message": message})
        return await asyncio.wait_for(answer, LONGEST_WAIT)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression; None while another page is being loaded, which ends the evaluation."""
        answer = await self._answer_to("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        return answer["result"]["result"].get("value") if "result" in answer else None

    async def becomes_unread(self, count: int) -> None:
        await reaches(lambda: self.evaluate('document.querySelector("tocsin-inbox")?.unread'), count)


@asynccontextmanager
async def profile(chromium: Browser) -> AsyncIterator[tuple[CDPSession, str]]:
    session = await chromium.new_browser_cdp_session()
    context = (await session.send("Target.createBrowserContext"))["browserContextId"]
    try:
        yield session, context
    finally:
        await session.send("Target.disposeBrowserContext", {"browserContextId": context})
        await session.detach()


async def test_frozen_tab_hands_over_the_stream_and_catches_up(host: Host, chromium: Browser) -> None:
    async with profile(chromium) as (browser, context):
        one = await Tab(browser).open(context, host.origin)
        await one.becomes_unread(0)
        await streams(host, 1)
        await one.evaluate('window.life = []; document.addEventListener("freeze", () => life.push("frozen"))')
        two = await Tab(browser).open(context, host.origin)
        await two.becomes_unread(0)
        await one.send("Page.setWebLifecycleState", state="frozen")
        assert await one.evaluate("life.join()") == "frozen"
        await notify(host.service, "One")
        await two.becomes_unread(1)
        assert await one.evaluate("inbox.unread") == 0
        await one.send("Page.setWebLifecycleState", state="active")
        await one.becomes_unread(1)
        await notify(host.service, "Two")
        for tab in (one, two):
            await tab.becomes_unread(2)
        await streams(host, 1)


@pytest.mark.browser
@pytest.mark.parametrize("cached", [True, False])
async def test_page_restored_from_history_catches_up(host: Host, *, cached: bool) -> None:
    host.cache = "no-cache" if cached else "no-store"
    async with caching() as chromium, profile(chromium) as (browser, context):
        tab = await Tab(browser).open(context, host.origin)
        await tab.becomes_unread(0)
        await streams(host, 1)
        await tab.evaluate('window.left = true; addEventListener("pageshow", (event) => { left = event.persisted })')
        await tab.send("Page.enable")
        history = await tab.send("Page.getNavigationHistory")
        await tab.send("Page.navigate", url=f"{host.origin}/plain")
        await streams(host, 0)
        await notify(host.service, "One")
        [entry] = [entry["id"] for entry in history["entries"] if entry["url"] == f"{host.origin}/"]
        await tab.send("Page.navigateToHistoryEntry", entryId=entry)
        await tab.becomes_unread(1)
        assert await tab.evaluate("window.left === true") == cached
        await streams(host, 1)
        await notify(host.service, "Two")
        await tab.becomes_unread(2)


@asynccontextmanager
async def caching() -> AsyncIterator[Browser]:
    """A browser with the back-forward cache, which Playwright disables."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield browser
        await browser.close()


class TestAppBadge:
    async def test_app_badge_follows_the_count_if_push_is_enabled(self, pushed: Host, chromium: Browser) -> None:
        async with browsing(chromium, pushed, permissions=["notifications"]) as windows:
            await windows.context.add_init_script(SUBSCRIBING + BADGES)
            window = await opened_preferences(windows)
            await switched(window, on=True)
            [id_] = await notify(pushed.service, "One")
            await expect(window.badge).to_have_text("1")
            assert await window.page.evaluate("() => badges") == [1]
            await pushed.service.as_user(1, "PUT", f"/notifications/{id_}/read")
            await expect(window.badge).to_be_hidden()
            assert await window.page.evaluate("() => badges") == [1, 0]

    async def test_app_badge_is_untouched_without_push(self, windows: Windows) -> None:
        await windows.context.add_init_script(BADGES)
        window = await live(windows)
        await notify(windows.host.service, "One")
        await expect(window.badge).to_have_text("1")
        assert await window.page.evaluate("() => badges") == []
