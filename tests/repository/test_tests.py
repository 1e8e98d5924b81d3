"""Structure of the tests: shared code is in tests/support, and fixtures are in a conftest.py."""

import ast
from pathlib import Path

import pytest

from tests.support.sources import parsed

TESTS = Path(__file__).parents[1]
MODULES = sorted(TESTS.rglob("*.py"))


def imported(module: Path) -> set[str]:
    """Return the modules of tests that a module imports."""
    nodes = list(ast.walk(parsed(module)))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.split(".")[0] == "tests"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_test_modules_import_shared_parts_only_from_support(module: Path) -> None:
    assert {name for name in imported(module) if not name.startswith("tests.support")} == set()


def test_fixtures_are_in_test_modules_or_a_conftest() -> None:
    for module in (TESTS / "support").glob("*.py"):
        assert "pytest.fixture" not in module.read_text("utf-8"), module


def test_every_test_folder_is_a_package() -> None:
    """Required for test modules of the same name in two folders."""
    assert {path.parent for path in MODULES if not (path.parent / "__init__.py").exists()} <= {
        TESTS / "api/generators"  # programs on generated clients
    }
