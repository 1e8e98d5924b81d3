"""The web inbox in pages made with React, Vue, Svelte, Solid and Angular: they compile and work.

Those in React and Vue are the code of the documentation.
"""

import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.support.host_page import Window, Windows, notify, settles, streams
from tests.support.node import installed, unpacked
from tests.support.programs import run

SOURCES = Path(__file__).parent / "frameworks"
DOCUMENT = Path(__file__).parents[2] / "docs/guides/web-inbox.md"
POLICIES = {
    "react": "tocsin-inbox",
    "vue": "tocsin-inbox vue",
    "svelte": "tocsin-inbox svelte-trusted-html",
    "angular": "tocsin-inbox angular",
    "react_hook": "'none'",
    "vue_composable": "vue",
}
"""The policies for trusted types that a page needs. Solid has none: it cannot run under `require-trusted-types-for`."""

FROM_THE_SERVICE = ["react", "vue"]
"""Pages that load the element from the service; others import it from the package."""


@pytest.fixture(scope="module")
async def pages(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages as for production; those in React and Vue around what the document shows."""
    folder = await installed(SOURCES, tmp_path_factory.mktemp("pages") / "frameworks")
    await unpacked(archive, folder / "node_modules")
    shutil.copy(str(files("tocsin.web") / "inbox.d.ts"), folder)
    for language in ("tsx", "vue"):
        [example] = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        (folder / f"Inbox.{language}").write_text(example, "utf-8")
    status, told = await run(folder, "node", "build.mjs")
    assert (status, told) == (0, "")
    return folder


async def opened(windows: Windows, pages: Path, name: str) -> Window:
    """Open one of the pages, where one notification has come."""
    host = windows.host
    host.script = (pages / "made" / f"{name}.js").read_text("utf-8")
    host.embedded = name in FROM_THE_SERVICE
    host.strict = name in POLICIES
    host.trusted = POLICIES.get(name, "")
    host.body = f'<div id="app" data-service="{host.api}"></div>'
    await notify(host.service, "One")
    window = await windows.new()
    await streams(windows, 1)
    return window


@pytest.fixture(params=["react", "vue", "svelte", "solid", "angular"])
async def window(request: pytest.FixtureRequest, pages: Path, windows: Windows) -> Window:
    """A page that shows the element."""
    return await opened(windows, pages, request.param)


@pytest.fixture(params=["react_hook", "vue_composable"])
async def drawn(request: pytest.FixtureRequest, pages: Path, windows: Windows) -> Window:
    """A page that draws the inbox itself."""
    return await opened(windows, pages, request.param)


async def test_framework_examples_compile_with_the_served_types(pages: Path) -> None:
    """`vue-tsc` is `tsc` that also looks into Vue's templates."""
    status, told = await run(pages, "node_modules/.bin/vue-tsc")
    assert (status, told) == (0, "")


async def test_framework_inbox_shows_the_list_and_live_updates(windows: Windows, window: Window) -> None:
    await window.open()
    await expect(window.rows).to_have_text([re.compile("One")])
    await notify(windows.host.service, "Two")
    await expect(window.rows).to_have_text([re.compile("Two"), re.compile("One")])


async def test_framework_page_shows_the_count_in_its_title(windows: Windows, window: Window) -> None:
    await expect(window.page).to_have_title("(1) Cases")
    await notify(windows.host.service, "Two")
    await expect(window.page).to_have_title("(2) Cases")
    await windows.host.service.as_user(1, "PUT", "/notifications/read")
    await expect(window.page).to_have_title("Cases")


async def test_framework_page_handles_notification_links(windows: Windows, window: Window) -> None:
    await window.open()
    await window.row("One").locator(".main").click()
    await expect(window.page.locator("output")).to_have_text("https://crm.example.com/n/One")
    await expect(window.panel).to_be_hidden()
    assert window.page.url == windows.host.origin + "/"
    await settles(windows.host.service)


async def test_framework_unmount_closes_the_stream_and_remount_reopens_it(windows: Windows, window: Window) -> None:
    await window.page.get_by_role("button", name="Sign out").click()
    await expect(window.page.locator("tocsin-inbox")).to_have_count(0)
    await streams(windows, 0)
    await notify(windows.host.service, "Two")
    await window.page.get_by_role("button", name="Sign in").click()
    await streams(windows, 1)
    await expect(window.badge).to_have_text("2")


async def test_headless_framework_page_lists_marks_and_updates_live(windows: Windows, drawn: Window) -> None:
    rows, service = drawn.page.locator("li"), windows.host.service
    await expect(rows).to_have_text([re.compile("One")])
    await expect(drawn.page.locator("output")).to_have_text("live")
    await notify(service, "Two", "Three")
    await expect(rows).to_have_text([re.compile("Three"), re.compile("Two"), re.compile("One")])
    await expect(drawn.page).to_have_title("(3) Cases")
    await rows.nth(1).get_by_role("button", name="Read").click()
    await expect(drawn.page.locator("li.unread")).to_have_count(2)
    await rows.nth(0).get_by_role("button", name="Delete").click()
    await expect(rows).to_have_text([re.compile("Two"), re.compile("One")])
    await drawn.page.get_by_role("button", name="Read all").click()
    await expect(drawn.page).to_have_title("Cases")
    await settles(service)


async def test_headless_framework_unmount_closes_the_stream(windows: Windows, drawn: Window) -> None:
    await drawn.page.get_by_role("button", name="Sign out").click()
    await streams(windows, 0)
    await notify(windows.host.service, "Two")
    await drawn.page.get_by_role("button", name="Sign in").click()
    await streams(windows, 1)
    await expect(drawn.page.locator("li")).to_have_text([re.compile("Two"), re.compile("One")])
