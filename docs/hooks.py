"""Hooks of `make docs`: further pages, links that lead out of docs/, diagrams, and screenshots of both schemes."""

import json
import logging
import posixpath
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from openapi_pages import Document  # noqa: E402 - it is beside this file, which MkDocs loads by its path

log = logging.getLogger("mkdocs.hooks.docs")

TOCSIN = ROOT / ".venv/bin/tocsin"
MERMAID = "assets/mermaid.tiny.js"

# The page of the site: the file it is made of, and the sections taken from it (all of them if none is named).
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "start/quick-start.md": ("README.md", ("The two commands", "A tour of five minutes")),
    "reference/benchmarks.md": ("bench/README.md", ()),
    "reference/changelog.md": ("CHANGELOG.md", ()),
    "concepts/architecture.md": ("ARCHITECTURE.md", ()),
    "concepts/threat-model.md": ("SECURITY.md", ()),
    "concepts/contributing.md": ("CONTRIBUTING.md", ()),
}
DECISIONS = "decisions/index.md"
# Where links to a file of the repository, or to one of its sections, lead in the site.
HOMES = {"README.md": "index.md", "docs/decisions": DECISIONS}
for made, (source, taken) in PAGES.items():
    HOMES |= {f"{source}#{title.lower().replace(' ', '-')}": made for title in taken} or {source: made}

FENCED = re.compile(r"(^ *```.*?^ *```\s*?$)", re.MULTILINE | re.DOTALL)
SCREENSHOT = re.compile(r"!\[([^\[\]]*)\]\(([^()\s]+)-light\.webp\)")
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\((?![a-z]+:|#)([^()\s#]+)(#[^()\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for page, (origin, sections) in PAGES.items():
        text = (ROOT / origin).read_text("utf-8")
        if sections:
            text = "\n\n".join(section(text, title, origin) for title in sections)
        if len(sections) == 1:
            text = text.removeprefix("#")
        elif sections:
            text = f"# {Path(page).stem.replace('-', ' ').capitalize()}\n\n{text}"
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, DECISIONS, content=decisions()))
    return files


@cache
def api_reference() -> dict[str, str]:
    """Return the pages made from the OpenAPI document, which take the place of the files with these names."""
    printed = subprocess.run([TOCSIN, "openapi"], cwd=ROOT, check=True, capture_output=True)
    document = Document(json.loads(printed.stdout))
    return {"reference/api.md": document.operations_page(), "reference/api-schemas.md": document.schemas_page()}


def section(text: str, title: str, origin: str) -> str:
    """Return a section of the second level with its heading; a build without it fails."""
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        log.warning("%s has no section '%s'; change PAGES in docs/hooks.py", origin, title)
        return ""
    return found[0]


def decisions() -> str:
    """Return a page that lists every decision."""
    lines = ["# Decisions", "", "What was decided and why, the alternatives, and what would reverse the decision.", ""]
    for path in sorted((ROOT / "docs/decisions").glob("*.md")):
        title = path.read_text("utf-8").split("\n", 1)[0].lstrip("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page, which are relative to its place in the repository, to their places in the site."""
    here = page.file.src_uri
    markdown = SCREENSHOT.sub(r"![\1](\2-light.webp#only-light)\n![\1](\2-dark.webp#only-dark)", markdown)
    markdown = api_reference().get(here, markdown)
    origin = PAGES[here][0] if here in PAGES else f"docs/{here}"

    def rewritten(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if not (ROOT / path).exists():
            log.warning("%s links to '%s', which does not exist", origin, target)
        home = HOMES.get(path + anchor) or HOMES.get(path) or path.removeprefix("docs/")
        if home != path and files.get_file_from_path(home):
            return f"[{text}]({posixpath.relpath(home, posixpath.dirname(here) or '.')}{anchor})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        return f"`{path}`" if path.endswith(text.strip("`")) else f"{text} (`{path}`)"

    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Load the script that draws diagrams on pages that have one; the theme would fetch it from another host."""
    if 'class="mermaid"' not in output:
        return output
    path = posixpath.relpath(MERMAID, page.url or ".")
    return output.replace('<script id="__config"', f'<script src="{path}"></script><script id="__config"', 1)
