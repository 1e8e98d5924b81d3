"""The package for npm: what `npm pack` makes of `web` is sound, says what it has, and works without a browser."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.events import custom
from tests.support.node import unpacked
from tests.support.programs import run
from tests.support.service import HOUR, SECRET, Api
from tocsin import __version__
from tocsin.auth.minting import mint_user

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/web-component.md"

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
async def package(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the package, where node finds it."""
    return await unpacked(archive, tmp_path_factory.mktemp("package") / "node_modules")


async def test_npm_exports_and_types_resolve_in_every_bundler(sources: Path, archive: Path) -> None:
    status, told = await run(sources, "node_modules/.bin/publint", "--strict")
    assert status == 0, told
    assert "All good!" in told
    status, told = await run(sources, "node_modules/.bin/attw", archive.name, "--profile", "esm-only", "--no-emoji")
    assert status == 0, told


TYPED = """
import type { TocsinInbox } from "tocsin-inbox";
import { InboxClient } from "tocsin-inbox/client";
import da from "tocsin-inbox/words/da";
import de from "tocsin-inbox/words/de";

export function translate(inbox: TocsinInbox) {
  for (const words of [da, de]) {
    inbox.words = words;
    const title: string | undefined = words.title;
    // @ts-expect-error - what has a type is no number
    const number: number = words;
    console.log(title, number, InboxClient);
  }
}
"""


async def test_npm_types_compile_without_skipping_libraries(sources: Path, package: Path) -> None:
    folder = package.parents[1]
    (folder / "typed.ts").write_text(TYPED, "utf-8")
    options = {"module": "esnext", "moduleResolution": "bundler", "target": "es2022", "strict": True, "noEmit": True}
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": ["typed.ts"]}), "utf-8")
    status, told = await run(folder, str(sources / "node_modules/.bin/tsc"))
    assert status == 0, told


async def test_npm_package_contains_only_the_expected_files(package: Path) -> None:
    names = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    entries = {
        f"dist/{name}{end}" for name in ("index", "client", "react", "vue") for end in (".js", ".js.map", ".d.ts")
    }
    words = {f"dist/words/{language}{end}" for language in ("da", "de") for end in (".js", ".d.ts")}
    expected = entries | words | {"package.json", "README.md", "LICENSE", "dist/custom-elements.json"}
    assert {name for name in names if not name.startswith("dist/chunk-")} == expected
    about = json.loads((package / "package.json").read_text("utf-8"))
    assert (about["version"], about["license"]) == (__version__, "Apache-2.0")
    assert "dependencies" not in about
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def named(entries: list[dict[str, Any]]) -> set[str]:
    return {entry["name"] for entry in entries}


def rows_of(section: str) -> set[str]:
    """Return the names in the first column of the table of a section of the page."""
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name.removesuffix("()") for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


async def test_custom_elements_manifest_matches_the_documentation(package: Path) -> None:
    [module] = json.loads((package / "dist/custom-elements.json").read_text("utf-8"))["modules"]
    [element] = module["declarations"]
    assert element["tagName"] == "tocsin-inbox"
    assert named(element["attributes"]) == rows_of("Attributes")
    assert named(element["members"]) == rows_of("Properties and methods")
    assert named(element["events"]) == rows_of("Events")
    assert named(element["slots"]) == rows_of("Slots")
    assert named(element["cssParts"]) == rows_of("Parts")
    assert named(element["cssProperties"]) == rows_of("Custom properties")


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
async def test_documented_words_match_the_english_words() -> None:
    flat = """
        const { default: words } = await import(process.argv[1]);
        const flat = (value, name) =>
          typeof value === "string" ? [[name, value]]
          : Array.isArray(value) ? [[name, value.join("; ")]]
          : value.other ? [[name, `${value.one}; ${value.other}`]]
          : Object.entries(value).flatMap(([key, inner]) => flat(inner, name ? `${name}.${key}` : key));
        console.log(JSON.stringify(flat(words, "")));
    """
    status, told = await run(ROOT, "node", "--input-type=module", "-e", flat, str(ROOT / "web/inbox/words/en.js"))
    assert status == 0, told
    [text] = re.findall(r"^## Words\n(.*)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert re.findall(r"^\| `([\w.]+)` \| (.*) \|$", text, re.MULTILINE) == [
        tuple(row) for row in json.loads(told[told.index("[[") :])
    ]


CLIENT = """
import { InboxClient } from "tocsin-inbox/client";

const [src, token, post] = process.argv.slice(2);
const client = new InboxClient({ src, tokenProvider: () => token });
const seen = [];
const until = (fits) => new Promise((resolve, reject) => {
  setTimeout(() => reject(new Error(JSON.stringify(client.snapshot))), 10_000);
  const look = () => fits(client.snapshot) && resolve();
  client.subscribe(look);
  look();
});
const shown = () => client.snapshot.notifications.map(({ message }) => message.split(" ").at(-1));

client.start();
await until(({ notifications, connection }) => notifications.length === 2 && connection === "live");
seen.push([shown(), client.snapshot.unread]);
await client.markRead(client.snapshot.notifications[1].id);
await until(({ unread }) => unread === 1);
seen.push([shown(), client.snapshot.unread]);
client.remove(client.snapshot.notifications[0].id);
await until(({ notifications, unread }) => notifications.length === 1 && unread === 0);
seen.push([shown(), client.snapshot.unread]);
const { time_zone } = await client.updatePreferences({ time_zone: "Europe/Copenhagen" });
seen.push([time_zone, (await client.preferences()).time_zone, (await client.kinds()).length > 10]);
console.log(JSON.stringify(seen));
client.stop();
"""


async def test_npm_client_lists_marks_and_follows_without_a_page(api: Api, package: Path) -> None:
    await api.people(1)
    for body in ("One", "Two"):
        await api.post(custom(1, body=body))
    folder = package.parents[1]
    (folder / "client.mjs").write_text(CLIENT, "utf-8")
    status, told = await run(folder, "node", "client.mjs", str(api.http.base_url), mint_user(SECRET, 1, HOUR))
    assert status == 0, told
    assert json.loads(told.splitlines()[-1]) == [
        [["Two", "One"], 2],
        [["Two", "One"], 1],
        [["One"], 0],
        ["Europe/Copenhagen", "Europe/Copenhagen", True],
    ]


async def test_npm_package_can_be_imported_on_a_server(package: Path) -> None:
    folder = package.parents[1]
    script = """await import("tocsin-inbox");
        await import("tocsin-inbox/client");
        console.log((await import("tocsin-inbox/words/da")).default.close);"""
    assert await run(folder, "node", "--input-type=module", "-e", script) == (0, "Luk\n")
