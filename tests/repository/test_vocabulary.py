"""Names, log lines and error messages use the field's terms and plain words.

Add a word here once the last place that has it is gone.
"""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.built_in import CATALOGUE
from tests.support.sources import parsed
from tocsin.api.app import build
from tocsin.api.openapi import document

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")])
STATEMENTS = sorted(ROOT.glob("src/tocsin/db/queries/*.sql"))
TESTS = sorted(ROOT.glob("tests/**/*.py"))

RETIRED_NAMES = {
    *("house", "houses", "door", "doors", "bell", "rings", "wire", "wires", "road", "roads", "keeper"),
    *(
        "fault",
        "faults",
        "trial",
        "trials",
        "slots",
        "settler",
        "settling",
        "stranger",
        "strangers",
        "telling",
        "tells",
    ),
    *("saying", "whoever", "nobody", "somebody", "everybody", "anybody", "amiss", "mend", "anew", "goodbye", "told"),
    *("bury", "buried", "revive", "lend", "lent", "loan", "decent", "ours", "untold"),
    *("doorbell", "ring", "rung", "ear", "ears", "hear", "live", "elsewhere", "furnish", "furnished", "meanwhile"),
}
"""Words that names of classes and functions must not contain."""

TERMS_OF_TESTS = {"live", "bell", "slots"}
"""Retired words with a technical meaning in tests: live workers, bell and slots of the inbox."""

RETIRED_IN_TESTS = RETIRED_NAMES - TERMS_OF_TESTS | {"tell", "bury", "buried", "alike", "ours", "anothers"}
"""Words that names of tests and of their helpers must not contain."""

MAX_TEST_NAME = 72
"""Characters of the name of a test."""

RETIRED_CONSTANTS = ("MOST_", "LARGEST_", "LONGEST_", "SHORTEST_", "SMALLEST_", "SLOWEST", "AT_ONCE", "ROUND")
"""Prefixes that constants must not have; use `MAX_`, `MIN_`, `DEFAULT_`, `*_TIMEOUT`, `*_INTERVAL`, `*_BATCH_SIZE`."""

RETIRED_PHRASES = re.compile(
    r"\b(?:whoever|somebody|everybody|anybody|names nobody|nobody who|names nothing|anew|amiss|once more|of ours"
    r"|(?:is|are|was|were|be) told|what is no|that there is|goes? on|goes once|broke|hung up"
    r"|(?<!there )(?:is|are) no (?!longer\b)"
    r"|mend|doors?|houses?|bells?|strangers?|twin|elsewhere|furnished|meanwhile|taken for dead|is back|is away|learn of"
    r"|our|us|we)\b",
    re.IGNORECASE,
)
"""Phrases that log lines and error messages must not contain."""

RETIRED_IN_DOCUMENTS = re.compile(
    r"\b(?:whoever|somebody|everybody|anybody|anew|amiss|once more|of ours|what is no|what there is not"
    r"|that there is not"
    r"|(?:is|are|was|were|be) told|tell of|told of|any more|goes? by the"
    r"|stands? (?:at|in(?! for)|for itself|below|above|between)"
    r"|meanwhile|elsewhere|hung up|the road|likewise|neither alone|mend|go on from|nobody but|as it stands)\b",
    re.IGNORECASE,
)
"""Phrases that the documentation must not contain."""

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/*/*.md", "deploy/*.md", "bench/*.md", "packages/*/*.md", "web/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
"""The documentation."""

RETIRED_IN_DOCSTRINGS = re.compile(
    r"\b(?:whoever|whomever|nobody|somebody|everybody|anybody|anew|amiss|of ours|once more|elsewhere|meanwhile|for ever"
    r"|hung up|hangs? up|strangers?|what is no(?! longer)|told|goes on|goes once|tells? whether"
    r"|takes? note|ours?|us|we|whatever|however (?:many|much|long|few)|alike|likewise|lately|any more|decent|asleep"
    r"|lent|lends?|loans?|bury|buried|mends?|doors?|houses?|roads?|faults?|twin|furnish\w*|(?:is|are) none of"
    r"|where (?:it|they|there|nothing|no|that|the|an?|its|their|each|this|these|what)"
    r"|what (?:became|came|comes|there is|was given|was asked))\b",
    re.IGNORECASE,
)
"""Phrases that docstrings, comments and SQL statements must not contain."""

WRITERS = {
    *("debug", "info", "warning", "error", "exception"),  # of a log
    *("field_error", "FieldError", "among", "PydanticCustomError", "Finding", "Stopped", "Refused"),
    *("refuse", "say", "tell", "_refused", "_wrong"),
}
"""Calls whose strings developers and operators read, in addition to raised exceptions."""


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    """Return the nodes of all modules of the service and of its packages, each with its module."""
    return [(path.relative_to(ROOT), node) for path in SOURCES for node in ast.walk(parsed(path))]


def words_of(name: str) -> set[str]:
    """Split `CamelCase` and `snake_case` into words."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)}


def remarks() -> Iterator[tuple[str, str]]:
    """Return all docstrings and comments, also those of statements, with their places."""
    for path in STATEMENTS:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if (comment := line.partition("--")[2]).strip():
                yield f"{path.relative_to(ROOT)}:{number}", comment
    for path in [*SOURCES, *TESTS]:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
                yield f"{path.relative_to(ROOT)}:{token.start[0]}", token.string


def texts_of(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Return the strings of an expression, with their lines."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value.strip():
            yield part.lineno, part.value


def is_writer(node: ast.AST) -> bool:
    """Return whether a call's strings are read by developers or operators."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in WRITERS


def is_message(node: ast.AST) -> bool:
    """Return whether a statement is the `message` of an error class, or the table of validation messages."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"message", "reason", "_CODES", "_UNNAMED"}


def messages() -> Iterator[tuple[str, str]]:
    """Return all strings of log lines and error messages, with their places."""
    for path, node in nodes():
        if isinstance(node, ast.Raise) or is_writer(node) or is_message(node):
            for line, text in texts_of(node):
                yield f"{path}:{line}", text


def test_classes_and_functions_use_no_retired_words() -> None:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = {
        f"{path}:{node.lineno} {node.name}"
        for path, node in nodes()
        if isinstance(node, kinds) and words_of(node.name) & RETIRED_NAMES
    }
    assert not found


def test_statements_use_no_retired_words_in_their_names() -> None:
    names = [
        (path.name, name)
        for path in STATEMENTS
        for name in re.findall(r"^-- name: (\w+)$", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert ("jobs.sql", "move_to_dead_letters") in names
    assert [pair for pair in names if words_of(pair[1]) & RETIRED_NAMES] == []


def test_class_names_are_unique() -> None:
    """The client is checked separately: its errors have the same names as those of the service."""
    places: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for path, node in nodes():
        if isinstance(node, ast.ClassDef):
            places["tocsin_client" in path.parts, node.name].append(f"{path}:{node.lineno}")
    assert not {name: found for (_, name), found in places.items() if len(found) > 1}
    assert len(places) > 100


def test_names_of_tests_use_no_retired_words() -> None:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = [
        (node.name, f"{path.relative_to(ROOT)}:{node.lineno}")
        for path in TESTS
        for node in ast.walk(parsed(path))
        if isinstance(node, kinds)
    ]
    assert not [(place, name) for name, place in names if words_of(name) & RETIRED_IN_TESTS]
    tests = [(name, place) for name, place in names if name.startswith("test_")]
    assert not [(place, name) for name, place in tests if len(name) > MAX_TEST_NAME]
    assert len(tests) > 1000


def test_titles_of_web_tests_use_no_retired_words() -> None:
    sources = [path.read_text("utf-8") for path in ROOT.glob("web/tests/*.test.js")]
    titles = [title for source in sources for title in re.findall(r'^test\("([^"]+)"', source, re.MULTILINE)]
    assert not [title for title in titles if words_of(title) & RETIRED_IN_TESTS]
    assert len(titles) > 30


def test_constants_start_with_no_retired_word() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno} {target.id}"
        for path in SOURCES
        for node in parsed(path).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.startswith(RETIRED_CONSTANTS)
    }
    assert not found


def test_log_lines_and_error_messages_use_plain_words() -> None:
    found = {f"{place} {text}" for place, text in messages() if RETIRED_PHRASES.search(text)}
    assert not found, "\n".join(sorted(found))


def test_docstrings_and_comments_use_plain_words() -> None:
    texts = list(remarks())
    found = {f"{place} {text}" for place, text in texts if RETIRED_IN_DOCSTRINGS.search(text)}
    assert not found, "\n".join(sorted(found))
    assert any("""The queues: jobs are rows""" in text for _, text in texts)
    assert any("so that sessions never deadlock" in text for _, text in texts), "comments of statements"


def test_web_scripts_and_pages_use_plain_words() -> None:
    """All lines count: texts that users read, comments and names."""
    scripts = [path for path in (ROOT / "web").rglob("*") if path.suffix in {".js", ".mjs", ".ts", ".css"}]
    pages = [path for path in (ROOT / "src/tocsin/web").iterdir() if path.suffix in {".css", ".html"}]
    files = [path for path in (*scripts, *pages) if "node_modules" not in path.parts]
    assert {"views.js", "element.js", "demo.js", "inbox.css", "console.css", "demo.html"} <= {
        path.name for path in files
    }
    found = {
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").split("\n"), 1)
        if RETIRED_IN_DOCSTRINGS.search(line)
    }
    assert not found, "\n".join(sorted(found))


def test_fields_of_log_lines_have_one_name_each() -> None:
    """`reason` says why, `hint` what to do; a number of seconds has them in its name."""
    fields = {
        (keyword.arg or "", f"{path}:{node.lineno}")
        for path, node in nodes()
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
        for keyword in node.keywords
    }
    retired = {"remedy", "advice", "why", "message", "cause", "pause", "again_in", "retry_in", "wait"}
    assert {(name, place) for name, place in fields if name in retired} == set()
    assert {name for name, _ in fields} >= {"reason", "hint", "lane", "worker"}


def test_search_finds_messages_of_each_kind() -> None:
    texts = {text for _, text in messages()}
    assert "startup hook failed" in texts  # a log line
    assert "An internal error occurred." in texts  # a message of a class
    assert "must be a UUID" in texts  # validation
    assert "Web push is not configured." in texts  # raised
    assert "synchronize both clocks with NTP" in texts  # the doctor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documentation_uses_plain_words(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`|\[\w+\]\(\w+\.py\)", "", page.read_text("utf-8"), flags=re.DOTALL)
    assert not [line for line in text.split("\n") if RETIRED_IN_DOCUMENTS.search(line)]


def descriptions(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Return all summaries and descriptions of a part of the API document, with their places."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inner:
        if key in {"summary", "description"} and isinstance(found, str):
            yield place, found
        elif key != "examples":
            yield from descriptions(found, f"{place}/{key}")


def test_api_document_uses_plain_words() -> None:
    found = list(descriptions(document(build(), CATALOGUE)))
    assert len(found) > 300
    assert [(place, text) for place, text in found if RETIRED_PHRASES.search(text)] == []
