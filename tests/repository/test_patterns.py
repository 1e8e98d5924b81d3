"""Every regular expression of the package runs in linear time."""

import ast
import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from re import _constants as sre
from re import _parser as sre_parser
from typing import Any

import pytest

import tocsin
from tests.support.sources import parsed

ROOT = Path(tocsin.__file__).parent
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
LONG, SHORT = 2**13, 2**11
METHODS = ("fullmatch", "match", "search", "sub", "split", "findall", "finditer")
SEPARATORS = ("", "-", ".", "/", ":", " ", "=", "(", "\n")
TAILS = ("", "!", "\0", "\n")
REPRESENTATIVES = {
    sre.CATEGORY_DIGIT: "1",
    sre.CATEGORY_WORD: "a_",
    sre.CATEGORY_SPACE: " ",
    sre.CATEGORY_NOT_DIGIT: "a",
    sre.CATEGORY_NOT_WORD: "-",
    sre.CATEGORY_NOT_SPACE: "a/",
}


def patterns() -> dict[str, re.Pattern[Any]]:
    """Return all patterns of the modules of the package, by their place."""
    found: dict[str, re.Pattern[Any]] = {}
    for module in pkgutil.walk_packages(tocsin.__path__, "tocsin."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            for position, pattern in enumerate(_patterns_in(value)):
                found.setdefault(f"{pattern.pattern!r} of {module.name}.{name}.{position}", pattern)
    return {name: pattern for name, pattern in found.items() if not name.startswith("'' of")}


def _patterns_in(value: Any) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        yield from _patterns_in(list(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _patterns_in(each)


PATTERNS = patterns()


def methods_of(where: str) -> list[str]:
    """Return the methods by which a pattern is used in the sources; all methods if unknown."""
    name = where.rpartition(" of ")[2].split(".")[-2]
    used = {
        found[1] for source in SOURCES.values() for found in re.finditer(rf"\b{name}\.({'|'.join(METHODS)})\(", source)
    }
    return sorted(used) or ["fullmatch", "search", "sub"]


def characters(members: Any) -> str:
    """Return characters that stand for those of a class."""
    found = ""
    negated = False
    for operation, argument in members:
        if operation is sre.NEGATE:
            negated = True
        elif operation is sre.LITERAL:
            found += chr(argument)
        elif operation is sre.RANGE:
            found += chr(argument[0])
        elif operation is sre.CATEGORY:
            found += REPRESENTATIVES[argument]
    if negated:
        return "".join(each for each in "a1-/: " if each not in found) or "a"
    return found


def walked(tree: Any, variant: int, before: str) -> Iterator[tuple[str, str]]:  # noqa: C901 - a case per operation
    """Yield, of a pattern's tree, each prefix that matches so far, and what was repeated last."""
    text = before
    for operation, argument in tree:
        piece = ""
        match operation:
            case sre.LITERAL:
                piece = chr(argument)
            case sre.NOT_LITERAL | sre.ANY:
                piece = "a"
            case sre.IN:
                choice = characters(argument)
                piece = choice[variant % len(choice)]
            case sre.SUBPATTERN:
                yield from walked(argument[3], variant, text)
                piece = sample(argument[3], variant)
            case sre.ATOMIC_GROUP:
                yield from walked(argument, variant, text)
                piece = sample(argument, variant)
            case sre.ASSERT | sre.ASSERT_NOT:
                yield from walked(argument[1], variant, text)
            case sre.BRANCH:
                for branch in argument[1]:
                    yield from walked(branch, variant, text)
                piece = sample(argument[1][variant % len(argument[1])], variant)
            case sre.MAX_REPEAT | sre.MIN_REPEAT | sre.POSSESSIVE_REPEAT:
                least, _, body = argument
                yield from walked(body, variant, text)
                unit = sample(body, variant)
                yield text, unit
                piece = unit * max(least, 1)
        text += piece
        yield text, piece


def sample(tree: Any, variant: int) -> str:
    """Return a text that a pattern's tree matches, or nearly."""
    text = ""
    for text, _ in walked(tree, variant, ""):  # noqa: B007 - the last one is the whole
        pass
    return text


def hostile(pattern: re.Pattern[Any]) -> Iterator[Callable[[int], Any]]:
    """Yield what makes texts of any size of a pattern's own prefixes."""
    tree = sre_parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG)
    units = {pair for variant in range(4) for pair in walked(tree, variant, "")}
    recipes = {(prefix, unit, tail) for prefix, unit in units for tail in TAILS if unit}
    recipes |= {("", prefix + between, tail) for prefix, _ in units if prefix for between in SEPARATORS for tail in "!"}
    for prefix, unit, tail in sorted(recipes):
        yield partial(_text, pattern, prefix, unit, tail)


def _text(pattern: re.Pattern[Any], prefix: str, unit: str, tail: str, size: int) -> Any:
    text = prefix + unit * (size // len(unit)) + tail
    return text.encode("latin-1", "replace") if isinstance(pattern.pattern, bytes) else text


def seconds(pattern: re.Pattern[Any], method: str, text: Any) -> float:
    """Return the processor time of a pattern for a text."""
    act = getattr(pattern, method)
    arguments = (text[:0], text) if method == "sub" else (text,)
    least = float("inf")
    for _ in range(3):
        began = time.thread_time()
        found = act(*arguments)
        if method == "finditer":
            list(found)
        least = min(least, time.thread_time() - began)
        if least < 0.001:
            break
    return least


def grows_faster_than_its_text(pattern: re.Pattern[Any], method: str, make: Callable[[int], Any]) -> bool:
    """Return whether four times the text takes more than nine times as long: linear is four, quadratic sixteen."""
    simple = seconds(re.compile(r"(?:a|b)*+"), "fullmatch", "ab" * (SHORT // 2))
    if seconds(pattern, method, make(SHORT)) < 20 * simple:
        return False
    return all(seconds(pattern, method, make(LONG)) > 9 * seconds(pattern, method, make(SHORT)) for _ in range(3))


def test_regular_expressions_are_module_constants() -> None:
    for path, source in SOURCES.items():
        tree = parsed(path)
        tops = [top for top in tree.body if not isinstance(top, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)]
        at_the_top = {id(node) for top in tops for node in ast.walk(top)}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and node.func.attr != "escape":
                assert node.func.attr == "compile", f"{path.name}:{node.lineno} uses a pattern without a name"
                assert id(node) in at_the_top, f"{path.name}:{node.lineno} makes a pattern when it is called"
        assert "regex_engine" not in source, f"{path.name}: pydantic's own engine is linear, that of Python is not"
    assert len(PATTERNS) > 50


@pytest.mark.parametrize("where", PATTERNS)
def test_regular_expressions_run_in_linear_time(where: str) -> None:
    pattern = PATTERNS[where]
    for method in methods_of(where):
        for make in hostile(pattern):
            text = repr(make(100))
            assert not grows_faster_than_its_text(pattern, method, make), f"{method} of {text} and so on"


@pytest.mark.slow
@pytest.mark.parametrize("quadratic", [r"\beyJ[\w-]+\.[\w-]+", r"[a-z0-9_-]*[a-z][a-z0-9_-]*!", r"\s+$"])
def test_superlinear_regular_expression_is_detected(quadratic: str) -> None:
    pattern = re.compile(quadratic)
    uses = [(method, make) for method in ("search", "fullmatch") for make in hostile(pattern)]
    assert any(grows_faster_than_its_text(pattern, method, make) for method, make in uses)
