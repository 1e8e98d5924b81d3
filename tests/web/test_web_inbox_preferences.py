"""The preferences view, and browser push."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.support.host_page import (
    SUBSCRIBING,
    SWITCH,
    Host,
    Window,
    Windows,
    browsers_of,
    browsing,
    hosting,
    notify,
    opened_preferences,
    switched,
)
from tests.support.service import Api, serving
from tests.support.waiting import LONGEST_WAIT, reaches, until
from tocsin.catalogue import Catalogue
from tocsin_phones import Phones


async def held(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = (await api.as_user(1, "GET", "/notifications/preferences")).json()
    return found


async def becomes(api: Api, name: str, value: Any) -> None:
    async def found() -> Any:
        return (await held(api))[name]

    await reaches(found, value)


class TestPreferences:
    async def test_preferences_show_switches_for_every_kind_in_groups(self, windows: Windows) -> None:
        window = await opened_preferences(windows)
        kinds = (await windows.host.service.as_user(1, "GET", "/notifications/kinds")).json()["data"]
        await expect(window.panel.get_by_role("switch")).to_have_count(2 * len(kinds))
        groups = list(dict.fromkeys(kind["group_label"] for kind in kinds))
        assert await window.panel.locator("table").evaluate_all("(all) => all.map((one) => one.ariaLabel)") == groups

    async def test_preference_switch_is_saved_by_mouse_and_keyboard(self, windows: Windows) -> None:
        window = await opened_preferences(windows)
        switch = window.panel.get_by_role("switch", name="Mention: Phone")
        await expect(switch).to_be_checked()
        await switch.click()
        await expect(window.page.locator("tocsin-inbox [role=status]")).to_have_text("Saved")
        assert (await held(windows.host.service))["kinds"]["note"] == {"push": False, "web_push": True, "urgent": False}
        browser = window.panel.get_by_role("switch", name="Mention: Browser")
        await browser.focus()
        await window.page.keyboard.press("Space")
        await expect(browser).not_to_be_checked()

        async def web_push() -> bool:
            switched: bool = (await held(windows.host.service))["kinds"]["note"]["web_push"]
            return switched

        await reaches(web_push, False)  # noqa: FBT003 - a value to come

    async def test_quiet_hours_are_added_changed_and_removed(self, windows: Windows) -> None:
        window, api = await opened_preferences(windows), windows.host.service
        days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
        await window.button("Add quiet hours").click()
        await becomes(api, "quiet_hours", [{"days": days, "from": "20:00", "to": "07:00"}])
        await window.panel.get_by_label("From").fill("21:30")
        await becomes(api, "quiet_hours", [{"days": days, "from": "21:30", "to": "07:00"}])
        await window.panel.get_by_role("checkbox", name="Sunday").click()
        await becomes(api, "quiet_hours", [{"days": days[:6], "from": "21:30", "to": "07:00"}])
        await window.button("Remove these quiet hours").click()
        await becomes(api, "quiet_hours", [])

    async def test_rejected_preference_is_reported_and_reverted(self, windows: Windows) -> None:
        window, api = await opened_preferences(windows), windows.host.service
        await window.button("Add quiet hours").click()
        await expect(window.panel.get_by_label("To", exact=True)).to_be_visible()
        await window.panel.get_by_label("To", exact=True).fill("20:00")
        await expect(window.panel.get_by_role("alert")).to_contain_text("That could not be saved.")
        await expect(window.panel.get_by_label("To", exact=True)).to_have_value("07:00")
        assert (await held(api))["quiet_hours"][0]["to"] == "07:00"

    async def test_reason_of_a_failed_change_stays_in_view(self, windows: Windows) -> None:
        await windows.context.route(
            "**/notifications/preferences",
            lambda route: route.abort() if route.request.method == "PATCH" else route.continue_(),
        )
        window = await opened_preferences(windows)
        switch = window.panel.get_by_role("switch").last
        await switch.click()
        await expect(window.panel.get_by_role("alert")).to_have_text("That could not be saved. ")
        await expect(window.panel.get_by_role("alert")).to_be_in_viewport()
        await expect(switch).to_be_in_viewport()

    async def test_pause_lasts_an_hour_or_until_tomorrow(self, windows: Windows) -> None:
        window, api = await opened_preferences(windows), windows.host.service
        await window.button("For 1 hour").click()
        await expect(window.panel.get_by_text("Paused until")).to_be_visible()
        until = datetime.fromisoformat((await held(api))["paused_until"]).replace(tzinfo=UTC)
        assert timedelta(minutes=58) < until - datetime.now(UTC) <= timedelta(minutes=60)
        await window.button("Resume now").click()
        await becomes(api, "paused_until", None)
        await window.panel.get_by_role("button", name="Until tomorrow").click()
        await expect(window.panel.get_by_text("Paused until")).to_be_visible()
        until = datetime.fromisoformat((await held(api))["paused_until"])
        shown = await window.page.evaluate("(text) => new Date(text + 'Z').getHours()", str(until).replace(" ", "T"))
        assert shown == 8

    async def test_pause_is_shown_above_the_list_and_can_be_ended(self, windows: Windows) -> None:
        api = windows.host.service
        until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        await api.as_user(1, "PATCH", "/notifications/preferences", json={"paused_until": until})
        await notify(api, "One")
        window = await windows.new()
        await window.open()
        await expect(window.part("paused")).to_contain_text("Paused until")
        assert await window.barriers() == []
        await window.button("Resume now").click()
        await expect(window.part("paused")).to_be_hidden()
        await becomes(api, "paused_until", None)
        await window.button("Preferences").click()
        await window.button("For 1 hour").click()
        await expect(window.part("preferences").get_by_text("Paused until")).to_be_visible()
        await window.button("Back").click()
        await expect(window.part("paused")).to_contain_text("Paused until")

    @pytest.mark.parametrize(("chosen", "becomes_"), [(None, "Europe/Copenhagen"), ("Asia/Tokyo", "Asia/Tokyo")])
    async def test_first_quiet_hours_set_the_browsers_time_zone(
        self, host: Host, chromium: Browser, chosen: str | None, becomes_: str
    ) -> None:
        await host.service.as_user(1, "PATCH", "/notifications/preferences", json={"time_zone": chosen})
        async with browsing(chromium, host, timezone_id="Europe/Copenhagen") as windows:
            window = await opened_preferences(windows)
            await window.button("Add quiet hours").click()
            await expect(window.panel.get_by_label("From")).to_be_visible()
            await expect(window.panel.get_by_label("Time zone")).to_have_value(becomes_)
            await becomes(host.service, "time_zone", becomes_)
            assert [hours["from"] for hours in (await held(host.service))["quiet_hours"]] == ["20:00"]

    async def test_chosen_utc_time_zone_is_kept(self, host: Host, chromium: Browser) -> None:
        async with browsing(chromium, host, timezone_id="Europe/Copenhagen") as windows:
            window = await opened_preferences(windows)
            for zone in ("Asia/Tokyo", "UTC"):
                await window.panel.get_by_label("Time zone").select_option(zone)
                await becomes(host.service, "time_zone", zone)
            await window.button("Add quiet hours").click()
            await window.button("Remove these quiet hours").click()
            await becomes(host.service, "quiet_hours", [])
            assert (await held(host.service))["time_zone"] == "UTC"

    async def test_last_day_of_quiet_hours_cannot_be_removed(self, windows: Windows) -> None:
        window, api = await opened_preferences(windows), windows.host.service
        hours = [{"days": ["sun"], "from": "20:00", "to": "07:00"}]
        await api.as_user(1, "PATCH", "/notifications/preferences", json={"quiet_hours": hours})
        await window.button("Back").click()
        await window.button("Preferences").click()
        await window.panel.get_by_role("checkbox", name="Sunday").click()
        await expect(window.panel.get_by_role("alert")).to_contain_text("at least one day")
        await expect(window.panel.get_by_role("checkbox", name="Sunday")).to_be_checked()
        assert (await held(api))["quiet_hours"] == hours

    async def test_time_zone_can_be_chosen(self, windows: Windows) -> None:
        window, api = await opened_preferences(windows), windows.host.service
        zone = window.panel.get_by_label("Time zone")
        await expect(zone).to_have_value("UTC")
        await zone.select_option("Europe/Copenhagen")
        await becomes(api, "time_zone", "Europe/Copenhagen")

    async def test_back_and_escape_return_to_the_list_and_focus(self, windows: Windows) -> None:
        await notify(windows.host.service, "One")
        window = await opened_preferences(windows)
        await window.page.keyboard.press("Escape")
        await expect(window.rows).to_have_count(1)
        assert await window.focused() == "Preferences"
        await window.page.keyboard.press("Enter")
        await window.button("Back").click()
        await expect(window.rows).to_have_count(1)

    async def test_preferences_report_an_outage_and_can_retry(self, windows: Windows) -> None:
        window = await windows.new()
        await window.page.route("**/notifications/kinds", lambda route: route.abort())
        await window.open()
        await window.button("Preferences").click()
        await expect(window.panel.get_by_role("alert")).to_be_visible()
        await window.page.unroute("**/notifications/kinds")
        await window.button("Try again").click()
        await expect(window.panel.get_by_role("switch").first).to_be_visible()

    async def test_locked_preferences_cannot_be_changed(
        self, url: str, catalogue: Catalogue, chromium: Browser, tmp_path: Path
    ) -> None:
        rules = tmp_path / "preferences.toml"
        rules.write_text('[locked]\nquiet_hours = true\n[kinds.note]\npush = true\nlocked = ["push"]\n')
        async with (
            hosting() as host,
            serving(url, catalogue, cors_origins=(host.origin,), preferences_file=rules) as api,
            browsing(chromium, host) as windows,
        ):
            await api.people(1)
            host.serves(api)
            window = await opened_preferences(windows)
            await expect(window.panel.get_by_role("switch", name="Mention: Phone")).to_be_disabled()
            await expect(window.panel.get_by_role("switch", name="Mention: Browser")).to_be_enabled()
            await window.button("Add quiet hours").click()
            await expect(window.panel.get_by_role("alert")).to_have_text("Set by your organisation")
            assert await window.barriers() == []


class TestPush:
    async def test_browser_push_is_switched_on_and_off(self, pushed: Host, chromium: Browser) -> None:
        async with browsing(chromium, pushed, permissions=["notifications"]) as windows:
            await windows.context.add_init_script(SUBSCRIBING)
            window = await opened_preferences(windows)
            await expect(window.panel.get_by_role("switch", name=SWITCH)).not_to_be_checked()
            await switched(window, on=True)
            await switched(window, on=False)

    async def test_browser_push_ends_even_if_the_service_cannot_be_reached(
        self, pushed: Host, chromium: Browser
    ) -> None:
        async with browsing(chromium, pushed, permissions=["notifications"]) as windows:
            await windows.context.add_init_script(SUBSCRIBING)
            window = await opened_preferences(windows)
            await switched(window, on=True)
            await windows.context.route("**/notifications/web-push", lambda route: route.abort())
            switch = window.panel.get_by_role("switch", name=SWITCH)
            await switch.click()
            await until(lambda: window.heard("tocsin-error"))
            await expect(switch).not_to_be_checked()
            assert await window.page.evaluate("() => PushManager.prototype.getSubscription()") is None

    async def test_service_worker_shows_push_and_closes_it_when_read(
        self, pushed: Host, chromium: Browser, phones: Phones
    ) -> None:
        async with browsing(chromium, pushed, permissions=["notifications"]) as windows:
            await windows.context.add_init_script(SUBSCRIBING)
            window = await opened_preferences(windows)
            await switched(window, on=True)
            [endpoint] = await window.page.evaluate("() => subscribed")
            [id_] = await notify(pushed.service, "One")
            payload = await pushed_to(phones, endpoint)
            await deliver(window, payload)
            await reaches(lambda: banners(window), [("Message", "One", id_)])
            await pushed.service.as_user(1, "PUT", f"/notifications/{id_}/read")
            [second] = await notify(pushed.service, "Two")
            await deliver(window, await pushed_to(phones, endpoint, 2))
            await reaches(lambda: banners(window), [("Message", "Two", second)])
            await window.button("Back").click()
            await window.row("Two").get_by_role("button", name="Mark as read").click()
            await reaches(lambda: banners(window), [])

    async def test_click_on_push_notifies_page_and_opens_link(self, pushed: Host, chromium: Browser) -> None:
        async with browsing(chromium, pushed, permissions=["notifications"]) as windows:
            await windows.context.add_init_script(SUBSCRIBING)
            window = await opened_preferences(windows)
            await switched(window, on=True)
            [id_] = await notify(pushed.service, "One")
            for tag, link, opens in [  # each has its own tag: Chromium may still be closing the one before
                ("first", "https://crm.example.com/cases/1", ["https://crm.example.com/cases/1"]),
                ("second", None, []),
                ("third", "javascript:alert(1)", []),
            ]:
                payload = {
                    "title": "A",
                    "body": "B",
                    "tag": tag,
                    "badge": 1,
                    "clear": [],
                    "notification": {"id": id_, "link": link},
                }
                await deliver(window, payload)
                assert await clicked(windows, tag) == opens
            await reaches(lambda: pushed.service.unread(1), 0)

    async def test_invalid_push_is_ignored_by_the_service_worker(self, pushed: Host, chromium: Browser) -> None:
        async with browsing(chromium, pushed, permissions=["notifications"]) as windows:
            await windows.context.add_init_script(SUBSCRIBING)
            window = await opened_preferences(windows)
            await switched(window, on=True)
            for data in ("", "{", "null", "[]", '"x"', '{"title": 7}'):
                await deliver(window, data)
            await deliver(window, {"title": "A", "body": "B", "tag": "x", "badge": "many", "clear": "all"})
            await reaches(lambda: banners(window), [("A", "B", "x")])

    async def test_changed_vapid_key_renews_the_subscription(self, pushed: Host, chromium: Browser) -> None:
        async with browsing(chromium, pushed, permissions=["notifications"]) as windows:
            await windows.context.add_init_script(SUBSCRIBING)
            window = await opened_preferences(windows)
            await window.page.evaluate("() => { window.formerKey = new Uint8Array([1, 2, 3]).buffer }")
            await switched(window, on=True)
            await window.page.evaluate("() => { delete window.formerKey; inbox.remove(); document.body.append(inbox) }")
            await reaches(lambda: window.page.evaluate("() => subscribed.length"), 2)
            await reaches(lambda: browsers_of(pushed.service), 1)

    async def test_service_worker_of_another_origin_is_rejected(self, pushed: Host, chromium: Browser) -> None:
        pushed.embed('worker="https://evil.example/worker.js"')
        async with browsing(chromium, pushed, permissions=["notifications"]) as windows:
            await windows.context.add_init_script(SUBSCRIBING)
            window = await opened_preferences(windows)
            await window.panel.get_by_role("switch", name=SWITCH).click()
            await expect(window.panel.get_by_text("Your browser could not be set up.")).to_be_visible()
            assert window.complaints == ["The worker must have the page's origin."]
            window.complaints.clear()
            assert await window.page.evaluate("() => subscribed") == []

    async def test_browser_push_switch_is_hidden_if_unsupported(self, windows: Windows) -> None:
        for attributes in ("", 'worker="/worker.js"'):  # no worker; a service that pushes to no browser
            windows.host.embed(attributes)
            window = await opened_preferences(windows)
            await expect(window.panel.get_by_text("Notify me in this browser")).to_have_count(0)

    async def test_blocked_browser_push_is_reported(self, pushed: Host, chromium: Browser) -> None:
        async with browsing(chromium, pushed) as windows:
            await windows.context.add_init_script(
                "Object.defineProperty(Notification, 'permission', { value: 'denied' })"
            )
            window = await opened_preferences(windows)
            await expect(window.panel.get_by_role("switch", name="Notify me in this browser")).to_be_disabled()
            await expect(window.panel.get_by_text("Your browser blocks")).to_be_visible()


async def pushed_to(phones: Phones, endpoint: str, count: int = 1) -> dict[str, Any]:
    await until(lambda: len(phones.pushes("browser", endpoint)) >= count)
    payload: dict[str, Any] = phones.pushes("browser", endpoint)[-1]["payload"]
    return payload


async def deliver(window: Window, payload: Any) -> None:
    """Send a push event to the service worker like the browser's push service."""
    import json

    session = await window.page.context.new_cdp_session(window.page)
    registrations: list[dict[str, Any]] = []
    session.on("ServiceWorker.workerRegistrationUpdated", lambda event: registrations.extend(event["registrations"]))
    await session.send("ServiceWorker.enable")
    await until(lambda: registrations)
    data = payload if isinstance(payload, str) else json.dumps(payload)
    await session.send(
        "ServiceWorker.deliverPushMessage",
        {"origin": window.host.origin, "registrationId": registrations[-1]["registrationId"], "data": data},
    )
    await session.detach()


async def banners(window: Window) -> list[tuple[str, str, str]]:
    found = await window.page.evaluate(
        """async () => {
          const registration = await navigator.serviceWorker.getRegistration();
          const soon = () => new Promise((resolve) => setTimeout(resolve, 2_000));
          let found;
          while (!found) found = await Promise.race([registration.getNotifications(), soon()]); // some are lost
          return found.map(({ title, body, tag }) => [title, body, tag]);
        }"""
    )
    return [tuple(one) for one in found]


async def clicked(windows: Windows, tag: str) -> list[str]:
    """Click what is shown with a tag, and return what the worker opened."""
    clicking = windows.context.service_workers[0].evaluate(
        """async (tag) => {
          const opened = [];
          const openWindow = async (url) => { opened.push(url) };
          Object.defineProperty(self.clients, "openWindow", { value: openWindow, configurable: true });
          WindowClient.prototype.focus = async function () { return this };
          let notification;
          while (!notification) { // it is shown a moment after its push was delivered
            await new Promise((resolve) => setTimeout(resolve, 20));
            [notification] = await self.registration.getNotifications({ tag });
          }
          const event = new NotificationEvent("notificationclick", { notification });
          const done = [];
          event.waitUntil = (promise) => done.push(promise);
          self.dispatchEvent(event);
          await Promise.all(done);
          return opened;
        }""",
        tag,
    )
    opened_: list[str] = await asyncio.wait_for(clicking, LONGEST_WAIT)
    return opened_
