"""The Helm chart: its values, schema and times, and its objects where Helm is installed."""

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml  # type: ignore[import-untyped]
from starlette.routing import Route

from tests.support.programs import run
from tocsin import jobs, store
from tocsin.api.operations import watching
from tocsin.api.server import GRACE
from tocsin.cli import commands
from tocsin.db import migrate
from tocsin.db.connections import STATEMENT_TIMEOUT
from tocsin.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/tocsin"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
TEMPLATES = {path.name: path.read_text("utf-8") for path in (CHART / "templates").iterdir()}
EVERYTHING = "\n".join(TEMPLATES.values())

OF_THE_CHART = {"DATABASE_URL", "HOST", "PORT", "OPERATIONS_PORT"}
OF_THE_EMBEDDED_DATABASE = {"DATA_DIR", "MIN_FREE_DISK", "ARCHIVE_DIR", "ARCHIVE_COMMAND"}
SECRET = {"JWT_SECRET", "REPLICA_URL"}
WITHOUT_WORKERS = {"READ_ONLY"}

SMALL: dict[str, Any] = {"database": {"existingSecret": "tocsin", "key": "TOCSIN_DATABASE_URL"}}
LARGE: dict[str, Any] = {
    "image": {"repository": "registry.example.com/tocsin", "tag": "1", "pullSecrets": [{"name": "registry"}]},
    "database": {"existingSecret": "pg-app", "key": "uri"},
    "existingSecrets": ["tocsin"],
    "settings": {"TOCSIN_PUBLIC_URL": "https://notify.example.com", "TOCSIN_RETENTION_DAYS": 30},
    "files": {"existingSecret": "tocsin-files"},
    "api": {"autoscaling": {"enabled": True}},
    "worker": {"autoscaling": {"enabled": True}},
    "topologyKeys": [],
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "tls"},
    "serviceMonitor": {"enabled": True},
    "networkPolicy": {"enabled": True, "egress": [{"ports": [{"port": 5432}]}]},
}


def paths(values: Any, above: str = "") -> Iterator[str]:
    """Yield the paths of all values that are no mappings, or empty ones."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from paths(value, f"{above}.{name}" if above else name)
    else:
        yield above


def used() -> set[str]:
    """Return the paths of the values that templates use. `.values` of the shared part are those of both deployments."""
    found = set(re.findall(r"\.Values\.([\w.]+)", EVERYTHING)) - {"api", "worker"}
    own = re.findall(r"[^.\w]\.values\.([\w.]+)", EVERYTHING)
    return found | {f"{part}.{path}" for part in ("api", "worker") for path in own}


def default(path: str) -> Any:
    value: Any = VALUES
    for name in path.split("."):
        value = value[name]
    return value


def test_chart_has_the_version_of_the_release() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    released = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert (chart["apiVersion"], chart["type"], chart["name"]) == ("v2", "application", CHART.name)
    assert chart["appVersion"] == released
    assert re.fullmatch(r"\d+\.\d+\.\d+", chart["version"])


def test_every_value_is_used_and_every_used_value_exists() -> None:
    for path in used():
        default(path)
    unused = [path for path in paths(VALUES) if not any(f"{path}.".startswith(f"{each}.") for each in used())]
    assert unused == []


def test_schema_has_the_values_of_the_chart() -> None:
    def compare(schema: dict[str, Any], values: dict[str, Any], path: str = "") -> None:
        if "properties" in schema:
            assert set(schema["properties"]) - {"global"} == set(values), path
            assert schema["additionalProperties"] is False, path
            for name, value in values.items():
                compare(schema["properties"][name], value, f"{path}.{name}")

    compare(SCHEMA, VALUES)
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"database": {"existingSecret": "tocsin", "key": "uri"}}, ""),
        ({}, "''"),
        ({"replicas": 3}, "replicas"),
        ({"settings": {"TOCSIN_RETENTION_DAY": 30}}, "TOCSIN_RETENTION_DAY"),
        ({"settings": {"TOCSIN_JWT_SECRET": "secret"}}, "TOCSIN_JWT_SECRET"),
        ({"stopSeconds": 10}, "10"),
    ],
)
def test_schema_refuses_values_that_the_chart_does_not_know(given: dict[str, Any], refused: str) -> None:
    database = {} if not refused or "''" in refused else SMALL
    errors = list(jsonschema.Draft7Validator(SCHEMA).iter_errors({**VALUES, **database, **given}))
    assert [refused in error.message for error in errors] == ([True] if refused else [])


def test_schema_has_the_settings_that_a_pod_can_have() -> None:
    left_out = OF_THE_CHART | OF_THE_EMBEDDED_DATABASE | SECRET | WITHOUT_WORKERS
    there = {f"TOCSIN_{name}" for name in {name.upper() for name in Settings.model_fields} - left_out}
    assert set(SCHEMA["properties"]["settings"]["propertyNames"]["enum"]) == there


def test_pods_are_stopped_later_than_the_service_stops_itself() -> None:
    assert "terminationGracePeriodSeconds: {{ add $root.Values.stopSeconds .preStopSeconds }}" in EVERYTHING
    composed = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text("utf-8"))
    assert f"{default('stopSeconds')}s" == composed["x-tocsin"]["stop_grace_period"]
    assert SCHEMA["properties"]["stopSeconds"]["minimum"] >= GRACE + STATEMENT_TIMEOUT
    assert default("api.preStopSeconds") >= 5  # a load balancer needs some seconds to learn that a pod ends


def test_start_may_last_as_long_as_the_service_waits_for_the_database() -> None:
    [startup] = re.findall(r"startupProbe:\n.*\n +periodSeconds: (\d+)\n +failureThreshold: (\d+)", EVERYTHING)
    assert int(startup[0]) * int(startup[1]) >= store.START_TIMEOUT + migrate.WAIT_TIMEOUT


def test_probes_and_commands_exist() -> None:
    probed = set(re.findall(r"httpGet: {path: (/\w+),", EVERYTHING))
    assert probed == {"/healthz", "/readyz"}
    assert probed <= {route.path for route in watching.routes if isinstance(route, Route)}
    there = set(getattr(typer.main.get_command(commands.app), "commands", {}))
    assert set(re.findall(r'"args" \(list "(\w+)"', EVERYTHING)) == {"serve", "worker"}
    assert {"serve", "worker", *re.findall(r"args: \[(\w+)\]", EVERYTHING)} <= there


def test_pods_get_no_variables_of_services_which_would_be_settings() -> None:
    assert "enableServiceLinks: false" in TEMPLATES["_helpers.tpl"]


def test_pods_run_as_the_user_of_the_image() -> None:
    [user] = re.findall(r"useradd .*--uid (\d+)", (ROOT / "deploy/Dockerfile").read_text("utf-8"))
    assert f"runAsUser: {user}\n" in TEMPLATES["_helpers.tpl"]


def test_workers_are_added_before_their_jobs_are_late() -> None:
    targets = default("worker.autoscaling.oldestSeconds")
    assert set(targets) == set(jobs.LATE)
    assert all(seconds < jobs.LATE[queue] for queue, seconds in targets.items())


def test_notes_count_the_connections_of_the_docs() -> None:
    page = (ROOT / "docs/operations/scale.md").read_text("utf-8")
    [documented] = re.findall(r"`serve` process uses up to (\d+) connections, a `worker` up to (\d+)", page)
    assert re.findall(r"mul (\d+) ", TEMPLATES["NOTES.txt"]) == list(documented)


@pytest.mark.processes
@pytest.mark.skipif(not shutil.which("helm"), reason="there is no helm: https://helm.sh/docs/intro/install/")
class TestWithHelm:
    async def made(self, folder: Path, values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the objects that Helm makes, by kind and name."""
        (folder / "values.yaml").write_text(yaml.safe_dump(values))
        chart = ("template", "tocsin", str(CHART), "--namespace", "prod", "--values", "values.yaml")
        status, output = await run(folder, "helm", *chart)
        assert status == 0, output
        objects = [each for each in yaml.safe_load_all(output) if each and "kind" in each]
        return {(each["kind"], each["metadata"]["name"]): each for each in objects}

    @pytest.mark.parametrize("values", [SMALL, LARGE], ids=["small", "large"])
    async def test_helm_accepts_the_chart(self, tmp_path: Path, values: dict[str, Any]) -> None:
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        status, output = await run(tmp_path, "helm", "lint", str(CHART), "--strict", "--values", "values.yaml")
        assert status == 0, output

    async def test_helm_refuses_a_release_without_a_database(self, tmp_path: Path) -> None:
        status, output = await run(tmp_path, "helm", "template", "tocsin", str(CHART))
        assert status != 0
        assert "existingSecret" in output

    async def test_pods_are_probed_and_may_write_nothing_but_their_temporary_files(self, tmp_path: Path) -> None:
        for values in (SMALL, LARGE):
            made = await self.made(tmp_path, values)
            pods = {
                name: each["spec"]["template"]["spec"]
                for (kind, name), each in made.items()
                if kind in {"Deployment", "Job"}
            }
            assert set(pods) == {"tocsin-api", "tocsin-worker", "tocsin-migration"}
            for pod in pods.values():
                [container] = pod["containers"]
                assert container["securityContext"]["readOnlyRootFilesystem"]
                assert pod["securityContext"]["runAsNonRoot"]
                assert {"requests", "limits"} <= set(container["resources"])
                for volume in container["volumeMounts"]:
                    assert volume["mountPath"] == "/tmp" or volume["readOnly"]  # noqa: S108 - of a container
            for name, port in (("tocsin-api", 8080), ("tocsin-worker", 9090)):
                [container] = pods[name]["containers"]
                ports = {each["name"]: each["containerPort"] for each in container["ports"]}
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    assert ports[container[probe]["httpGet"]["port"]] == port
            assert pods["tocsin-api"]["terminationGracePeriodSeconds"] == 70
            assert pods["tocsin-worker"]["terminationGracePeriodSeconds"] == 60

    async def test_services_and_budgets_select_the_pods(self, tmp_path: Path) -> None:
        made = await self.made(tmp_path, LARGE)
        labels = {
            name: each["spec"]["template"]["metadata"]["labels"]
            for (kind, name), each in made.items()
            if kind == "Deployment"
        }
        for (kind, name), each in made.items():
            if kind in {"Service", "PodDisruptionBudget", "NetworkPolicy"}:
                spec = each["spec"]
                selector = spec.get("podSelector", spec.get("selector"))
                wanted = selector.get("matchLabels", selector).items()
                found = {pod for pod, given in labels.items() if wanted <= given.items()}
                assert found == ({name} if name in labels else set(labels)), (kind, name)

    async def test_replicas_are_left_to_an_autoscaler(self, tmp_path: Path) -> None:
        fixed, scaled = await self.made(tmp_path, SMALL), await self.made(tmp_path, LARGE)
        for name in ("tocsin-api", "tocsin-worker"):
            assert fixed["Deployment", name]["spec"]["replicas"] == 2
            assert "replicas" not in scaled["Deployment", name]["spec"]
            assert scaled["HorizontalPodAutoscaler", name]["spec"]["scaleTargetRef"]["name"] == name
        keda = {**LARGE, "worker": {"autoscaling": {"enabled": True, "kind": "ScaledObject"}}}
        made = await self.made(tmp_path, keda)
        assert ("HorizontalPodAutoscaler", "tocsin-worker") not in made
        assert made["ScaledObject", "tocsin-worker"]["spec"]["scaleTargetRef"]["name"] == "tocsin-worker"

    async def test_schema_is_migrated_before_each_install_and_upgrade(self, tmp_path: Path) -> None:
        job = (await self.made(tmp_path, SMALL))["Job", "tocsin-migration"]
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate"]
