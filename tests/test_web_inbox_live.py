"""The web inbox as it goes on: what comes live, tabs that share a stream, tokens that end, networks that go."""

import asyncio
import re
from datetime import timedelta

import pytest
from playwright.async_api import expect

from host_page import STARTED, Host, Window, Windows, many, opened, tell, texts

pytestmark = pytest.mark.slow

SECOND_PAGE = re.compile(r"/notifications\?.*&page=2")


async def streams(page: Windows | Host, count: int) -> None:
    """Wait until the service has so many streams."""
    service = (page if isinstance(page, Host) else page.host).service
    for _ in range(200):
        if service.house.live.count == count:
            return
        await asyncio.sleep(0.05)
    assert service.house.live.count == count


async def live(windows: Windows) -> Window:
    window = await windows.new()
    await expect(window.bell).to_be_visible()
    await streams(windows, 1)
    return window


class TestArrival:
    async def test_the_badge_goes_with_what_comes(self, windows: Windows) -> None:
        window = await live(windows)
        await tell(windows.host.service, "One")
        await expect(window.badge).to_have_text("1")
        await tell(windows.host.service, "Two")
        await expect(window.badge).to_have_text("2")
        await expect(window.page.locator("tocsin-inbox [role=status]")).to_have_text("1 new notification")

    async def test_what_comes_while_nobody_reads_stands_on_top_at_once(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await tell(windows.host.service, "Two", "Three")
        await expect(window.rows).to_have_count(3)
        assert await texts(window) == ["Three", "Two", "One"]

    async def test_what_comes_while_one_is_down_the_list_waits_and_moves_nothing(self, windows: Windows) -> None:
        await many(windows.host.service, 20)
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(20)
        await window.row("Note 5").scroll_into_view_if_needed()
        before = await window.row("Note 5").bounding_box()
        await tell(windows.host.service, "Two", "Three", "Four")
        await expect(window.part("pill")).to_have_text("3 new")
        assert await window.row("Note 5").bounding_box() == before
        await window.part("pill").click()
        await expect(window.rows.first).to_contain_text("Four")
        assert "Four" in await window.focused()
        await expect(window.part("pill")).to_be_hidden()

    async def test_what_waits_is_there_when_the_panel_opens_again(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await window.rows.first.hover()
        await tell(windows.host.service, "Two")
        await expect(window.part("pill")).to_be_visible()
        await window.page.keyboard.press("Escape")
        await window.open()
        await expect(window.rows).to_have_count(2)
        await expect(window.part("pill")).to_be_hidden()

    async def test_what_is_done_elsewhere_shows_here(self, windows: Windows) -> None:
        api = windows.host.service
        ids = await tell(api, "One", "Two", "Three")
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

    async def test_where_there_is_no_stream_it_looks_now_and_then(self, windows: Windows) -> None:
        await windows.context.route(
            "**/notifications/stream",
            lambda route: route.fulfill(status=404, headers={"Access-Control-Allow-Origin": "*"}),
        )
        ids = await tell(windows.host.service, "One", "Two")
        window = await windows.new(go=False)
        await window.page.clock.install()
        await window.go()
        await window.open()
        await expect(window.rows).to_have_count(2)
        await tell(windows.host.service, "Three")
        await windows.host.service.as_user(1, "DELETE", f"/notifications/{ids[0]}")
        await window.page.clock.fast_forward(31_000)
        await expect(window.rows.first).to_contain_text("Three")
        assert await texts(window) == ["Three", "Two"]
        await expect(window.badge).to_have_text("2")


class TestTabs:
    async def test_tabs_of_one_user_share_one_stream_and_all_are_told(self, windows: Windows) -> None:
        one, two, three = [await windows.new() for _ in range(3)]
        await expect(three.bell).to_be_visible()
        await streams(windows, 1)
        await tell(windows.host.service, "One")
        for window in (one, two, three):
            await expect(window.badge).to_have_text("1")
        await asyncio.sleep(0.3)
        await streams(windows, 1)
        await two.open()
        await two.row("One").get_by_role("button", name="Mark as read").click()
        for window in (one, two, three):
            await expect(window.badge).to_be_hidden()

    async def test_when_the_tab_that_streams_closes_another_goes_on_and_nothing_is_lost(self, windows: Windows) -> None:
        one, two = await windows.new(), await windows.new()
        await expect(two.bell).to_be_visible()
        await streams(windows, 1)
        await two.open()
        await asyncio.sleep(0.3)
        await one.page.close()
        await tell(windows.host.service, "One", "Two")
        await expect(two.rows).to_have_count(2)
        await streams(windows, 1)

    async def test_a_tab_that_opens_later_knows_the_count_at_once(self, windows: Windows) -> None:
        await tell(windows.host.service, "One")
        await live(windows)
        two = await windows.new()
        await expect(two.badge).to_have_text("1")
        await streams(windows, 1)

    async def test_two_users_in_one_browser_never_share(self, windows: Windows) -> None:
        one = await windows.new()
        await expect(one.bell).to_be_visible()
        windows.host.user = 2
        two = await windows.new()
        await expect(two.bell).to_be_visible()
        await streams(windows, 2)
        await tell(windows.host.service, "For one")
        await expect(one.badge).to_have_text("1")
        await two.open()
        await expect(two.part("empty")).to_be_visible()
        await expect(two.badge).to_be_hidden()

    async def test_without_locks_each_tab_streams_by_itself(self, windows: Windows) -> None:
        await windows.context.add_init_script(
            "Object.defineProperty(Navigator.prototype, 'locks', { value: undefined })"
        )
        one, two = await windows.new(), await windows.new()
        await streams(windows, 2)
        await tell(windows.host.service, "One")
        for window in (one, two):
            await expect(window.badge).to_have_text("1")


class TestNetwork:
    async def test_it_says_that_it_is_offline_and_catches_up_afterwards(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await streams(windows, 1)
        await windows.context.set_offline(offline=True)
        await expect(window.part("notice")).to_have_text("You are offline. This is what was loaded.")
        await tell(windows.host.service, "Two")
        await windows.context.set_offline(offline=False)
        await expect(window.part("notice")).to_be_hidden()
        await expect(window.rows).to_have_count(2)

    async def test_what_is_done_offline_is_put_back_and_said(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await windows.context.set_offline(offline=True)
        await window.row("One").get_by_role("button", name="Mark as read").click()
        await expect(window.part("toast")).to_have_text("That could not be saved.")
        await expect(window.row("One")).to_have_class("row unread")
        await windows.context.set_offline(offline=False)

    async def test_a_service_that_fails_is_told_of_with_a_way_to_try_again(self, windows: Windows) -> None:
        await tell(windows.host.service, "One")
        await windows.context.route(
            "**/notifications?*", lambda route: route.fulfill(status=500, headers={"Access-Control-Allow-Origin": "*"})
        )
        window = await windows.new()
        await window.open()
        await expect(window.panel.get_by_role("alert")).to_have_text("Your notifications could not be loaded.")
        assert (await window.heard("tocsin-error"))[0]["status"] == 500
        await windows.context.unroute("**/notifications?*")
        await window.button("Try again").click()
        await expect(window.rows).to_have_count(1)

    async def test_a_page_that_could_not_be_loaded_is_tried_again_on_demand(self, windows: Windows) -> None:
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
    async def test_a_token_that_is_refused_is_asked_for_again(self, windows: Windows) -> None:
        host = windows.host
        host.lifetime = timedelta(seconds=-60)
        await tell(host.service, "One")
        window = await windows.new()
        await window.open()
        await expect(window.panel.get_by_role("alert")).to_contain_text("You are signed out.")
        assert host.tokens in {2, 3}  # once, and again for what was refused
        host.lifetime = timedelta(hours=1)
        await window.button("Try again").click()
        await expect(window.rows).to_have_count(1)
        await streams(windows, 1)
        await tell(host.service, "Two")
        await expect(window.badge).to_have_text("2")

    async def test_another_token_is_asked_for_shortly_before_it_expires(self, windows: Windows) -> None:
        host = windows.host
        host.lifetime = timedelta(seconds=33)
        window = await live(windows)
        assert host.tokens == 1
        host.lifetime = timedelta(hours=1)
        for _ in range(100):
            if host.tokens == 2:
                break
            await asyncio.sleep(0.1)
        assert host.tokens == 2
        await streams(windows, 1)
        await tell(host.service, "One")
        await expect(window.badge).to_have_text("1")
        assert await window.heard("tocsin-error") == []

    async def test_a_token_may_be_an_attribute_and_be_replaced(self, windows: Windows) -> None:
        host = windows.host
        host.script = STARTED
        host.lifetime = timedelta(seconds=-60)
        host.embed(f'token="{host.token()}"')
        await tell(host.service, "One")
        window = await windows.new()
        await window.open()
        await expect(window.panel.get_by_role("alert")).to_contain_text("You are signed out.")
        assert {event["status"] for event in await window.heard("tocsin-error")} == {401}
        host.lifetime = timedelta(hours=1)
        await window.page.evaluate("(token) => inbox.setAttribute('token', token)", host.token())
        await expect(window.rows).to_have_count(1)

    async def test_a_token_of_somebody_else_shows_nothing_of_the_former(self, windows: Windows) -> None:
        host = windows.host
        host.script = STARTED
        host.embed(f'token="{host.token(1)}"')
        await tell(host.service, "For one")
        await tell(host.service, "For two", "Too", user=2)
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(1)
        await window.page.evaluate("(token) => { inbox.token = token }", host.token(2))
        await expect(window.badge).to_have_text("2")
        await expect(window.rows).to_have_count(2)
        assert await texts(window) == ["Too", "For two"]
        await streams(windows, 1)

    async def test_without_a_token_nothing_is_asked(self, windows: Windows) -> None:
        windows.host.script = STARTED
        asked = []
        window = await windows.new(go=False)
        window.page.on("request", lambda request: asked.append(request.url))
        await window.go()
        await window.open()
        await window.page.wait_for_timeout(300)
        assert not [url for url in asked if "/notifications" in url]
