"""The files of the web inbox: cross-origin loading, caching, compression, and import on a server."""

import gzip
import json
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha384
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.answers import codes_of
from tests.support.service import Api
from tocsin.api.assets import asset
from tocsin.api.pages import COMPONENT, script_of, version
from tocsin.cli.commands import app

NAMES = {
    "/inbox.js": ("text/javascript", "inbox.js"),
    "/inbox.js.map": ("application/json", "inbox.js.map"),
    "/inbox.d.ts": ("text/plain", "inbox.d.ts"),
    "/inbox-words-da.json": ("application/json", "inbox-words-da.json"),
    "/inbox-words-de.json": ("application/json", "inbox-words-de.json"),
    "/inbox-worker.js": ("text/javascript", "inbox-worker.js"),
    "/inbox-worker.js.map": ("application/json", "inbox-worker.js.map"),
    f"/inbox-{version()}.js": ("text/javascript", "inbox.js"),
}
ROOT = Path(__file__).parents[2]
WEB, SOURCES = ROOT / "src/tocsin/web", ROOT / "web"
LARGEST = 22_000
"""Size limit of the component in bytes, compressed by gzip."""

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")


@pytest.mark.parametrize("path", NAMES)
async def test_web_files_load_from_any_origin_without_a_token(api: Api, path: str) -> None:
    answer = await api.call("GET", path, headers={"Origin": "https://crm.example.com", "Accept-Encoding": "gzip"})
    media_type, name = NAMES[path]
    assert answer.status_code == 200
    assert answer.headers["content-type"].removesuffix("; charset=utf-8") == media_type
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == asset(name).content
    again = await api.call("GET", path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("GZIP", "gzip"),
        ("br;q=0.5, gzip;q=1.0", "br"),
        ("br;q=0, gzip", "gzip"),
        ("br; q=0.0, gzip;q=0", None),
        ("identity", None),
        ("", None),
    ],
)
async def test_web_files_are_compressed_by_accept_encoding(api: Api, accepted: str, coding: str | None) -> None:
    url = f"{api.http.base_url}/inbox.js"
    async with api.http.stream("GET", url, headers={"Accept-Encoding": accepted}) as answer:
        received = b"".join([part async for part in answer.aiter_raw()])
    assert answer.headers.get("content-encoding") == coding
    assert "Accept-Encoding" in answer.headers["vary"]
    served = asset(COMPONENT)
    assert received == (served.encoded[coding] if coding else served.content)


async def test_only_versioned_web_files_are_cached_as_immutable(api: Api) -> None:
    kept = {path: (await api.call("GET", path)).headers["cache-control"] for path in NAMES}
    versioned = kept.pop(f"/inbox-{version()}.js")
    assert versioned == "public, max-age=31536000, immutable"
    assert set(kept.values()) == {"public, max-age=300"}


@pytest.mark.parametrize("name", ["0.0.1-00000000", "", "latest", version().upper() + "x", version()[:-1]])
async def test_other_version_of_web_file_is_404(api: Api, name: str) -> None:
    assert codes_of(await api.call("GET", f"/inbox-{name}.js")) == (404, [("not_found", None)])


async def test_script_tag_has_served_file_and_integrity(api: Api) -> None:
    line = script_of(str(api.http.base_url).rstrip("/"))
    found = re.fullmatch(r'<script type="module" src="([^"]+)" integrity="sha384-([^"]+)" crossorigin></script>', line)
    assert found
    content = (await api.call("GET", found[1])).content
    assert b64encode(sha384(content).digest()).decode() == found[2]


def test_inbox_css_has_no_duplicate_rules() -> None:
    rules = re.findall(r"^[.:a-z].*\{.{40,}\}$", (SOURCES / "inbox/inbox.css").read_text("utf-8"), re.MULTILINE)
    assert len(rules) > 50
    assert len(set(rules)) == len(rules)


def test_inbox_command_prints_the_script_tag() -> None:
    done = CliRunner().invoke(app, ["inbox", "--url", "https://notify.example.com/"])
    assert done.output == script_of("https://notify.example.com") + "\n"


def test_web_inbox_bundle_is_small() -> None:
    served = asset(COMPONENT)
    assert len(served.encoded["br"]) < len(served.encoded["gzip"]) < LARGEST
    assert gzip.decompress(served.encoded["gzip"]) == served.content


def test_scripts_do_not_build_markup_from_text() -> None:
    sources = [path for path in SOURCES.rglob("*.js") if "node_modules" not in path.parts]
    assert len(sources) > 20
    for source in [*sources, *WEB.glob("*.js")]:
        text = source.read_text("utf-8")
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert way not in text, source


def run(script: str, folder: Path = WEB) -> str:
    """Return what a script prints under node."""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_node
def test_web_inbox_can_be_imported_on_a_server() -> None:
    said = run('const found = await import("./inbox.js"); console.log(Object.keys(found).sort().join())')
    assert said.strip() == "EventParser,Refusal,TocsinInbox"


@needs_node
def test_web_inbox_languages_have_all_words() -> None:
    english = json.loads(run('console.log(JSON.stringify((await import("./inbox/words/en.js")).default))', SOURCES))
    others = {path.stem: json.loads(path.read_text("utf-8")) for path in (SOURCES / "inbox/words").glob("*.json")}
    assert set(others) == {"da", "de"}
    for language, words in others.items():
        assert shape(words) == shape(english), language
        assert list(placeholders(words)) == list(placeholders(english)), language


def shape(words: Any) -> Any:
    """Return the names of words, and how many there are in a list; a text may be one for each plural, too."""
    if isinstance(words, dict):
        return "text" if "other" in words else {name: shape(inner) for name, inner in words.items()}
    return [shape(inner) for inner in words] if isinstance(words, list) else "text"


def placeholders(words: Any, name: str = "") -> Iterator[str]:
    """Return the names of the words that have a number or a time in them."""
    if isinstance(words, dict) and "other" not in words:
        for inner, word in words.items():
            yield from placeholders(word, f"{name}.{inner}")
    elif "{}" in str(words):
        yield name


def test_web_inbox_types_declare_every_word() -> None:
    text = (SOURCES / "inbox/words/en.js").read_text("utf-8")
    words = set(re.findall(r"[{,\n]\s*([a-zA-Z_]+):", text)) - {"one", "other"}
    types = (WEB / "inbox.d.ts").read_text("utf-8")
    typed = types[types.index("export interface Words") : types.index("/** The events of the element.")]
    assert set(re.findall(r"(\w+)\?:", typed)) == words


STREAM = (
    '\ufeffid: 1\nevent: count\ndata: {"unread":1}\n\n: beat\n\n'
    'id: 2\r\nevent: a\r\ndata: {"x":\r\ndata: "é"}\r\n\r\n'
    "retry: 7000\nretry: soon\n"
    "data: 7\r\rdata\n\ndata: no json\n\nid: 3\n\nevent: b\ndata:[]\n\n"
)


@needs_node
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_event_parser_accepts_any_chunk_boundaries(size: int) -> None:
    told = json.loads(
        run(
            f"""const {{ EventParser }} = await import("./inbox.js");
            const bytes = new TextEncoder().encode({json.dumps(STREAM)});
            const [parser, decoder, told] = [new EventParser(), new TextDecoder(), []];
            for (let at = 0; at < bytes.length; at += {size})
              told.push(...parser.push(decoder.decode(bytes.slice(at, at + {size}), {{ stream: true }})));
            console.log(JSON.stringify([parser.retry, ...told]));"""
        )
    )
    assert told == [
        7000,
        {"type": "count", "data": {"unread": 1}, "id": "1"},
        {"type": "a", "data": {"x": "é"}, "id": "2"},
        {"type": "message", "data": 7, "id": "2"},
        {"type": "b", "data": [], "id": "3"},
    ]
