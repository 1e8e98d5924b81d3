"""Live updates of the web inbox: shared streams, expiring tokens, network outages."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright, expect

from tests.support.host_page import (
    ALLOWED,
    PROVIDED,
    STARTED,
    Host,
    Window,
    Windows,
    asked,
    browsing,
    live,
    many,
    notify,
    opened,
    settles,
    stop_clock,
    streams,
    texts,
    unread_of,
)
from tests.support.service import serving
from tests.support.waiting import reaches, until
from tocsin.catalogue import Catalogue

FAILING = """
let failures = 0;
inbox.tokenProvider = async () => {
  if (failures++ < FAILURES) throw new TypeError("Failed to fetch");
  return (await fetch("/token")).text();
};
"""

HANGING = """
window.hangs = true;
inbox.tokenProvider = async () => {
  if (window.hangs) await new Promise(() => {});
  return (await fetch("/token")).text();
};
"""

SECOND_PAGE = re.compile(r"/notifications\?.*&page=2")


async def comes(found: list[str], count: int) -> None:
    """Wait until this number of requests was sent."""
    await until(lambda: len(found) >= count)
    assert len(found) == count


async def _focuses(window: Window, text: str) -> None:
    """Wait until the focused part of the element has this text."""

    async def is_in() -> bool:
        return text in await window.focused()

    await until(is_in)


@asynccontextmanager
async def chromium_with(*args: str) -> AsyncIterator[Browser]:
    """A separate browser with further arguments."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", *args]
        )
        yield browser
        await browser.close()


class TestArrival:
    async def test_badge_follows_new_notifications(self, windows: Windows) -> None:
        window = await live(windows)
        await notify(windows.host.service, "One")
        await expect(window.badge).to_have_text("1")
        await notify(windows.host.service, "Two")
        await expect(window.badge).to_have_text("2")
        await expect(window.page.locator("tocsin-inbox [role=status]")).to_have_text("1 new notification")

    async def test_new_notification_is_on_top_if_the_list_is_idle(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await notify(windows.host.service, "Two", "Three")
        await expect(window.rows).to_have_count(3)
        assert await texts(window) == ["Three", "Two", "One"]

    async def test_new_notification_waits_while_the_list_is_scrolled(self, windows: Windows) -> None:
        await many(windows.host.service, 20)
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(20)
        await window.row("Note 5").scroll_into_view_if_needed()
        before = await window.row("Note 5").bounding_box()
        await notify(windows.host.service, "Two", "Three", "Four")
        await expect(window.part("pill")).to_have_text("3 new")
        assert await window.row("Note 5").bounding_box() == before
        await window.part("pill").click()
        await expect(window.rows.first).to_contain_text("Four")
        assert "Four" in await window.focused()
        await expect(window.part("pill")).to_be_hidden()

    async def test_waiting_notifications_appear_when_the_panel_reopens(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await window.rows.first.hover()
        await notify(windows.host.service, "Two")
        await expect(window.part("pill")).to_be_visible()
        await window.page.keyboard.press("Escape")
        await window.open()
        await expect(window.rows).to_have_count(2)
        await expect(window.part("pill")).to_be_hidden()

    async def test_changes_of_other_clients_are_shown(self, windows: Windows) -> None:
        api = windows.host.service
        ids = await notify(api, "One", "Two", "Three")
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(3)
        await streams(windows, 1)
        await api.as_user(1, "PUT", f"/notifications/{ids[0]}/read")
        await expect(window.badge).to_have_text("2")
        await expect(window.row("One")).not_to_have_class("row unread")
        await api.as_user(1, "PUT", f"/notifications/{ids[0]}/unread")
        await expect(window.row("One")).to_have_class("row unread")
        await api.as_user(1, "DELETE", f"/notifications/{ids[1]}")
        await expect(window.rows).to_have_count(2)
        await api.as_user(1, "PUT", "/notifications/read", json={"up_to": ids[0]})
        await expect(window.badge).to_have_text("1")
        await expect(window.row("Three")).to_have_class("row unread")
        await api.as_user(1, "PUT", "/notifications/read")
        await expect(window.badge).to_be_hidden()
        await expect(window.row("Three")).to_have_class("row")

    async def test_focus_moves_on_if_another_client_deletes_its_row(self, windows: Windows) -> None:
        api = windows.host.service
        ids = await notify(api, "One", "Two", "Three")
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(3)
        await streams(windows, 1)
        for key, expected in (("j", "Three"), ("j", "Two")):
            await window.page.keyboard.press(key)
            assert expected in await window.focused()
        for id_, expected in ((ids[1], "One"), (ids[0], "Three")):
            await api.as_user(1, "DELETE", f"/notifications/{id_}")
            await _focuses(window, expected)
        await api.as_user(1, "DELETE", f"/notifications/{ids[2]}")
        await expect(window.rows).to_have_count(0)
        await window.page.keyboard.press("Escape")
        await expect(window.panel).to_be_hidden()

    async def test_inbox_polls_without_a_stream(self, windows: Windows) -> None:
        await windows.context.route(
            "**/notifications/stream",
            lambda route: route.fulfill(status=404, headers={"Access-Control-Allow-Origin": "*"}),
        )
        ids = await notify(windows.host.service, "One", "Two")
        window = await windows.new(go=False)
        await window.page.clock.install()
        await window.go()
        await window.open()
        await expect(window.rows).to_have_count(2)
        await notify(windows.host.service, "Three")
        await windows.host.service.as_user(1, "DELETE", f"/notifications/{ids[0]}")
        await window.page.clock.fast_forward(31_000)
        await expect(window.rows.first).to_contain_text("Three")
        assert await texts(window) == ["Three", "Two"]
        await expect(window.badge).to_have_text("2")


class TestTabs:
    async def test_tabs_of_one_user_share_one_stream(self, windows: Windows) -> None:
        one, two, three = [await windows.new() for _ in range(3)]
        await expect(three.bell).to_be_visible()
        await streams(windows, 1)
        await notify(windows.host.service, "One")
        for window in (one, two, three):
            await expect(window.badge).to_have_text("1")
        assert windows.host.service.app_state.streams.count == 1
        await two.open()
        await two.row("One").get_by_role("button", name="Mark as read").click()
        for window in (one, two, three):
            await expect(window.badge).to_be_hidden()

    async def test_closing_the_streaming_tab_hands_over_without_loss(self, windows: Windows) -> None:
        one, two = await windows.new(), await windows.new()
        await expect(two.bell).to_be_visible()
        await streams(windows, 1)
        await two.open()
        await expect(two.part("empty")).to_be_visible()
        await one.page.close()
        await notify(windows.host.service, "One", "Two")
        await expect(two.rows).to_have_count(2)
        await streams(windows, 1)

    async def test_new_tab_knows_the_count_immediately(self, windows: Windows) -> None:
        await notify(windows.host.service, "One")
        await live(windows)
        two = await windows.new()
        await expect(two.badge).to_have_text("1")
        await streams(windows, 1)

    async def test_users_in_one_browser_never_share_a_stream(self, windows: Windows) -> None:
        one = await windows.new()
        await expect(one.bell).to_be_visible()
        windows.host.user = 2
        two = await windows.new()
        await expect(two.bell).to_be_visible()
        await streams(windows, 2)
        await notify(windows.host.service, "For one")
        await expect(one.badge).to_have_text("1")
        await two.open()
        await expect(two.part("empty")).to_be_visible()
        await expect(two.badge).to_be_hidden()

    @pytest.mark.browser
    async def test_tabs_share_one_stream_over_plain_http(self, url: str, leading: Catalogue, host: Host) -> None:
        """A browser has six connections to an origin, and over plain http no locks."""
        port = host.origin.rpartition(":")[2]
        host.origin = f"http://crm.test:{port}"
        async with (
            serving(url, leading, cors_origins=(host.origin,)) as api,
            chromium_with("--host-resolver-rules=MAP *.test 127.0.0.1") as chromium,
            browsing(chromium, host) as windows,
        ):
            host.serves(api)
            host.api = host.api.replace("127.0.0.1", "notify.test")
            host.embed()
            await notify(api, "One")
            tabs = [await windows.new() for _ in range(9)]
            assert not await tabs[0].page.evaluate("() => isSecureContext")
            for tab in tabs:
                await expect(tab.badge).to_have_text("1")
            await streams(host, 1)
            await notify(api, "Two")
            for tab in tabs:
                await expect(tab.badge).to_have_text("2")
            leaders = list(tabs)
            await leaders[0].page.close()
            await streams(host, 1)
            await notify(api, "Three")
            for tab in tabs[1:]:
                await expect(tab.badge).to_have_text("3")
            await streams(host, 1)


WITHOUT_LISTS = """
window.failing = true;
const ask = window.fetch;
window.fetch = async (url, ...more) =>
  window.failing && /\\/notifications\\?/.test(url) ? new Response("", { status: 500 }) : ask(url, ...more);
"""
"""Lets the service fail to list notifications as long as `failing` is set."""


class TestNetwork:
    async def test_offline_state_is_shown_and_inbox_catches_up(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await streams(windows, 1)
        await windows.context.set_offline(offline=True)
        await expect(window.part("notice")).to_have_text("You are offline. This is what was loaded.")
        await notify(windows.host.service, "Two")
        await windows.context.set_offline(offline=False)
        await expect(window.part("notice")).to_be_hidden()
        await expect(window.rows).to_have_count(2)

    async def test_offline_actions_are_stored_and_sent_later(self, windows: Windows) -> None:
        api = windows.host.service
        ids = await notify(api, "One", "Two", "Three")
        await api.as_user(1, "PUT", f"/notifications/{ids[2]}/read")
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(3)
        await streams(windows, 1)
        await windows.context.set_offline(offline=True)
        await window.row("One").get_by_role("button", name="Mark as read").click()
        await expect(window.part("toast")).to_have_text("Saved on this device. It is sent when you are online.")
        await window.row("Three").hover()
        await window.row("Three").get_by_role("button", name="Mark as unread").click()
        await window.row("Two").hover()
        await window.row("Two").get_by_role("button", name="Delete").click()
        await window.page.keyboard.press("Escape")
        await expect(window.badge).to_have_text("1")
        await windows.context.set_offline(offline=False)
        await settles(api, "Three")
        await expect(window.badge).to_have_text("1")
        await window.open()
        await expect(window.rows).to_have_count(2)
        assert await texts(window) == ["Three", "One"]

    async def test_offline_mark_all_as_read_is_stored(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two")
        await streams(windows, 1)
        await windows.context.set_offline(offline=True)
        await window.button("Mark all as read").click()
        await window.page.keyboard.press("Escape")
        await windows.context.set_offline(offline=False)
        await settles(windows.host.service)

    async def test_unsent_actions_survive_a_reload(self, windows: Windows) -> None:
        ids = await notify(windows.host.service, "One", "Two")
        window = await windows.new()
        await window.open()
        await windows.context.route("**/notifications/*/read", lambda route: route.abort())
        await window.row("One").get_by_role("button", name="Mark as read").click()
        await expect(window.part("toast")).to_contain_text("Saved on this device.")
        assert ids[0] in str(await window.page.evaluate("() => JSON.stringify(localStorage)"))
        await window.go("/plain")
        await windows.context.unroute("**/notifications/*/read")
        assert await unread_of(windows.host.service) == ["Two", "One"]
        await window.go()
        await settles(windows.host.service, "Two")
        await expect(window.badge).to_have_text("1")
        assert ids[0] not in str(await window.page.evaluate("() => JSON.stringify(localStorage)"))

    async def test_rejected_actions_are_not_stored(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        refusal = {"errors": [{"message": "No.", "code": "unavailable"}]}
        await windows.context.route(
            "**/notifications/*/read", lambda route: route.fulfill(status=503, json=refusal, headers=ALLOWED)
        )
        await window.row("One").get_by_role("button", name="Mark as read").click()
        await expect(window.part("toast")).to_have_text("That could not be saved.")
        await expect(window.row("One")).to_have_class("row unread")
        assert await window.page.evaluate("() => localStorage.length") == 0

    @pytest.mark.parametrize("hangs", ["list", "token"])
    async def test_hanging_request_times_out_with_retry_button(self, windows: Windows, hangs: str) -> None:
        await notify(windows.host.service, "One")
        if hangs == "token":
            windows.host.script = STARTED + HANGING
        else:
            await windows.context.route("**/notifications?*", lambda _: None)
        window = await windows.new(go=False)
        await window.page.clock.install()
        await window.go()
        await window.open()
        await expect(window.panel.get_by_role("paragraph").filter(has_text="Loading…")).to_be_visible()
        await window.page.clock.fast_forward(21_000)
        await expect(window.panel.get_by_role("alert")).to_have_text(re.compile("can.t be reached"))
        await window.page.clock.pause_at(await window.page.evaluate("Date.now() + 50"))  # it would try by itself
        await windows.context.unroute("**/notifications?*")
        await window.page.evaluate("() => { window.hangs = false }")
        await window.button("Try again").click()
        await window.page.clock.resume()
        await expect(window.rows).to_have_count(1)
        await streams(windows, 1)

    async def test_stalled_response_times_out(self, windows: Windows) -> None:
        async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            allowed = b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: Authorization\r\n"
            with suppress(asyncio.IncompleteReadError):
                while request := await reader.readuntil(b"\r\n\r\n"):
                    if request.startswith(b"OPTIONS"):
                        writer.write(b"HTTP/1.1 204 No Content\r\n" + allowed + b"\r\n")
                    else:
                        writer.write(b"HTTP/1.1 200 OK\r\n" + allowed + b"Content-Length: 5000\r\n\r\n{")
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(half, "127.0.0.1", 0)
        async with server:
            windows.host.api = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            windows.host.script = STARTED + PROVIDED
            api = str(windows.host.service.http.base_url).rstrip("/")
            windows.host.strict = False
            windows.host.embed()
            windows.host.api = api
            window = await windows.new(go=False)
            await window.page.clock.install()
            await window.go()
            await window.open()
            await expect(window.panel.get_by_role("paragraph").filter(has_text="Loading…")).to_be_visible()
            for _ in range(3):
                await window.page.clock.fast_forward(21_000)
            await expect(window.panel.get_by_role("alert")).to_have_text(re.compile("can.t be reached"))

    async def test_error_toast_is_shown_for_six_seconds(self, windows: Windows) -> None:
        await windows.context.route("**/notifications/*/read", lambda route: route.fulfill(status=503, headers=ALLOWED))
        window = await opened(windows, "One", "Two")
        await stop_clock(window.page)
        for message in ("One", "Two"):
            await window.row(message).hover()
            await window.row(message).get_by_role("button", name="Mark as read").click()
            await expect(window.part("toast")).to_be_visible()
            await expect(window.row(message)).to_have_class("row unread")
            await window.page.clock.fast_forward(4_500)
        await expect(window.part("toast")).to_be_visible()
        await window.page.clock.fast_forward(2_000)
        await expect(window.part("toast")).to_be_hidden()

    async def test_stream_reconnects_after_retry_time_with_jitter(self, windows: Windows) -> None:
        ends = "retry: 100000\n\n"
        await windows.context.route(
            "**/notifications/stream",
            lambda route: route.fulfill(body=ends, content_type="text/event-stream", headers=ALLOWED),
        )
        begun = asked(windows, "GET " + windows.host.api + "/notifications/stream")
        window = await windows.new(go=False)
        await window.page.clock.install()
        await window.page.add_init_script("Math.random = () => window.chance ?? 0")
        await window.go()
        await comes(begun, 1)
        await window.page.evaluate("() => { window.chance = 0.9 }")
        await window.page.clock.fast_forward(12_000)
        await comes(begun, 2)
        await window.page.clock.fast_forward(60_000)
        await window.page.evaluate("() => fetch('/plain')")  # which comes after what the time brought
        assert len(begun) == 2
        await window.page.clock.fast_forward(60_000)
        await comes(begun, 3)

    async def test_service_error_is_shown_with_retry_button(self, windows: Windows) -> None:
        await notify(windows.host.service, "One")
        await windows.context.add_init_script(WITHOUT_LISTS)
        window = await windows.new()
        await window.open()
        await expect(window.panel.get_by_role("alert")).to_have_text("Your notifications could not be loaded.")
        assert (await window.heard("tocsin-error"))[0]["status"] == 500
        # both at once, because the element tries again by itself
        await window.button("Try again").evaluate("(button) => { window.failing = false; button.click(); }")
        await expect(window.rows).to_have_count(1)

    async def test_failed_page_load_can_be_retried(self, windows: Windows) -> None:
        await many(windows.host.service, 25)
        await windows.context.route(SECOND_PAGE, lambda route: route.abort())
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(20)
        await window.rows.last.scroll_into_view_if_needed()
        await expect(window.part("toast")).to_have_text("More could not be loaded.")
        await windows.context.unroute(SECOND_PAGE)
        await window.button("Show more").click()
        await expect(window.rows).to_have_count(25)


class TestTokens:
    async def test_rejected_token_is_requested_again(self, windows: Windows) -> None:
        host = windows.host
        host.lifetime = timedelta(seconds=-60)
        await notify(host.service, "One")
        window = await windows.new()
        await window.open()
        await expect(window.panel.get_by_role("alert")).to_contain_text("You are signed out.")
        assert host.tokens in {2, 3, 4}  # the first request, and one for each rejected call
        host.lifetime = timedelta(hours=1)
        await window.button("Try again").click()
        await expect(window.rows).to_have_count(1)
        await streams(windows, 1)
        await notify(host.service, "Two")
        await expect(window.badge).to_have_text("2")

    async def test_token_is_renewed_shortly_before_it_expires(self, windows: Windows) -> None:
        host = windows.host
        host.lifetime = timedelta(seconds=66)
        window = await windows.new(go=False)
        await window.page.clock.install()
        await window.go()
        await streams(windows, 1)
        assert host.tokens == 1
        host.lifetime = timedelta(hours=1)
        await window.page.clock.fast_forward(37_000)  # less than the 40 s of silence that end a stream
        await reaches(lambda: host.tokens, 2)
        await streams(windows, 1)
        await notify(host.service, "One")
        await expect(window.badge).to_have_text("1")
        assert await window.heard("tocsin-error") == []

    async def test_token_attribute_can_be_replaced(self, windows: Windows) -> None:
        host = windows.host
        host.script = STARTED
        host.lifetime = timedelta(seconds=-60)
        host.embed(f'token="{host.token()}"')
        await notify(host.service, "One")
        window = await windows.new()
        await window.open()
        await expect(window.panel.get_by_role("alert")).to_contain_text("You are signed out.")
        assert {event["status"] for event in await window.heard("tocsin-error")} == {401}
        host.lifetime = timedelta(hours=1)
        await window.page.evaluate("(token) => inbox.setAttribute('token', token)", host.token())
        await expect(window.rows).to_have_count(1)

    async def test_token_of_another_user_clears_the_previous_inbox(self, windows: Windows) -> None:
        host = windows.host
        host.script = STARTED
        host.embed(f'token="{host.token(1)}"')
        await notify(host.service, "For one")
        await notify(host.service, "For two", "Too", user=2)
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(1)
        await window.page.evaluate("(token) => { inbox.token = token }", host.token(2))
        await expect(window.badge).to_have_text("2")
        await expect(window.rows).to_have_count(2)
        assert await texts(window) == ["Too", "For two"]
        await streams(windows, 1)

    async def test_missing_token_sends_no_request_and_fires_error(self, windows: Windows) -> None:
        windows.host.script = STARTED
        requests = asked(windows, "/notifications")
        window = await windows.new(go=False)
        warnings: list[str] = []
        window.page.on("console", lambda message: warnings.append(message.text))
        await window.page.clock.install()
        await window.go()
        await window.open()
        await window.page.clock.fast_forward(6_000)
        await expect(window.panel.get_by_role("alert")).to_contain_text("You are signed out.")
        await window.page.clock.fast_forward(60_000)
        assert warnings == ["<tocsin-inbox> needs src, and token or tokenProvider."]
        assert [(event["status"], event["code"]) for event in await window.heard("tocsin-error")] == [(401, "token")]
        assert requests == []
        await notify(windows.host.service, "One")
        await window.page.evaluate("(token) => { inbox.token = token }", windows.host.token())
        await expect(window.rows).to_have_count(1)

    @pytest.mark.parametrize("failures", [1, 3])
    async def test_failing_token_callback_is_retried(self, windows: Windows, failures: int) -> None:
        windows.host.script = STARTED + FAILING.replace("FAILURES", str(failures))
        await notify(windows.host.service, "One")
        window = await windows.new(go=False)
        await window.page.clock.install()
        await window.go()
        for _ in range(failures):
            await window.page.clock.fast_forward(31_000)
        await expect(window.badge).to_have_text("1")
        await streams(windows, 1)
        await notify(windows.host.service, "Two")
        await expect(window.badge).to_have_text("2")
        assert {(event["status"], event["code"]) for event in await window.heard("tocsin-error")} == {(0, "token")}

    async def test_token_callback_is_retried_when_the_network_returns(self, windows: Windows) -> None:
        windows.host.script = STARTED + FAILING.replace("FAILURES", "2")
        await notify(windows.host.service, "One")
        window = await windows.new()
        for _ in range(2):
            await window.page.evaluate("() => dispatchEvent(new Event('online'))")
        await expect(window.badge).to_have_text("1")
        await streams(windows, 1)

    @pytest.mark.parametrize("given", ["<!doctype html><title>Sign in</title>", "", None, "e30.e30", 7])
    async def test_token_callback_without_token_means_signed_out(self, windows: Windows, given: Any) -> None:
        provider = (
            f"inbox.tokenProvider = async () => window.signedIn ? (await fetch('/token')).text() : {json.dumps(given)};"
        )
        windows.host.script = STARTED + provider
        await notify(windows.host.service, "One")
        window = await windows.new()
        await window.open()
        await expect(window.panel.get_by_role("alert")).to_contain_text("You are signed out.")
        assert {(event["status"], event["code"]) for event in await window.heard("tocsin-error")} == {(401, "token")}
        await window.page.evaluate(
            "() => { window.signedIn = true; document.dispatchEvent(new Event('visibilitychange')) }"
        )
        await expect(window.rows).to_have_count(1)
        await streams(windows, 1)
        await notify(windows.host.service, "Two")
        await expect(window.badge).to_have_text("2")

    async def test_session_that_ends_is_shown_above_the_list(self, windows: Windows) -> None:
        host = windows.host
        host.lifetime = timedelta(seconds=66)
        provider = "inbox.tokenProvider = async () => window.out ? '<!doctype html>' : (await fetch('/token')).text();"
        host.script = STARTED + provider
        await notify(host.service, "One")
        window = await windows.new(go=False)
        await window.page.clock.install()
        await window.go()
        await window.open()
        await expect(window.rows).to_have_count(1)
        await streams(windows, 1)
        await window.page.evaluate("() => { window.out = true }")
        await window.page.clock.fast_forward(37_000)
        await expect(window.part("notice")).to_contain_text("You are signed out.")
        await expect(window.rows).to_have_count(1)
        await notify(host.service, "Two")
        host.lifetime = timedelta(hours=1)
        await window.page.evaluate(
            "() => { window.out = false; document.dispatchEvent(new Event('visibilitychange')) }"
        )
        await expect(window.rows).to_have_count(2)
        await expect(window.part("notice")).to_be_hidden()

    async def test_rejected_session_resumes_when_the_page_is_visible(self, windows: Windows) -> None:
        host = windows.host
        host.lifetime = timedelta(seconds=-60)
        window = await windows.new()
        await until(lambda: window.heard("tocsin-error"))
        host.lifetime = timedelta(hours=1)
        await window.page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
        await streams(windows, 1)
        await notify(host.service, "One")
        await expect(window.badge).to_have_text("1")
