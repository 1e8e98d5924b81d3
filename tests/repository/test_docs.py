"""The documentation and the code name the same settings, commands, routes, codes and metrics."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from prometheus_client import Counter, Gauge, Histogram

from tests.support.built_in import CATALOGUE
from tests.support.sources import parsed
from tocsin import errors, jobs, validation
from tocsin.api.app import build
from tocsin.api.openapi import PROBLEMS, document
from tocsin.cli import commands
from tocsin.errors import Refusal
from tocsin.formats import NotificationLine
from tocsin.metrics import Metrics
from tocsin.push.device_formats import DeviceLine, DeviceWithToken
from tocsin.request_counts import RequestCounts
from tocsin.settings import PREFIX, Settings, read_settings

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"
FENCED = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
ERRORS = (REFERENCE / "errors.md").read_text("utf-8")


def test_settings_and_their_reference_match() -> None:
    page = (REFERENCE / "settings.md").read_text("utf-8")
    documented = set(re.findall(rf"^\| `({PREFIX}\w+)` \|", page, re.MULTILINE))
    assert documented == {PREFIX + name.upper() for name in Settings.model_fields}


def test_documented_defaults_match_the_settings() -> None:
    page = (REFERENCE / "settings.md").read_text("utf-8")
    rows = dict(re.findall(rf"^\| `{PREFIX}(\w+)` \|([^|]*)\|", page, re.MULTILINE))
    for name, field in Settings.model_fields.items():
        documented = rows[name.upper()].strip()
        if re.fullmatch("`[^`]+`", documented):
            default = field.default[0] if isinstance(field.default, tuple) else field.default
            default = "none" if default is None and name.startswith("limit_") else default
            assert documented == f"`{str(default).removesuffix('/')}`", name
        elif not documented:
            assert not field.default, name


def test_commands_and_their_reference_match() -> None:
    page = (REFERENCE / "commands.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `tocsin ([\w-]+)", page, re.MULTILINE))
    there = typer.main.get_command(commands.app)
    assert documented == set(getattr(there, "commands", {}))


def test_every_error_code_is_documented() -> None:
    problems = {problem.status: problem.code for problem in errors.Problem.__subclasses__()}
    documented = dict(re.findall(r"^\| (\d{3}) \| `([\w.]+?)(?:\.\*)?`[^|]* \|", ERRORS, re.MULTILINE))
    conflicts = {conflict.code for conflict in errors.Conflict.__subclasses__()}
    assert {int(status): code for status, code in documented.items()} == {**problems, 409: min(conflicts)}
    assert all(f"`{code}`" in ERRORS for code in conflicts)
    assert {problem.status for problem in PROBLEMS} == set(problems) - {409, 422}


def test_every_route_is_documented() -> None:
    words = " ".join((REFERENCE / "http-api.md").read_text("utf-8").split())
    paths = document(build(), CATALOGUE)["paths"]
    assert len(paths) > 30
    for path in paths:
        pattern = re.sub(r"{\w+}", r":\\w+", path)
        assert re.search(rf"{pattern}(?![\w/])", words), path


def test_documented_validation_codes_match_the_code() -> None:
    [table] = re.findall(r"^## Validation errors\n.*?(?=^## )", ERRORS, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    documented = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert documented == validation.VALIDATION_CODES


def test_metrics_and_their_reference_match() -> None:
    page = (REFERENCE / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(tocsin_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    documented = {(name, kind, *re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows}
    collectors = [each for each in vars(Metrics()).values() if isinstance(each, (Counter, Gauge, Histogram))]
    families: list[Any] = list(RequestCounts(()).collect())
    ours = [(each._name, each._type, each._labelnames) for each in collectors]  # noqa: SLF001 - nothing public has them
    ours += [(each.name, each.type, each._labelnames) for each in families]  # noqa: SLF001 - as above
    ours.append(("tocsin_build_info", "gauge", ("version",)))
    declared = {(f"{name}_total" if kind == "counter" else name, kind, *labels) for name, kind, labels in ours}
    assert documented == declared


def test_documented_log_lines_exist_in_the_code() -> None:
    written = set().union(*(texts(path) for path in (ROOT / "src/tocsin").rglob("*.py")))
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/operations").glob("*.md"))
    lines = set(re.findall(r"(?:has|^\|) `([a-zA-Z][\w;']*(?: [\w;']+)+)`", pages, re.MULTILINE))
    assert len(lines) > 9
    assert {line for line in lines if not any(text.startswith(line) for text in written)} == set()


def texts(path: Path) -> set[str]:
    nodes = ast.walk(parsed(path))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_stream_event_is_documented() -> None:
    page = (REFERENCE / "stream.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    statements = "".join(path.read_text("utf-8") for path in (ROOT / "src/tocsin/db/queries").glob("*.sql"))
    there = {*texts(ROOT / "src/tocsin/streams.py"), *texts(ROOT / "src/tocsin/inbox.py")}
    there |= set(re.findall(r"'(\w+)'", statements))
    assert documented == {"count", "notification", "read", "unread", "deleted", "resync"}
    assert documented <= there


@pytest.mark.parametrize(
    "page", ["concepts/delivery-guarantees.md", "guides/import-and-export.md", "operations/runbooks.md"]
)
def test_documented_retries_of_jobs_match_the_code(page: str) -> None:
    text = " ".join((ROOT / "docs" / page).read_text("utf-8").split())
    retries, minutes = len(jobs.RETRY_DELAYS), round(sum(jobs.RETRY_DELAYS) / 60)
    assert f"retried {retries} times over about {minutes} minutes" in text
    failures = set(re.findall(r"(\d+) times, or its event|failed (\d+) times", text))
    assert {number for found in failures for number in found if number} <= {str(retries + 1)}


@pytest.mark.parametrize("page", ["guides/mobile-apps.md", "reference/errors.md", "reference/python-client.md"])
def test_documented_retries_of_requests_are_the_same(page: str) -> None:
    [row] = re.findall(r"^\|.*no answer.*|^\| network error.*", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"\b[45]\w\w\b", row)) == {"408", "429", "5xx"}


def test_documented_fields_of_an_import_match_the_models() -> None:
    page = (ROOT / "docs/guides/import-and-export.md").read_text("utf-8")
    rows = re.findall(r"^\| `(device|notification)` \| (.*) \|$", page, re.MULTILINE)
    (required, optional), (owner, times) = (
        [set(re.findall(r"`(\w+)`", half)) for half in row.split("optionally")] for _, row in sorted(rows, reverse=True)
    )
    fields = NotificationLine.model_fields
    assert required == {name for name, field in fields.items() if field.is_required()}
    assert optional == set(fields) - required
    assert owner | times == set(DeviceLine.model_fields) - set(DeviceWithToken.model_fields)


def test_documented_event_of_a_shared_type_has_its_kind() -> None:
    page = (REFERENCE / "http-api.md").read_text("utf-8")
    stated = r"`(\w+/\w+)` is posted with the type `(\w+)` and the `data.event` `({.*?})`"
    [(name, type_, event)] = re.findall(stated, page)
    assert name in CATALOGUE.kinds
    assert CATALOGUE.name_of(type_, {"event": json.loads(event)}) == name


def test_code_names_no_kind() -> None:
    named = {kind.name for kind in CATALOGUE.kinds.values()} - {"custom", "inbox"}
    for path in (ROOT / "src/tocsin").rglob("*.py"):
        found = {name for name in named if re.search(rf"[\"']{name}[\"']", path.read_text("utf-8"))}
        assert not found, f"{path.name} names {found}"


DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bench/*.md", "deploy/*.md", "packages/*/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_picture_of_the_documents_exists(page: Path) -> None:
    text = FENCED.sub("", page.read_text("utf-8"))
    for target, anchor in re.findall(r"(?:\]\(|src(?:set)?=\")(?!https?:)([^)#\"]*)(?:#([^)\"]*))?", text):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or linked.suffix != ".md" or anchor in anchors(linked), f"{target}#{anchor}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_settings_that_exist(page: Path) -> None:
    named = re.findall(rf"\b{PREFIX}\w*", page.read_text("utf-8"))
    there = {PREFIX + name.upper() for name in Settings.model_fields}
    assert {name for name in named if not name.endswith("_")} <= there  # `TOCSIN_APNS_...` stands for several


def anchors(page: Path) -> set[str]:
    """Return the anchors that a git host gives the headings of a page."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class TestSettings:
    def test_unknown_setting_is_rejected_and_named(self, tmp_path: Path) -> None:
        with pytest.raises(Refusal, match="TOCSIN_PROT"):
            read_settings({"TOCSIN_PROT": "8080"}, tmp_path / ".env")

    def test_unknown_setting_in_env_file_is_rejected(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("TOCSIN_PROT=8080\n")
        with pytest.raises(Refusal, match="TOCSIN_PROT"):
            read_settings({}, tmp_path / ".env")

    def test_environment_overrides_the_env_file(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("TOCSIN_PORT=1\nTOCSIN_HOST=::1\nOTHER=x\n")
        settings = read_settings({"TOCSIN_PORT": "2"}, tmp_path / ".env")
        assert (settings.port, settings.host) == (2, "::1")

    def test_kubernetes_service_variables_are_ignored(self, tmp_path: Path) -> None:
        injected = {
            "TOCSIN_SERVICE_HOST": "10.0.0.11",
            "TOCSIN_SERVICE_PORT": "8080",
            "TOCSIN_SERVICE_PORT_HTTP": "8080",
            "TOCSIN_PORT": "tcp://10.0.0.11:8080",
            "TOCSIN_PORT_8080_TCP": "tcp://10.0.0.11:8080",
            "TOCSIN_PORT_8080_TCP_PROTO": "tcp",
            "TOCSIN_PORT_8080_TCP_PORT": "8080",
            "TOCSIN_PORT_8080_TCP_ADDR": "10.0.0.11",
        }
        assert read_settings(injected, tmp_path / ".env").port == 8080

    @pytest.mark.parametrize("secret", ["short", "x" * 31, "a-good-secret-of-thirty-two-bytes!!,short"])
    def test_short_secret_is_rejected_without_repeating_it(self, tmp_path: Path, secret: str) -> None:
        with pytest.raises(Refusal, match="TOCSIN_JWT_SECRET") as refused:
            read_settings({"TOCSIN_JWT_SECRET": secret}, tmp_path / ".env")
        assert secret not in str(refused.value)

    @pytest.mark.parametrize("secret", ["x" * 32, "ø" * 16, "secret-" * 5])
    def test_secret_of_32_bytes_is_accepted(self, tmp_path: Path, secret: str) -> None:
        settings = read_settings({"TOCSIN_JWT_SECRET": secret}, tmp_path / ".env")
        assert [each.get_secret_value() for each in settings.jwt_secret] == [secret]

    def test_all_invalid_settings_are_reported(self, tmp_path: Path) -> None:
        with pytest.raises(Refusal, match=r"TOCSIN_PORT.*TOCSIN_LOG_FORMAT"):
            read_settings({"TOCSIN_PORT": "http", "TOCSIN_LOG_FORMAT": "xml"}, tmp_path / ".env")
