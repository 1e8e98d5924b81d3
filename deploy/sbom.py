"""Print the software bill of materials of a release, in CycloneDX.

Its components are all packages of requirements.lock and web/package-lock.json. `scope` says what they are for:
`required` is installed with the service, `optional` with an extra, the client or the stand-ins, and `excluded` only
builds and tests them.
"""

import json
import re
import sys
import tomllib
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata, requires
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
WEB_LOCK = ROOT / "web/package-lock.json"
DISTRIBUTIONS = (ROOT, ROOT / "packages/client", ROOT / "packages/phones")

PIN = re.compile(r"^([\w.-]+)==([^\s;]+)((?:[^\n\\]|\\\n)*)", re.MULTILINE)
SHA256 = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Package:
    """A package of a lock file."""

    kind: str
    name: str
    version: str
    scope: ComponentScope
    hashes: tuple[tuple[HashAlgorithm, str], ...]
    license: str | None = None
    needs: frozenset[str] = field(default_factory=frozenset)

    @property
    def url(self) -> PackageURL:
        """The package URL, which identifies the component."""
        namespace, _, name = self.name.rpartition("/")
        return PackageURL(self.kind, namespace or None, name, self.version)


def python_packages() -> Iterator[Package]:
    """Yield the packages of requirements.lock; the virtual environment says which need which."""
    required, optional = scopes()
    for name, version, rest in PIN.findall(LOCK.read_text("utf-8")):
        scope = (
            ComponentScope.REQUIRED
            if name in required
            else ComponentScope.OPTIONAL
            if name in optional
            else ComponentScope.EXCLUDED
        )
        hashes = tuple((HashAlgorithm.SHA_256, each) for each in SHA256.findall(rest))
        yield Package("pypi", name, version, scope, hashes, license_of(name), frozenset(needed_by(name)))


def scopes() -> tuple[set[str], set[str]]:
    """Return the packages that the service needs, and those of its extras and of the other distributions."""
    projects = [tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"] for folder in DISTRIBUTIONS]
    own = {canonicalize_name(project["name"]) for project in projects}
    further = {
        name
        for project in projects
        for group in (project.get("dependencies", []), *project.get("optional-dependencies", {}).values())
        for name in named(group)
    }
    required = closure(named(projects[0]["dependencies"]))
    return required, closure(further) - required - own


def named(requirements: Iterable[str]) -> set[str]:
    """Return the names of the requirements whose markers hold here without an extra."""
    parsed = map(Requirement, requirements)
    return {canonicalize_name(each.name) for each in parsed if not each.marker or each.marker.evaluate({"extra": ""})}


def closure(names: set[str]) -> set[str]:
    """Return these packages and all that they need."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += needed_by(name)
    return found


def needed_by(name: str) -> set[str]:
    """Return the packages that a package needs. One that is not installed on this platform is known to need none."""
    try:
        return named(requires(name) or [])
    except PackageNotFoundError:
        return set()


def license_of(name: str) -> str | None:
    """Return the licence that a package declares: an expression, a short text, or a classifier."""
    try:
        found: PackageMetadata = metadata(name)
    except PackageNotFoundError:
        return None
    classifiers = [
        each.rpartition(" :: ")[2] for each in found.get_all("Classifier", []) if each.startswith("License ::")
    ]
    declared = [*found.get_all("License-Expression", []), *found.get_all("License", []), *classifiers]
    return next((each for each in declared if each and "\n" not in each), None)


def web_packages() -> Iterator[Package]:
    """Yield the packages of web/package-lock.json."""
    found: Mapping[str, Mapping[str, Any]] = json.loads(WEB_LOCK.read_text("utf-8"))["packages"]
    for path, each in found.items():
        if path:
            scope = (
                ComponentScope.EXCLUDED
                if each.get("dev")
                else ComponentScope.OPTIONAL
                if each.get("optional")
                else ComponentScope.REQUIRED
            )
            sha512 = b64decode(each["integrity"].removeprefix("sha512-"), validate=True).hex()
            hashes = ((HashAlgorithm.SHA_512, sha512),)
            name = path.rpartition("node_modules/")[2]
            yield Package("npm", name, each["version"], scope, hashes, each.get("license"))


def bill_of_materials() -> Bom:
    """Return the document, whose subject is the service."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    subject = Package("pypi", project["name"], project["version"], ComponentScope.REQUIRED, (), project["license"])
    packages = {str(package.url): package for package in (*python_packages(), *web_packages())}
    components = {url: component(package, ComponentType.LIBRARY) for url, package in packages.items()}
    python = {package.name: components[url] for url, package in packages.items() if package.kind == "pypi"}
    bom = Bom(components=components.values())
    bom.metadata.component = component(subject, ComponentType.APPLICATION)
    direct = named(project["dependencies"])
    bom.register_dependency(bom.metadata.component, [python[name] for name in sorted(direct & set(python))])
    for url, package in packages.items():
        bom.register_dependency(components[url], [python[name] for name in sorted(package.needs & set(python))])
    return bom


def component(package: Package, kind: ComponentType) -> Component:
    """Return a package as CycloneDX describes it."""
    url = package.url
    return Component(
        type=kind,
        bom_ref=str(url),
        group=url.namespace,
        name=url.name,
        version=package.version,
        purl=url,
        scope=package.scope,
        hashes=[HashType(alg=algorithm, content=value) for algorithm, value in package.hashes],
        licenses=[LicenseFactory().make_from_string(package.license)] if package.license else (),
    )


if __name__ == "__main__":
    sys.stdout.write(JsonV1Dot6(bill_of_materials()).output_as_string(indent=2) + "\n")
