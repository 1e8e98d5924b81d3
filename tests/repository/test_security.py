"""What SECURITY.md says about tests is true, and the rules that no other tool checks."""

import ast
import re
from pathlib import Path

from tests.support.sources import parsed

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text("utf-8")
RISKS = dict(re.findall(r"^\| (API\d+):2023 [^|]*\|(.*)$", SECURITY, re.MULTILINE))
"""The rows of the table of the OWASP API Security Top 10, by the names of the risks."""

SOURCES = sorted((ROOT / "src/tocsin").rglob("*.py"))
HTTP_LIBRARIES = {"aiohttp", "ftplib", "http.client", "httpx", "requests", "smtplib", "urllib.request", "urllib3"}
CONNECTING = {"create_connection", "open_connection", "open_unix_connection", "sock_connect", "urlopen"}
WITHOUT_CHECK = {"eval", "exec", "compile", "__import__"}
LOADERS = {"dill", "marshal", "pickle", "shelve", "yaml"}


def named_in(text: str) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", text))


def test_every_owasp_risk_names_tests_that_exist() -> None:
    tests = (ROOT / "tests").rglob("test_*.py")
    existing = {name for path in tests for name in re.findall(r"def (test_\w+)\(", path.read_text("utf-8"))}
    assert list(RISKS) == [f"API{number}" for number in range(1, 11)]
    assert {risk for risk, row in RISKS.items() if len(named_in(row)) < 3} == set()
    assert named_in(SECURITY) - existing == set()


def imported(module: ast.Module) -> set[str]:
    """Return the modules that a module imports, also those from which it imports a name."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def called(module: ast.Module) -> set[str]:
    """Return the last names of all functions that a module calls."""
    functions = [node.func for node in ast.walk(module) if isinstance(node, ast.Call)]
    names = {function.id for function in functions if isinstance(function, ast.Name)}
    return names | {function.attr for function in functions if isinstance(function, ast.Attribute)}


def test_only_http_client_opens_connections_to_other_hosts() -> None:
    """So that its checks of addresses, sizes and times apply to every request. `.importlinter` covers pycurl."""
    others = {path: parsed(path) for path in SOURCES if path.parent.name != "http_client"}
    found = {
        str(path.relative_to(ROOT)): used
        for path, module in others.items()
        if (used := imported(module) & HTTP_LIBRARIES | called(module) & CONNECTING)
    }
    assert found == {}


def test_service_evaluates_no_code_from_data() -> None:
    found = {
        str(path.relative_to(ROOT)): used
        for path in SOURCES
        if (used := imported(parsed(path)) & LOADERS | builtins_called(parsed(path)))
    }
    assert found == {}


def builtins_called(module: ast.Module) -> set[str]:
    functions = [node.func for node in ast.walk(module) if isinstance(node, ast.Call)]
    return {function.id for function in functions if isinstance(function, ast.Name)} & WITHOUT_CHECK


def test_settings_file_with_secrets_is_not_committed() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
