"""The web inbox in React and Vue pages, with the code of the documentation."""

import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.support.host_page import Window, Windows, notify, settles, streams
from tests.support.node import installed, run

SOURCES = Path(__file__).parent / "frameworks"
DOCUMENT = Path(__file__).parents[2] / "docs/guides/web-inbox.md"
PAGES = ["react", "vue"]
POLICIES = {"react": "tocsin-inbox", "vue": "tocsin-inbox vue"}


@pytest.fixture(scope="module")
async def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Production builds of both pages around the code of the documentation."""
    folder = await installed(SOURCES, tmp_path_factory.mktemp("pages") / "frameworks")
    shutil.copy(str(files("tocsin.web") / "inbox.d.ts"), folder)
    for language in ("tsx", "vue"):
        [example] = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        (folder / f"Inbox.{language}").write_text(example, "utf-8")
    status, told = await run(folder, "node", "build.mjs")
    assert (status, told) == (0, "")
    return folder


@pytest.fixture(params=PAGES)
async def window(request: pytest.FixtureRequest, pages: Path, windows: Windows) -> Window:
    """One of the pages, with one notification."""
    host = windows.host
    host.script = (pages / "made" / f"{request.param}.js").read_text("utf-8")
    host.trusted = POLICIES[request.param]
    host.body = f'<div id="app" data-service="{host.api}"></div>'
    await notify(host.service, "One")
    window = await windows.new()
    await streams(windows, 1)
    return window


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
