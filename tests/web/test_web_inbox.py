"""The web inbox in a browser, in a page of another origin with a strict policy."""

import asyncio
import re

import pytest
from playwright.async_api import Route, expect

from tests.support.host_page import (
    ALLOWED,
    PIXEL,
    Window,
    Windows,
    asked,
    imported,
    many,
    notify,
    opened,
    settles,
    stop_clock,
    texts,
    unread_of,
)
from tests.support.waiting import reaches
from tocsin.catalogue import Catalogue


class TestButton:
    async def test_badge_shows_unread_count_and_fires_event(self, windows: Windows) -> None:
        await notify(windows.host.service, "One", "Two")
        window = await windows.new()
        await expect(window.badge).to_have_text("2")
        await expect(window.bell).to_have_attribute("aria-label", "Notifications, 2 unread")
        assert [event["unread"] for event in await window.heard("tocsin-count")] == [2]

    async def test_badge_shows_99_plus(self, windows: Windows) -> None:
        await many(windows.host.service, 101)
        window = await windows.new()
        await expect(window.badge).to_have_text("99+")

    async def test_badge_is_hidden_without_unread_notifications(self, windows: Windows) -> None:
        window = await windows.new()
        await reaches(lambda: window.page.evaluate("() => inbox.unread"), 0)
        await expect(window.badge).to_be_hidden()

    async def test_click_opens_panel_and_click_outside_closes_it(self, windows: Windows) -> None:
        window = await windows.new()
        await expect(window.bell).to_have_attribute("aria-expanded", "false")
        await window.open()
        await expect(window.bell).to_have_attribute("aria-expanded", "true")
        await window.bell.click()
        await expect(window.panel).to_be_hidden()
        await window.open()
        await window.page.get_by_role("heading", name="Host").click()
        await expect(window.panel).to_be_hidden()

    async def test_escape_closes_panel_and_restores_focus(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await window.page.keyboard.press("ArrowDown")
        await window.page.keyboard.press("Escape")
        await expect(window.panel).to_be_hidden()
        assert (await window.focused()).startswith("Notifications")

    async def test_panel_closes_when_focus_moves_to_the_page(self, windows: Windows) -> None:
        windows.host.body += '<a href="/plain">after</a>'
        window = await opened(windows, "One")
        for _ in range(12):
            await window.page.keyboard.press("Tab")
            if await window.page.get_by_role("link", name="after").evaluate(
                "(link) => link === document.activeElement"
            ):
                break
        else:
            raise AssertionError("the focus never came out")
        await expect(window.panel).to_be_hidden()

    async def test_panel_closes_when_focus_leaves_the_document(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        for _ in range(12):
            await window.page.keyboard.press("Tab")
            if not await window.focused():
                break
        await expect(window.panel).to_be_hidden()

    async def test_escape_closes_panel_without_focus_inside(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await window.page.evaluate("() => inbox.shadowRoot.activeElement.blur()")
        await expect(window.panel).to_be_visible()
        await window.page.keyboard.press("Escape")
        await expect(window.panel).to_be_hidden()
        assert (await window.focused()).startswith("Notifications")

    async def test_panel_follows_the_button_while_scrolling(self, windows: Windows) -> None:
        windows.host.style = "#box { height: 300px; overflow: auto } #box header { padding: 200px 0 600px }"
        windows.host.embed(around='<div id="box" tabindex="0"><header>{}</header></div>')
        window = await opened(windows, "One")
        await window.page.evaluate("() => { window.box = document.getElementById('box') }")
        gaps = []
        for scrolled in (0, 120):
            await window.page.evaluate("(to) => { box.scrollTop = to }", scrolled)
            await window.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
            bell, panel = await window.bell.bounding_box(), await window.panel.bounding_box()
            assert bell
            assert panel
            gaps.append(panel["y"] - bell["y"])
        assert gaps[0] == gaps[1]

    async def test_page_can_open_and_close_the_panel(self, windows: Windows) -> None:
        window = await windows.new()
        await expect(window.bell).to_be_visible()
        await window.page.evaluate("() => { inbox.open = true }")
        await expect(window.panel).to_be_visible()
        assert await window.page.evaluate("() => inbox.open")
        await window.page.evaluate("() => { inbox.open = false }")
        await expect(window.panel).to_be_hidden()

    @pytest.mark.parametrize("width", [360, 900])
    async def test_panel_stays_inside_the_window(self, windows: Windows, width: int) -> None:
        for side in ("start", "end"):
            windows.host.embed(around=f'<div id="{side}">{{}}</div>')
            window = await windows.new()
            await window.page.set_viewport_size({"width": width, "height": 640})
            await window.open()
            box = await window.panel.bounding_box()
            assert box
            assert box["x"] >= 0
            assert box["y"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= 640
            assert await window.page.evaluate("() => document.documentElement.scrollWidth") <= width


class TestList:
    async def test_notifications_are_grouped_by_day_newest_first(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two", "Three")
        assert await texts(window) == ["Three", "Two", "One"]
        await expect(window.panel.get_by_role("heading", level=3)).to_have_text(["Today"])
        await expect(window.rows.locator("time").first).to_have_text("now")

    async def test_older_notifications_are_under_yesterday_and_dates(self, windows: Windows) -> None:
        api = windows.host.service
        await imported(api, {"Old": 400, "Day": 3, "Eve": 1})
        await notify(api, "New")
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(4)
        headings = await window.panel.get_by_role("heading", level=3).all_inner_texts()
        assert headings[:2] == ["Today", "Yesterday"]
        assert re.fullmatch(r"\w+day, \w+ \d+", headings[2])
        assert re.fullmatch(r"\w+day, \w+ \d+, \d{4}", headings[3])
        await expect(window.row("Eve").locator("time")).to_have_text(re.compile(r"\d+:\d\d"))

    async def test_relative_times_are_updated(self, windows: Windows) -> None:
        await notify(windows.host.service, "One")
        window = await windows.new(go=False)
        await window.page.clock.install()
        await window.go()
        await window.open()
        await expect(window.rows.locator("time")).to_have_text("now")
        await window.page.clock.fast_forward("05:00")
        await expect(window.rows.locator("time")).to_have_text("5 min. ago")
        await window.page.clock.fast_forward("25:00:00")
        await expect(window.panel.get_by_role("heading", level=3).first).not_to_have_text("Today")

    async def test_avatars_show_initials_or_https_pictures(self, windows: Windows, catalogue: Catalogue) -> None:
        await windows.context.route(
            "https://pictures.example/**", lambda route: route.fulfill(body=PIXEL, content_type="image/png")
        )
        await windows.context.route("https://broken.example/**", lambda route: route.fulfill(status=404))
        pictures = [
            "http://pictures.example/a.png",
            "https://pictures.example/a.png",
            "https://broken.example/a.png",
            "javascript:alert(1)",
        ]
        note = catalogue.samples["note"]["event"]
        for at, picture in enumerate(pictures):
            user = {"id": 4, "first_name": f"{'ABCD'[at]}da", "last_name": "Xu", "profile_picture": picture}
            await windows.host.service.post({**note, "notify": {"users": [1]}, "data": {**note["data"], "user": user}})
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(4)
        await expect(window.part("avatar")).to_have_text(["DX", "CX", "", "AX"])
        await expect(window.page.locator("tocsin-inbox img")).to_have_count(1)
        assert await window.page.locator("tocsin-inbox img").evaluate("(img) => img.naturalWidth") == 1

    async def test_message_keeps_emphasis_and_quote(self, windows: Windows, catalogue: Catalogue) -> None:
        await windows.host.service.post({**catalogue.samples["note"]["event"], "notify": {"users": [1]}})
        window = await windows.new()
        await window.open()
        await expect(window.rows.locator("strong")).to_have_text(["Bernita Kilback", "note", "Jane Doe's"])
        await expect(window.rows.locator("em")).to_have_text("Hey John, please have a look!")

    async def test_scrolling_loads_more_without_duplicates(self, windows: Windows) -> None:
        await many(windows.host.service, 65)
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(20)
        for count in (40, 60, 65):
            await window.rows.last.scroll_into_view_if_needed()
            await expect(window.rows).to_have_count(count)
        assert await texts(window) == [f"Note {at}" for at in range(64, -1, -1)]

    @pytest.mark.parametrize("attributes", ["", 'mode="page"'])
    async def test_more_is_loaded_while_the_end_is_visible(self, windows: Windows, attributes: str) -> None:
        await many(windows.host.service, 45)
        windows.host.embed(attributes)
        windows.host.style = "tocsin-inbox { --tocsin-height: 9000px }"
        window = await windows.new(go=False)
        await window.page.set_viewport_size({"width": 900, "height": 9000})
        await window.go()
        if not attributes:
            await window.open()
        await expect(window.rows).to_have_count(45)

    async def test_page_mode_keeps_content_after_the_list_reachable(self, windows: Windows) -> None:
        await many(windows.host.service, 130)
        windows.host.embed('mode="page"')
        windows.host.body += "<footer>Imprint</footer>"
        further = asked(windows, "&page=")
        window = await windows.new()
        for count in (20, 40, 60, 80, 100):
            await expect(window.rows).to_have_count(count)
            await window.page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
        await expect(window.page.get_by_text("Imprint")).to_be_in_viewport()
        await window.page.evaluate("() => new Promise((done) => requestIdleCallback(done))")
        await expect(window.button("Show more")).to_be_visible()
        assert len(further) == 4
        await window.button("Show more").click()
        await expect(window.rows).to_have_count(120)

    async def test_keyboard_loads_more(self, windows: Windows) -> None:
        await many(windows.host.service, 25)
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(20)
        await window.page.keyboard.press("ArrowDown")
        await window.page.keyboard.press("End")
        await expect(window.rows).to_have_count(25)
        await window.page.keyboard.press("End")
        assert "Note 0" in await window.focused()

    async def test_row_links_to_the_url_of_its_kind(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await expect(window.panel.get_by_role("link")).to_have_attribute("href", "https://crm.example.com/n/One")

    async def test_click_fires_event_follows_link_and_marks_read(self, windows: Windows) -> None:
        await windows.context.route(
            "https://crm.example.com/**", lambda route: route.fulfill(body="there", content_type="text/html")
        )
        window = await opened(windows, "One", "Two")
        await window.row("One").locator(".main").click()
        await window.page.wait_for_url("https://crm.example.com/n/*")
        await settles(windows.host.service, "Two")

    async def test_list_renders_before_links_and_early_clicks_work(self, windows: Windows) -> None:
        asked, known = asyncio.Event(), asyncio.Event()

        async def slow(route: Route) -> None:
            asked.set()
            await known.wait()
            await route.continue_()

        await windows.context.route("**/notifications/links?*", slow)
        await windows.context.route(
            "https://crm.example.com/**", lambda route: route.fulfill(body="there", content_type="text/html")
        )
        window = await opened(windows, "One")
        await asked.wait()
        await window.row("One").locator(".main").click()
        await settles(windows.host.service)
        assert window.page.url == windows.host.origin + "/"
        known.set()
        await window.page.wait_for_url("https://crm.example.com/n/One")

    async def test_links_are_fetched_once_for_all_rows(self, windows: Windows) -> None:
        tabs = [await windows.new() for _ in range(3)]
        looked = asked(windows, "/links?")
        for tab in tabs:
            await expect(tab.bell).to_be_visible()
        await many(windows.host.service, 20)
        for tab in tabs:
            await expect(tab.badge).to_have_text("20")
        assert looked == []
        await tabs[0].open()
        await expect(tabs[0].panel.get_by_role("link")).to_have_count(20)
        assert len(looked) == 1

    async def test_new_notification_is_shown_before_its_link_is_loaded(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await expect(window.panel.get_by_role("link")).to_have_count(1)
        looking = asyncio.Event()

        async def never(_: Route) -> None:
            looking.set()

        await windows.context.route("**/notifications/links?*", never)
        await stop_clock(window.page)  # nothing pending continues
        await notify(windows.host.service, "Two")
        await expect(window.rows).to_have_count(2)
        await window.page.clock.resume()
        await looking.wait()
        await expect(window.panel.get_by_role("link")).to_have_count(1)

    async def test_page_can_prevent_navigation(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        [id_] = await windows.host.service.ids(1)
        await window.page.evaluate("() => { window.prevents = true }")
        await window.row("One").locator(".main").click()
        await expect(window.panel).to_be_hidden()
        [event] = await window.heard("tocsin-open")
        assert (event["link"], event["id"]) == ("https://crm.example.com/n/One", id_)
        assert window.page.url == windows.host.origin + "/"
        await settles(windows.host.service)

    async def test_modifier_click_opens_tab_and_marks_read(self, windows: Windows) -> None:
        await windows.context.route(
            "https://crm.example.com/**", lambda route: route.fulfill(body="there", content_type="text/html")
        )
        window = await opened(windows, "One")
        await expect(window.panel.get_by_role("link")).to_have_count(1)
        async with windows.context.expect_page():
            await window.row("One").locator(".main").click(modifiers=["Control"])
        await settles(windows.host.service)
        await expect(window.panel).to_be_visible()


class TestChanges:
    async def test_mouse_marks_read_and_unread(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two")
        await window.row("One").get_by_role("button", name="Mark as read").click()
        await expect(window.badge).to_have_text("1")
        await settles(windows.host.service, "Two")
        await window.row("One").hover()
        await window.row("One").get_by_role("button", name="Mark as unread").click()
        await expect(window.badge).to_have_text("2")
        await settles(windows.host.service, "Two", "One")

    async def test_deletion_is_sent_after_the_undo_time(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two")
        await stop_clock(window.page)
        await window.row("One").hover()
        await window.row("One").get_by_role("button", name="Delete").click()
        assert await texts(window) == ["Two"]
        await expect(window.badge).to_have_text("1")
        await expect(window.part("toast")).to_have_text("Notification deletedUndo")
        assert await unread_of(windows.host.service) == ["Two", "One"]
        await window.page.mouse.move(5, 5)
        await window.page.clock.fast_forward(7_000)
        await settles(windows.host.service, "Two")
        await expect(window.part("toast")).to_be_hidden()

    async def test_failed_deletion_restores_only_its_notification(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two", "Three")
        await stop_clock(window.page)
        answer = asyncio.Event()
        [three, *_] = await windows.host.service.ids(1)

        async def fails(route: Route) -> None:
            if route.request.method != "DELETE" or three not in route.request.url:
                await route.fallback()
                return
            await answer.wait()
            await route.fulfill(status=503, headers=ALLOWED)

        await windows.context.route("**/notifications/*", fails)
        for message in ("Three", "Two"):  # from the top: the toast is over the last row
            await window.row(message).hover()
            await window.row(message).get_by_role("button", name="Delete").click()
        await window.page.keyboard.press("Escape")
        await settles(windows.host.service, "Three", "One")
        await notify(windows.host.service, "Four")
        await window.open()
        await expect(window.rows).to_have_count(2)
        assert await texts(window) == ["Four", "One"]
        await expect(window.badge).to_have_text("2")
        answer.set()
        await expect(window.part("toast")).to_have_text("That could not be deleted.")
        assert await texts(window) == ["Four", "Three", "One"]
        await expect(window.badge).to_have_text("3")

    async def test_deletion_can_be_undone_by_mouse(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two", "Three")
        await stop_clock(window.page)
        for message in ("One", "Three"):
            await window.row(message).hover()
            await window.row(message).get_by_role("button", name="Delete").click()
        await expect(window.part("toast")).to_have_text("2 notifications deletedUndo")
        await window.button("Undo").click()
        assert await texts(window) == ["Three", "Two", "One"]
        await expect(window.badge).to_have_text("3")
        assert len(await unread_of(windows.host.service)) == 3

    async def test_closing_the_panel_sends_pending_deletions(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two")
        await window.row("One").hover()
        await window.row("One").get_by_role("button", name="Delete").click()
        await window.page.keyboard.press("Escape")
        await settles(windows.host.service, "Two")

    async def test_deletion_is_sent_when_the_page_is_left(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two")
        await window.row("One").hover()
        await window.row("One").get_by_role("button", name="Delete").click()
        await window.go("/plain")
        await settles(windows.host.service, "Two")

    async def test_mark_all_as_read_excludes_notifications_not_shown(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two")
        await window.rows.first.hover()
        await notify(windows.host.service, "Three")
        await expect(window.part("pill")).to_have_text("1 new")
        await window.button("Mark all as read").click()
        await expect(window.badge).to_have_text("1")
        await settles(windows.host.service, "Three")

    @pytest.mark.parametrize("tab", ["All", "Unread"])
    async def test_mark_all_as_read_can_be_undone(self, windows: Windows, tab: str) -> None:
        sent = asked(windows, "PUT ")
        window = await opened(windows, "One", "Two")
        await stop_clock(window.page)
        await window.panel.get_by_role("tab", name=tab).click()
        await expect(window.rows).to_have_count(2)
        await window.button("Mark all as read").click()
        await expect(window.badge).to_be_hidden()
        await expect(window.part("toast")).to_have_text("All marked as readUndo")
        await notify(windows.host.service, "Three")
        await expect(window.badge).to_have_text("1")
        await window.button("Undo").click()
        await expect(window.badge).to_have_text("3")
        await expect(window.page.locator("tocsin-inbox .row.unread")).to_have_count(3)
        await window.page.keyboard.press("Escape")
        assert sent == []
        assert await unread_of(windows.host.service) == ["Three", "Two", "One"]

    async def test_mark_all_as_read_excludes_later_notifications(self, windows: Windows) -> None:
        await notify(windows.host.service, "One", "Two")
        window = await windows.new()
        await window.open()
        await expect(window.rows).to_have_count(2)
        await stop_clock(window.page)
        await window.button("Mark all as read").click()
        await notify(windows.host.service, "Three")
        await expect(window.rows).to_have_count(3)
        assert await unread_of(windows.host.service) == ["Three", "Two", "One"]
        await window.page.clock.fast_forward(7_000)
        await settles(windows.host.service, "Three")
        await expect(window.badge).to_have_text("1")
        await expect(window.part("toast")).to_be_hidden()

    @pytest.mark.parametrize("way", ["close", "leave", "mark"])
    async def test_next_action_sends_pending_mark_all_as_read(self, windows: Windows, way: str) -> None:
        window = await opened(windows, "One", "Two")
        await stop_clock(window.page)
        await window.button("Mark all as read").click()
        await expect(window.badge).to_be_hidden()
        if way == "close":
            await window.page.keyboard.press("Escape")
        elif way == "leave":
            await window.go("/plain")
        else:
            await window.row("Two").hover()  # the first row: the toast is over the last one
            await window.row("Two").get_by_role("button", name="Mark as unread").click()
        await settles(windows.host.service, *(["Two"] if way == "mark" else []))

    async def test_read_notification_stays_in_unread_tab_until_tab_changes(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two")
        await window.panel.get_by_role("tab", name="Unread").click()
        await expect(window.rows).to_have_count(2)
        await window.row("One").get_by_role("button", name="Mark as read").click()
        await settles(windows.host.service, "Two")
        assert await texts(window) == ["Two", "One"]
        await window.panel.get_by_role("tab", name="All").click()
        await expect(window.rows).to_have_count(2)
        await window.panel.get_by_role("tab", name="Unread").click()
        await expect(window.rows).to_have_count(1)
        await window.button("Mark all as read").click()
        await expect(window.part("empty")).to_contain_text("all caught up")

    async def test_failed_action_is_reported_and_reverted(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await windows.context.route("**/notifications/*/read", lambda route: route.fulfill(status=503, headers=ALLOWED))
        await window.row("One").get_by_role("button", name="Mark as read").click()
        await expect(window.part("toast")).to_have_text("That could not be saved.")
        await expect(window.badge).to_have_text("1")
        assert len(await window.heard("tocsin-error")) == 1


LONG = "We need the papers of this car today. " * 13
LINES = "line1\nline2\nline3\n\n\nline6"
OBSERVED = """
  const Native = ResizeObserver;
  window.observed = [];
  window.ResizeObserver = class extends Native {
    constructor(act) {
      super((entries) => {
        const changes = new MutationObserver(() => {});
        changes.observe(entries[0].target.getRootNode(), { subtree: true, childList: true, attributes: true });
        act(entries);
        observed.push(changes.takeRecords().length);
      });
    }
  };
"""
"""Counts what each callback of a ResizeObserver changes before it returns."""


class TestWholeMessages:
    @pytest.mark.parametrize("message", [LONG.strip(), LINES])
    async def test_long_message_expands_by_mouse(self, windows: Windows, message: str) -> None:
        window = await self._cut(windows, message)
        await window.button("Read more").click()
        assert await whole(window)
        await window.button("Show less").click()
        assert not await whole(window)

    async def test_sizes_change_after_their_observation(self, windows: Windows) -> None:
        # otherwise browsers report an error of the page: "ResizeObserver loop completed with undelivered notifications"
        await windows.context.add_init_script(OBSERVED)
        window = await self._cut(windows, LONG)
        await expect(window.button("Read more")).to_be_visible()
        observed = await window.page.evaluate("observed")
        assert observed
        assert not any(observed)

    async def test_long_message_expands_by_keyboard(self, windows: Windows) -> None:
        window = await self._cut(windows, LONG)
        for key in ("ArrowDown", "Tab", "Enter"):
            await window.page.keyboard.press(key)
        assert await whole(window)
        assert await window.focused() == "Show less"

    async def test_click_on_row_without_link_expands_the_message(self, windows: Windows) -> None:
        await windows.context.route(
            "**/notifications/links?*", lambda route: route.fulfill(json={"data": {}}, headers=ALLOWED)
        )
        window = await self._cut(windows, LONG)
        await window.rows.locator(".main").click()
        assert await whole(window)
        await settles(windows.host.service)

    async def test_empty_inbox_shows_explanation(self, windows: Windows) -> None:
        window = await windows.new()
        await window.open()
        await expect(window.part("empty")).to_contain_text("New notifications will appear here.")

    async def test_long_quote_can_be_expanded(self, windows: Windows, catalogue: Catalogue) -> None:
        note = catalogue.samples["note"]["event"]
        await windows.host.service.post({**note, "notify": {"users": [1]}, "params": {"contact": "Jane", "body": LONG}})
        window = await windows.new()
        await window.open()
        await window.button("Read more").click()
        assert await whole(window)

    async def test_short_message_has_no_expand_button(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await expect(window.rows.locator(".time")).to_be_visible()
        await expect(window.button("Read more")).to_have_count(0)

    async def test_only_urls_in_a_message_become_links(self, windows: Windows) -> None:
        text = (
            "See https://a.example/x?y=1&z=<b>, (http://b.example/) and HTTPS://C.example/d_(e). "
            "Not javascript:alert(1), ftp://d.example, https://bank.example@evil.example/, https:// or www.e.example!"
        )
        window = await opened(windows, text)
        links = window.rows.locator(".text a")
        await expect(links).to_have_text(["https://a.example/x?y=1&z=", "http://b.example/", "HTTPS://C.example/d_(e)"])
        assert await links.evaluate_all("(links) => links.map((link) => [link.href, link.target, link.rel])") == [
            [href, "_blank", "noopener noreferrer nofollow"]
            for href in ("https://a.example/x?y=1&z=", "http://b.example/", "https://c.example/d_(e)")
        ]
        assert (await texts(window)) == [text]

    async def test_link_in_message_opens_tab_and_marks_read(self, windows: Windows) -> None:
        await windows.context.route(
            "https://a.example/**", lambda route: route.fulfill(body="there", content_type="text/html")
        )
        window = await opened(windows, "See https://a.example/x please")
        async with windows.context.expect_page() as there:
            await window.rows.locator(".text a").click()
        await (await there.value).wait_for_url("https://a.example/x")
        await settles(windows.host.service)
        assert window.page.url == windows.host.origin + "/"
        assert await window.heard("tocsin-open") == []

    async def test_custom_message_shows_its_sender(self, windows: Windows) -> None:
        await notify(windows.host.service, "From the service")
        await notify(windows.host.service, "Jane Doe assigned you a lead: sign in again", by=4)
        window = await windows.new()
        await window.open()
        await expect(window.part("sender")).to_have_text(["From Bernita Kilback"])
        await expect(window.row("Jane Doe").locator("[part=sender]")).to_have_count(1)
        await expect(window.rows.first.get_by_role("link")).to_have_accessible_name(
            re.compile("^Unread. From Bernita Kilback Jane Doe assigned")
        )

    async def _cut(self, windows: Windows, message: str) -> Window:
        window = await opened(windows, message)
        await expect(window.button("Read more")).to_be_visible()
        assert not await whole(window)
        return window


async def whole(window: Window) -> bool:
    """Return whether all text of the only row is visible."""
    seen: bool = await window.rows.locator(".text").evaluate(
        "(text) => [...text.children].every((part) => part.scrollHeight <= part.clientHeight + 1)"
    )
    return seen


class TestKeyboard:
    async def test_arrow_keys_and_j_k_move_the_focus(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two", "Three")
        press = window.page.keyboard.press
        for key, there in [
            ("ArrowDown", "Three"),
            ("j", "Two"),
            ("ArrowDown", "One"),
            ("j", "One"),
            ("k", "Two"),
            ("ArrowUp", "Three"),
            ("k", "Three"),
            ("End", "One"),
            ("Home", "Three"),
        ]:
            await press(key)
            assert there in await window.focused(), key

    async def test_shortcut_keys_mark_delete_and_undo(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two", "Three")
        await stop_clock(window.page)
        press = window.page.keyboard.press
        await press("j")
        await press("u")
        await settles(windows.host.service, "Two", "One")
        await press("u")
        await settles(windows.host.service, "Three", "Two", "One")
        await press("j")
        await press("e")
        assert "One" in await window.focused()
        assert await texts(window) == ["Three", "One"]
        await press("Control+z")
        assert "Two" in await window.focused()
        assert await texts(window) == ["Three", "Two", "One"]

    async def test_enter_key_opens_a_notification(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await expect(window.panel.get_by_role("link")).to_have_count(1)
        await window.page.evaluate("() => { window.prevents = true }")
        await window.page.keyboard.press("ArrowDown")
        await window.page.keyboard.press("Enter")
        assert len(await window.heard("tocsin-open")) == 1

    async def test_shortcut_keys_do_nothing_outside_the_inbox(self, windows: Windows) -> None:
        windows.host.embed('mode="page"')
        windows.host.body += '<input aria-label="field">'
        await notify(windows.host.service, "One", "Two")
        window = await windows.new()
        await expect(window.rows).to_have_count(2)
        await window.page.get_by_label("field").focus()
        await window.page.keyboard.type("jeku?")
        await expect(window.rows).to_have_count(2)
        assert await window.page.get_by_label("field").input_value() == "jeku?"
        await expect(window.panel.get_by_role("heading", name="Keyboard shortcuts")).to_have_count(0)

    async def test_only_one_row_is_in_the_tab_order(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two", "Three")
        await window.page.keyboard.press("ArrowDown")
        await window.page.keyboard.press("ArrowDown")
        stops = await window.page.locator("tocsin-inbox .row [tabindex='0']").count()
        assert stops == 3
        await window.page.keyboard.press("Tab")
        assert await window.focused() == "Mark as read"
        await window.page.keyboard.press("Tab")
        assert await window.focused() == "Delete"
        await window.page.keyboard.press("Enter")
        assert await texts(window) == ["Three", "One"]

    async def test_question_mark_shows_help_and_escape_returns(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await window.page.keyboard.press("?")
        await expect(window.panel.get_by_role("heading", name="Keyboard shortcuts")).to_be_visible()
        await window.page.keyboard.press("Escape")
        await expect(window.rows).to_have_count(1)
        await expect(window.panel).to_be_visible()

    async def test_arrow_keys_select_tabs(self, windows: Windows) -> None:
        window = await opened(windows, "One")
        await window.panel.get_by_role("tab", name="All").focus()
        await window.page.keyboard.press("ArrowRight")
        await expect(window.panel.get_by_role("tab", name="Unread")).to_have_attribute("aria-selected", "true")
        assert "Unread" in await window.focused()

    async def test_focus_stays_when_a_notification_arrives(self, windows: Windows) -> None:
        window = await opened(windows, "One", "Two")
        await window.page.keyboard.press("ArrowDown")
        await notify(windows.host.service, "Three")
        await expect(window.part("pill")).to_be_visible()
        assert "Two" in await window.focused()
        assert await texts(window) == ["Two", "One"]
