"""The documentation site: strict build, complete, and without requests to other hosts."""

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from playwright.async_api import Browser, expect

from tests.support.programs import locked_environment
from tests.support.programs import run as run_program

ROOT = Path(__file__).parents[2]
TOCSIN = ROOT / ".venv/bin/tocsin"
ELSEWHERE = ("http:", "https:", "//")

pytestmark = pytest.mark.processes


async def run(folder: Path, *command: str) -> tuple[int, str]:
    return await run_program(folder, *command, seconds=300, NO_MKDOCS_2_WARNING="1")


@pytest.fixture(scope="module")
async def mkdocs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The program of the locked versions, in a virtual environment of its own."""
    folder = tmp_path_factory.mktemp("mkdocs")
    yield str(await locked_environment(folder, ROOT / "docs/requirements.lock", seconds=300) / "mkdocs")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def site(mkdocs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    status, told = await run(ROOT, mkdocs, "build", "--quiet", "--strict", "--site-dir", str(folder))
    assert status == 0, told
    return folder


def tree_in(folder: Path) -> Path:
    """Make a repository whose docs can be changed."""
    for path in ROOT.iterdir():
        if path.name not in {"docs", "mkdocs.yml"}:
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    return folder


class Html(HTMLParser):
    """The ids of a page, the targets of its links, and the resources that a browser loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif "src" in given or "href" in given:
            self.loaded.append(given.get("src") or given["href"])


def test_every_link_of_the_site_resolves_with_its_anchor(site: Path) -> None:
    pages = {path: Html(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > len(list(ROOT.glob("docs/**/*.md")))
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target in pages, f"{path}: {link}"
            assert not parts.fragment or unquote(parts.fragment) in pages[target].ids, f"{path}: {link}"


def test_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for path in site.rglob("*.html"):
        loaded = Html(path).loaded
        assert loaded
        assert not [source for source in loaded if source.startswith(ELSEWHERE)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:|//)", path.read_text("utf-8")), path


def test_site_is_searchable_and_has_both_colour_schemes(site: Path) -> None:
    found = {entry["location"] for entry in json.loads((site / "search/search_index.json").read_text("utf-8"))["docs"]}
    for name in ("reference/settings/", "guides/push/#retries", "reference/api/#post_event"):
        assert name in found
    start = (site / "index.html").read_text("utf-8")
    assert 'src="assets/demo-light.webp#only-light"' in start
    assert 'src="assets/demo-dark.webp#only-dark"' in start
    assert set(re.findall(r'data-md-color-media="[^"]*" data-md-color-scheme="(\w+)"', start)) == {"default", "slate"}


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


async def test_diagrams_render_without_requests_to_other_hosts(site: Path, address: str, chromium: Browser) -> None:
    context = await chromium.new_context()
    page = await context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    drawn = 0
    for path in sorted(site.rglob("index.html")):
        if diagrams := path.read_text("utf-8").count('class="mermaid"'):
            await page.goto(f"{address}{path.parent.relative_to(site)}/")
            await expect(page.locator("div.mermaid")).to_have_count(diagrams)
            await expect(page.locator("pre.mermaid")).to_have_count(0)
            boxes = [await each.bounding_box() for each in await page.locator("div.mermaid").all()]
            assert all(box and box["height"] > 50 for box in boxes), path
            drawn += diagrams
    await context.close()
    assert drawn >= 8
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_api_reference_has_every_operation_and_schema(site: Path) -> None:
    document = json.loads(subprocess.run([TOCSIN, "openapi"], check=True, capture_output=True).stdout)
    operations = {each["operationId"] for path in document["paths"].values() for each in path.values()}
    assert operations <= Html(site / "reference/api/index.html").ids
    schemas = {name.lower() for name in document["components"]["schemas"]}
    assert schemas <= Html(site / "reference/api-schemas/index.html").ids


BROKEN = ("nowhere.md", "push.md#nothing", "../../src/tocsin/nothing.py", "../../README.md#nothing")


@pytest.fixture(scope="module")
async def failed_build(mkdocs: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a build prints that fails because of the links of `BROKEN`."""
    tree = tree_in(tmp_path_factory.mktemp("broken"))
    with (tree / "docs/guides/outbox.md").open("a", encoding="utf-8") as page:
        page.writelines(f"\n[This]({link}) is broken.\n" for link in BROKEN)
    status, told = await run(tree, mkdocs, "build", "--strict", "--site-dir", str(tree / "made"))
    assert status
    return told


@pytest.mark.parametrize("link", BROKEN)
async def test_broken_link_fails_the_site_build(failed_build: str, link: str) -> None:
    """A warning fails a strict build; the build without these links has none."""
    warnings = [line for line in failed_build.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == len(BROKEN), failed_build
    assert [line for line in warnings if link.rsplit("/", 1)[-1].removeprefix("README.md") in line]


async def test_links_to_source_files_use_the_repository_url_if_set(mkdocs: str, site: Path, tmp_path: Path) -> None:
    tree = tree_in(tmp_path)
    name = "src/tocsin/catalogue/kinds.toml"
    page = "guides/custom-kinds/index.html"
    assert f"<code>{name}</code>" in (site / page).read_text("utf-8")
    with (tree / "mkdocs.yml").open("a", encoding="utf-8") as config:
        config.write("repo_url: https://git.example.com/tocsin\n")
    status, told = await run(tree, mkdocs, "build", "--quiet", "--strict", "--site-dir", str(tree / "made"))
    assert status == 0, told
    assert f"https://git.example.com/tocsin/blob/main/{name}" in Html(tree / "made" / page).links
