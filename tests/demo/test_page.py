"""The demo page in a browser."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.support.answers import assert_page_headers
from tests.support.barriers import barriers_of
from tests.support.host_page import SCREENSHOTS
from tests.support.processes import Program, data_folder
from tests.support.service import Api
from tests.support.waiting import until
from tocsin.auth.claims import ServiceCaller
from tocsin.auth.tokens import Verifier
from tocsin.demo.run import LEFT_UNREAD, PEOPLE

pytestmark = pytest.mark.processes

JOHN, SAM, JANE, BERNITA, LAYLA = PEOPLE
DEVICES = ("iphone", "android", "browser")
WIDE, NARROW = (1440, 900), (390, 844)
COLOURS: tuple[Literal["light", "dark"], ...] = ("light", "dark")
TALL = (1440, 1300)
"""A window without scrolling: a scrolled inbox keeps new notifications behind a button."""


@dataclass
class Demo:
    """The running demo and its service."""

    url: str
    http: httpx.AsyncClient
    logs: Path

    async def page(self, user: int) -> list[dict[str, Any]]:
        """A person's inbox, the newest first."""
        found: list[dict[str, Any]] = (await self._call("GET", "/notifications", user)).json()["data"]
        return found

    async def unread(self, user: int) -> list[dict[str, Any]]:
        """What a person has not read, the newest first."""
        answer = await self._call("GET", "/notifications?show=unread&per_page=100", user)
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    async def read_all(self, user: int) -> None:
        """Mark everything as read through the API instead of the page."""
        await self._call("PUT", "/notifications/read", user)

    async def _call(self, method: str, path: str, user: int) -> httpx.Response:
        people = (await self.http.get("/demo/people")).json()["data"]
        token = next(person["token"] for person in people if person["id"] == user)
        answer = await self.http.request(method, path, headers={"Authorization": f"Bearer {token}"})
        assert answer.is_success, answer.text
        return answer


@pytest.fixture(scope="module")
async def demo() -> AsyncIterator[Demo]:
    async with data_folder() as data, Program(data, "demo") as program:
        await until(lambda: "Open http" in "\n".join(program.complaints()))
        host, port = program.address
        url = f"http://{host}:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            yield Demo(url, http, data.parent)


@dataclass
class Visit:
    """The page in a browser, and the errors that it reported."""

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)

    async def sign_in(self, person: Any) -> None:
        await self.page.locator("#people label").filter(has=self.page.locator(f"input[value='{person.id}']")).click()
        await expect(self.page.locator("#whose")).to_contain_text(person.last_name)

    async def post(self, label: str) -> None:
        await self.page.locator("#kinds").get_by_role("button", name=label, exact=True).click()
        await expect(self.page.locator("#said")).to_contain_text(f"Posted “{label}”")

    def rows(self, sentence: str = "") -> Locator:
        """The rows of the inbox, or those with this text."""
        return self.page.locator("tocsin-inbox").get_by_role("listitem").filter(has_text=sentence)

    def banners(self, device: str) -> Locator:
        return self.page.locator(f"#{device} .banner:not(.gone)")

    def badge(self, device: str) -> Locator:
        return self.page.locator(f"#{device} .badge")

    async def shows(self, device: str, count: int) -> None:
        """Check that a device shows this badge and banners, or nothing."""
        await expect(self.badge(device)).to_have_text(str(count or ""))
        await expect(self.banners(device)).to_have_count(min(count, 2 if device == "browser" else 3))


@asynccontextmanager
async def visiting(
    chromium: Browser,
    demo: Demo,
    person: Any = JOHN,
    size: tuple[int, int] = WIDE,
) -> AsyncIterator[Visit]:
    """Open the page, and check at the end that it requested no other host and reported no error."""
    width, height = size
    context = await chromium.new_context(viewport={"width": width, "height": height})
    page = await context.new_page()
    visit = Visit(page, demo.url)
    page.on("console", lambda said: visit.wrong.append(said.text) if said.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: visit.wrong.append(str(error)))
    page.on(
        "request", lambda sent: visit.wrong.append(sent.url) if not sent.url.startswith((demo.url, "data:")) else None
    )
    await page.goto(f"{demo.url}/#{person.id}")
    await expect(page.locator("#whose")).to_contain_text(person.last_name)
    yield visit
    assert visit.wrong == []
    await context.close()


async def test_demo_shows_each_user_with_phones_in_their_language(chromium: Browser, demo: Demo) -> None:
    titles = {}
    async with visiting(chromium, demo, size=WIDE) as visit:
        for person in PEOPLE:
            await visit.sign_in(person)
            for device in DEVICES:
                await visit.shows(device, LEFT_UNREAD)
            titles[person.id] = await visit.banners("iphone").locator("h4").first.inner_text()
            assert visit.page.url.endswith(f"#{person.id}")
            newest = (await demo.page(person.id))[0]
            await expect(visit.rows().first).to_contain_text(_sentence_of(newest))
    assert len({titles[JOHN.id], titles[SAM.id], titles[JANE.id]}) == 3
    assert titles[JOHN.id] == titles[BERNITA.id] == titles[LAYLA.id]


async def test_demo_event_of_every_kind_reaches_inbox_and_devices(chromium: Browser, demo: Demo) -> None:
    await demo.read_all(BERNITA.id)
    async with visiting(chromium, demo, BERNITA, TALL) as visit:
        for device in DEVICES:
            await visit.shows(device, 0)
        labels = await visit.page.locator("#kinds button").all_inner_texts()
        assert len(labels) == 24
        for count, label in enumerate(labels, 1):
            await visit.post(label)
            for device in DEVICES:
                await expect(visit.banners(device).locator("h4").first).to_contain_text(label)
                await visit.shows(device, count)
            newest = (await demo.unread(BERNITA.id))[0]
            await expect(visit.rows(_sentence_of(newest)).first).to_be_visible()
        unread = await demo.unread(BERNITA.id)
        assert len(unread) == 24
        assert len({_kind_of(entry) for entry in unread}) == 24


async def test_reading_in_the_inbox_clears_only_that_on_every_device(chromium: Browser, demo: Demo) -> None:
    async with visiting(chromium, demo, LAYLA) as visit:
        first, second = (await demo.unread(LAYLA.id))[:2]
        await visit.shows("iphone", LEFT_UNREAD)
        titles = await visit.banners("iphone").locator("h4").all_inner_texts()
        row = visit.rows(_sentence_of(first)).first
        await row.hover()
        await row.get_by_role("button", name="Mark as read").click()
        for device in DEVICES:
            await visit.shows(device, LEFT_UNREAD - 1)
            await expect(visit.banners(device).locator("h4").first).to_have_text(titles[1])
        await visit.rows(_sentence_of(second)).first.get_by_role("button", name="Unread.").click()
        await expect(visit.page.locator("#said")).to_contain_text("Your application would now open")
        for device in DEVICES:
            await visit.shows(device, LEFT_UNREAD - 2)
        await visit.page.get_by_role("button", name="Mark all as read").click()
        for device in DEVICES:
            await visit.shows(device, 0)
        assert await demo.unread(LAYLA.id) == []


async def test_reading_all_through_the_api_clears_every_device(chromium: Browser, demo: Demo) -> None:
    async with visiting(chromium, demo, JANE) as visit:
        before = len(await demo.unread(JANE.id))
        await visit.post("New lead")
        for device in DEVICES:
            await visit.shows(device, before + 1)
        await demo.read_all(JANE.id)
        for device in DEVICES:
            await visit.shows(device, 0)


async def test_demo_event_reaches_exactly_its_recipients(chromium: Browser, demo: Demo) -> None:
    for person in PEOPLE:
        await demo.read_all(person.id)
    async with visiting(chromium, demo, SAM) as visit, visiting(chromium, demo, LAYLA) as other:
        for device in DEVICES:
            await other.shows(device, 0)
        await visit.post("Report ready")
        await visit.shows("iphone", 1)
        assert [len(await demo.unread(person.id)) for person in PEOPLE] == [0, 1, 0, 0, 0]
        for device in DEVICES:
            await other.shows(device, 0)
        await expect(other.rows(_sentence_of((await demo.unread(SAM.id))[0]))).to_have_count(0)
        await visit.page.get_by_label("All users").check()
        await visit.post("Lead escalated")
        for device in DEVICES:
            await visit.shows(device, 2)
            await other.shows(device, 1)
        assert [len(await demo.unread(person.id)) for person in PEOPLE] == [1, 2, 1, 1, 1]


async def test_narrow_demo_page_has_a_button_to_the_phones(chromium: Browser, demo: Demo) -> None:
    async with visiting(chromium, demo, JOHN, NARROW) as visit:
        await visit.post("Mention")
        await expect(visit.page.locator("#iphone")).not_to_be_in_viewport()
        await visit.page.get_by_role("button", name="Show the phones").click()
        await expect(visit.banners("iphone").first).to_be_in_viewport()
    async with visiting(chromium, demo, JOHN, WIDE) as visit:
        await visit.post("Mention")
        await expect(visit.page.get_by_role("button", name="Show the phones")).to_be_hidden()


async def test_banner_that_begins_with_an_arabic_name_reads_from_left_to_right(chromium: Browser, demo: Demo) -> None:
    async with visiting(chromium, demo, JOHN) as visit:
        await visit.post("Mention")
        text = visit.banners("iphone").locator("p").first
        name, rest = await text.evaluate("""(p) => {
          p.textContent = "\\u2068\\u0644\\u064a\\u0644\\u0649\\u2069 won";
          return [[1, 5], [7, 10]].map(([from, to]) => {
            const range = document.createRange();
            range.setStart(p.firstChild, from);
            range.setEnd(p.firstChild, to);
            return range.getBoundingClientRect().left;
          });
        }""")
        assert name < rest


async def test_demo_can_be_used_by_keyboard(chromium: Browser, demo: Demo) -> None:
    async with visiting(chromium, demo) as visit:
        keyboard = visit.page.keyboard
        await visit.page.locator("#people input:checked").focus()
        await keyboard.press("ArrowRight")
        await expect(visit.page.locator("#whose")).to_contain_text("Sam Carter")
        await keyboard.press("Tab")
        await keyboard.press("Tab")
        await keyboard.press("Enter")
        await expect(visit.page.locator("#said")).to_contain_text("for Sam")


async def test_demo_commands_can_be_copied_and_run(chromium: Browser, demo: Demo) -> None:
    async with visiting(chromium, demo) as visit:
        await visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        for title in ("List notifications", "Post an event", "Read all and clear the phones"):
            await visit.page.get_by_role("button", name=f"Copy: {title}").click()
            command = await visit.page.evaluate("navigator.clipboard.readText()")
            await _run(command)
            if title == "Post an event":
                await expect(visit.banners("iphone").first).to_contain_text("Hello from the shell")
        assert await demo.unread(JOHN.id) == []
        page = await demo.page(JOHN.id)
        assert page[0]["message"] == "Hello from the shell"


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_demo_is_accessible_and_fits_in_both_themes(chromium: Browser, demo: Demo, size: tuple[int, int]) -> None:
    async with visiting(chromium, demo, JOHN, size) as visit:
        await visit.post("Mention")
        await expect(visit.banners("browser").first).to_be_visible()
        SCREENSHOTS.mkdir(exist_ok=True)
        for colours in COLOURS:
            await visit.page.emulate_media(color_scheme=colours)
            await visit.page.wait_for_timeout(500)  # for what moves to begin
            await visit.page.wait_for_function("document.getAnimations().every((each) => each.playState !== 'running')")
            assert await barriers_of(visit.page) == [], colours
            assert await visit.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            await visit.page.screenshot(path=SCREENSHOTS / f"demo-{colours}-{size[0]}.png", full_page=True)


OF_OTHERS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "localhost@evil.example",
    "10.0.0.1",
    "evil@127.0.0.1",
    "127.0.0.1#.evil.example",
    "127.0.0.1/.evil.example",
    "localhost:80:80",
    "",
]


@pytest.mark.parametrize("host", OF_OTHERS)
async def test_demo_rejects_foreign_host_names(demo: Demo, host: str) -> None:
    for path in ("/", "/demo/people", "/demo/kinds", "/demo/phones?user=1", "/demo/demo.js"):
        answer = await demo.http.get(path, headers={"Host": host})
        assert answer.status_code in {400, 403}
        assert "token" not in answer.text
    posted = await demo.http.post("/demo/events", json={"kind": "custom", "to": [1]}, headers={"Host": host})
    assert posted.status_code in {400, 403}


async def test_demo_rejects_requests_of_other_origins(demo: Demo) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        posted = await demo.http.post("/demo/events", json={"kind": "custom", "to": [1]}, headers={"Origin": origin})
        assert posted.status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:99", "127.0.0.1", "127.9.9.9:1", "[::1]:8080", "LOCALHOST"])
async def test_demo_accepts_every_loopback_name(demo: Demo, host: str) -> None:
    answer = await demo.http.get("/demo/people", headers={"Host": host})
    assert [person["id"] for person in answer.json()["data"]] == [person.id for person in PEOPLE]


async def test_demo_tokens_are_short_lived_with_few_scopes(demo: Demo) -> None:
    found = (await demo.http.get("/demo/people")).json()
    verifier = Verifier([(demo.logs / "data" / "demo" / "jwt-secret").read_text().strip()])
    users = [verifier.verify(person["token"]) for person in found["data"]]
    crm = verifier.verify(found["crm"])
    assert [user.label for user in users] == [f"user {person.id}" for person in PEOPLE]
    assert isinstance(crm, ServiceCaller)
    assert crm.scopes == {"events:write", "directory:write"}
    assert all(caller.expires < time.time() + found["lifetime"] + 60 for caller in [*users, crm])
    assert found["lifetime"] <= 3600


async def test_demo_posts_only_known_kinds_to_demo_users(demo: Demo) -> None:
    for body, at_fault in (
        ({"kind": "nothing", "to": [1]}, "kind"),
        ({"to": [1]}, "kind"),
        ({"kind": ["custom"], "to": [1]}, "kind"),
        ({"kind": "custom", "to": []}, "to"),
        ({"kind": "custom", "to": [1, 99]}, "to"),
        ({"kind": "custom", "to": ["1"]}, "to.0"),
    ):
        answer = await demo.http.post("/demo/events", json=body)
        assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [at_fault])
    form = await demo.http.post("/demo/events", content=json.dumps({"kind": "custom", "to": [1]}))
    assert form.status_code == 415
    assert (await demo.http.get("/demo/phones?user=99")).status_code == 404
    assert (await demo.http.get("/demo/phones?user=x")).status_code == 422


async def test_demo_page_loads_only_its_own_files(demo: Demo) -> None:
    assert_page_headers(await demo.http.get("/"))


async def test_demo_polling_is_not_logged(demo: Demo) -> None:
    assert (await demo.http.get("/demo/phones?user=1")).status_code == 200
    assert (await demo.http.get("/demo/kinds")).status_code == 200

    def logged() -> set[str]:
        lines = [line for log in demo.logs.glob("*.log") for line in log.read_text("utf-8").splitlines()]
        said = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return {line["path"] for line in said if line.get("status") == 200}

    await until(lambda: "/demo/kinds" in logged())
    assert "/demo/phones" not in logged()


async def test_demo_paths_are_404_outside_the_demo(api: Api) -> None:
    for path in ("/", "/demo/people", "/demo/kinds", "/demo/phones?user=1", "/demo/demo.js"):
        assert (await api.call("GET", path)).status_code == 404


def _sentence_of(entry: dict[str, Any]) -> str:
    return str(entry["message"]).partition(" <br> ")[0]


def _kind_of(entry: dict[str, Any]) -> str:
    variant = entry["data"].get("event") or {}
    return f"{entry['type']}/{variant.get('type', '')}"


async def _run(command: str) -> None:
    running = await asyncio.create_subprocess_exec(
        "bash", "-c", f"{command} --fail --silent", stdout=asyncio.subprocess.DEVNULL
    )
    assert await running.wait() == 0, command
