"""Files for operators: metrics, alerts, runbooks, proxies, systemd unit, image, backup and restore."""

import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import typer.main
import yaml  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route

from tests.support.answers import assert_page_headers
from tests.support.events import custom
from tests.support.processes import TOCSIN, Program, data_folder, kill_postgres
from tests.support.servers import free_port
from tests.support.service import HOUR, SECRET, Api, serving
from tests.support.waiting import until
from tocsin.api.connections import Patience
from tocsin.api.operations import watching
from tocsin.api.protocol import MAX_HEAD_BYTES
from tocsin.auth.minting import mint_service, mint_user
from tocsin.catalogue import Catalogue
from tocsin.cli import commands
from tocsin.db.pool import Database
from tocsin.metrics import Metrics
from tocsin.push import deliveries
from tocsin.push.channels import Refused
from tocsin.settings import Settings, read_settings
from tocsin_client import Client

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OPERATIONS = ROOT / "docs/operations"
HOST = "notify.example.com"
TOKEN = "c0ffee" * 8


def needs(program: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(program), reason=f"there is no {program}: apt-get install {package}")


def has_compose() -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None
        and not subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode
    )


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text("utf-8")


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(text_of("alerts.yml"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def queries_of_the_dashboard() -> list[str]:
    board = json.loads(text_of("grafana.json"))
    variables = [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    return variables + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


async def run(*command: object, cwd: Path = ROOT, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode or 0, out.decode()


class TestMonitoring:
    @pytest.fixture
    async def exposed(self, database: Database) -> dict[str, set[str]]:
        """The labels of every series that a process exposes, by its name."""
        metrics = Metrics()
        metrics.request("GET", "/notifications", 200, 0.1)
        metrics.failure("direct queue", "the disk is full")
        metrics.rate_limited("user-requests")
        metrics.request_refused("overload")
        metrics.inbox_read("replica")
        metrics.connection_dropped("idle")
        metrics.watch_pool("api", database)
        metrics.cell_worked("north", is_worked=True)
        metrics.job("deliver", "done")
        metrics.push("apns/default", "delivered", 0.1)
        metrics.answer("apns/default", Refused("400 BadTopic"))
        await deliveries.enter_lane(database, "apns/default", "x")
        families = text_string_to_metric_families((await metrics.text(database, ["the disk is full"])).decode())
        samples = [sample for family in families for sample in family.samples]
        return {sample.name: set(sample.labels) for sample in samples}

    async def test_metrics_of_alerts_and_dashboard_exist_with_their_labels(self, exposed: dict[str, set[str]]) -> None:
        for query in [*queries_of_the_dashboard(), *(rule["expr"] for rule in rules())]:
            for name, selector in re.findall(r"\b(tocsin_\w+|up\b)(?:\{([^}]*)\})?", query):
                assert name == "up" or name in exposed, query
                labels = set(re.findall(r"(\w+) *=", selector)) - {"job", "instance"}
                assert labels <= exposed.get(name, set()), query
            for grouped in re.findall(r"by \(([^)]*)\)", query):
                known = {label for name in re.findall(r"tocsin_\w+", query) for label in exposed[name]}
                assert set(grouped.split(", ")) <= known | {"instance"}, query

    async def test_chart_adds_workers_by_a_metric_that_exists(self, exposed: dict[str, set[str]]) -> None:
        scaling = text_of("helm/tocsin/templates/autoscaling.yaml")
        assert set(re.findall(r"\btocsin_\w+", scaling)) == {"tocsin_jobs_oldest_seconds"}
        assert set(re.findall(r"(\w+)(?:=\"|: ){{ \$queue", scaling)) == exposed["tocsin_jobs_oldest_seconds"]

    async def test_every_metric_is_on_the_dashboard(self, exposed: dict[str, set[str]]) -> None:
        shown = " ".join(queries_of_the_dashboard())
        families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed}
        assert {name for name in families if name not in shown} == set()

    def test_metrics_have_no_created_series(self, exposed: dict[str, set[str]]) -> None:
        assert not [name for name in exposed if name.endswith("_created")]

    async def test_requests_are_counted_by_path_template(self, api: Api) -> None:
        await api.people(1)
        posted = await api.post(custom(1))
        await api.as_user(1, "GET", f"/notifications/{posted}")
        await api.as_user(1, "GET", "/notifications")
        await api.call("GET", "/nowhere/at/all")
        text = (await api.as_service("GET", "/metrics", "operations")).text
        families = text_string_to_metric_families(text)
        routes = {s.labels["route"] for f in families for s in f.samples if s.name == "tocsin_http_requests_total"}
        assert {"/notifications/{notification_id}", "/notifications", "/events", "none"} <= routes
        assert not any(posted in route or "nowhere" in route for route in routes)

    def test_outcome_labels_match_the_code(self) -> None:
        code = "".join((ROOT / "src/tocsin" / name).read_text("utf-8") for name in ("worker.py", "push/deliveries.py"))
        for query in [*queries_of_the_dashboard(), *(rule["expr"] for rule in rules())]:
            for values in re.findall(r"(?:outcome|state)=~?\"([^\"]*)\"", query):
                assert all(f'"{value}"' in code for value in values.split("|")), query

    def test_every_alert_has_a_runbook_and_every_runbook_an_alert(self) -> None:
        runbooks = re.findall(r"^## (Tocsin\w+)$", (OPERATIONS / "runbooks.md").read_text("utf-8"), re.MULTILINE)
        assert [rule["alert"] for rule in rules()] == runbooks
        for rule in rules():
            assert rule["annotations"]["runbook"] == f"docs/operations/runbooks.md#{rule['alert'].lower()}"
            assert rule["labels"]["severity"] in {"page", "ticket"}

    def test_every_alert_is_tested_firing_and_silent(self) -> None:
        quiet, loud = yaml.safe_load(text_of("alerts_test.yml"))["tests"]
        names = [rule["alert"] for rule in rules()]
        assert [case["alertname"] for case in quiet["alert_rule_test"]] == names
        assert not any("exp_alerts" in case for case in quiet["alert_rule_test"])
        assert [case["alertname"] for case in loud["alert_rule_test"] if case["exp_alerts"]] == names

    @needs("promtool", "prometheus")
    async def test_promtool_accepts_the_rules_and_alerts_fire(self) -> None:
        for command in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")):
            status, words = await run("promtool", *command, cwd=DEPLOY)
            assert status == 0, words

    def test_dashboard_panels_do_not_overlap(self) -> None:
        panels = json.loads(text_of("grafana.json"))["panels"]
        cells = [
            (place["x"] + across, place["y"] + down)
            for place in (panel["gridPos"] for panel in panels)
            for across in range(place["w"])
            for down in range(place["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert max(across for across, _ in cells) < 24
        assert len({panel["id"] for panel in panels}) == len(panels)


class TestNames:
    def test_every_named_setting_exists(self) -> None:
        pages = [path for path in (*DEPLOY.rglob("*"), *OPERATIONS.iterdir()) if path.is_file()]
        there = {f"TOCSIN_{name.upper()}" for name in Settings.model_fields}
        for page in pages:
            assert set(re.findall(r"\bTOCSIN_\w+", page.read_text("utf-8"))) <= there, page.name

    def test_every_named_command_exists(self) -> None:
        there = set(getattr(typer.main.get_command(commands.app), "commands", {}))
        pages = [path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")]
        named = re.findall(r"`tocsin (\w[\w-]*)|bin/tocsin (\w[\w-]*)", "".join([*pages, text_of("tocsin.service")]))
        assert {one or other for one, other in named} <= there

    def test_every_deploy_file_is_in_the_readme(self) -> None:
        told = set(re.findall(r"\]\(([\w.-]+)\)", text_of("README.md")))
        assert told | {"README.md", "Dockerfile.dockerignore"} == {path.name for path in DEPLOY.iterdir()}

    def test_systemd_unit_settings_are_valid(self) -> None:
        settings = read_settings({}, DEPLOY / "tocsin.env")
        assert settings.trusted_proxies == ("127.0.0.1", "::1")
        assert settings.log_format == "json"

    def test_every_lasting_table_is_documented(self) -> None:
        tables = set(re.findall(r"CREATE TABLE tocsin\.(\w+)", (ROOT / "src/tocsin/db/schema.sql").read_text("utf-8")))
        page = (OPERATIONS / "stored-data.md").read_text("utf-8")
        [section] = re.findall(r"## What is stored where.*?(?=\n## )", page, re.DOTALL)
        passing = {"cancellations", "clears", "erasures", "event_keys", "heads", "jobs", "lanes", "migrations"}
        passing |= {
            "last_clears",
            "last_move",
            "operator_rules",
            "posted_limit",
            "posted_types",
            "push_services",
            "resolutions",
            "streams",
            "timelines",
            "trials",
            "worker_processes",
            "workers",
        }
        assert set(re.findall(r"`(\w+)`", section)) >= tables - passing


class TestUnit:
    @needs("systemd-analyze", "systemd")
    async def test_systemd_accepts_unit_and_rates_it_safe(self, tmp_path: Path) -> None:
        unit = tmp_path / "tocsin.service"
        unit.write_text(text_of("tocsin.service").replace("/opt/tocsin/bin/tocsin", str(TOCSIN)))
        assert await run("systemd-analyze", "verify", "--man=no", unit) == (0, "")
        status, words = await run("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit)
        assert status == 0, words

    def test_systemd_reload_sends_the_key_reload_signal(self) -> None:
        assert 'ExecReload=/bin/sh -c "kill -HUP $MAINPID"' in text_of("tocsin.service")


class TestContainers:
    def test_image_has_locked_versions_and_does_not_run_as_root(self) -> None:
        lines = re.sub(r"\\\n *", "", text_of("Dockerfile")).splitlines()
        copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
        ignored = text_of("Dockerfile.dockerignore").splitlines()
        for name in (name for names in copied for name in names):
            assert (ROOT / name).exists()
            assert f"!{name}" in ignored
        assert {line.split()[1] for line in lines if line.startswith("FROM")} == {"debian:bookworm-slim"}
        steps = [step for line in lines for step in line.split("&&") if re.search("/uv (pip install|build)", step)]
        assert len(steps) == 3
        for step in steps:
            assert "--no-deps /wheels/" in step or re.search(r"(?=.* --require-hashes ).* requirements\.lock ", step)
        [version] = re.findall(r"uv==([\d.]+)", text_of("Dockerfile"))
        assert f"UV_VERSION := {version}\n" in (ROOT / "Makefile").read_text("utf-8")
        after = lines[lines.index("USER tocsin") :]
        assert any(line.startswith("HEALTHCHECK") and "/healthz" in line for line in after)
        assert not any(line.startswith(("RUN", "COPY")) for line in after)
        assert "/healthz" in {route.path for route in watching.routes if isinstance(route, Route)}

    def test_compose_services_fit_together(self) -> None:
        composed = yaml.safe_load(text_of("compose.yaml"))
        services = composed["services"]
        there = set(getattr(typer.main.get_command(commands.app), "commands", {}))
        assert services["api"]["command"] == ["serve", "--no-worker"]
        assert services["worker"]["command"] == ["worker"]
        assert {services[name]["command"][0] for name in ("api", "worker")} <= there
        for service in services.values():
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
            assert set(service.get("depends_on", {})) <= set(services)
            volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
            assert volumes <= set(composed["volumes"])
        environment = services["api"]["environment"]
        assert str(environment["TOCSIN_OPERATIONS_PORT"]) in services["worker"]["healthcheck"]["test"][-1]
        assert (ROOT / "deploy" / services["api"]["build"]["context"]).resolve() == ROOT

    def test_highly_available_composition_has_two_of_each_part(self) -> None:
        composed = yaml.safe_load(text_of("compose-ha.yaml"))
        services = composed["services"]
        parts = Counter(name.partition("-")[0] for name in services)
        assert parts == {"balancer": 1, "api": 2, "worker": 2, "postgres": 2, "nats": 3}
        environment = services["api-1"]["environment"]
        target = urlsplit(environment["TOCSIN_DATABASE_URL"].replace("${POSTGRES_PASSWORD:?}", "x"))
        assert target.netloc == "tocsin:x@postgres-1,postgres-2"
        assert target.query == "target_session_attrs=primary"
        addresses = {
            "api": services["balancer"]["environment"]["UPSTREAMS"].split(),
            "nats": environment["TOCSIN_NATS_URL"].replace("nats://", "").split(","),
        }
        for part, named in addresses.items():
            assert [each.partition(":")[0] for each in named] == [name for name in services if name.startswith(part)]
        routes = services["nats-1"]["command"][-1].split(",")
        assert routes == [f"nats://nats-{number}:6222" for number in (1, 2, 3)]
        [network] = composed["networks"]["default"]["ipam"]["config"]
        assert environment["TOCSIN_TRUSTED_PROXIES"] == network["subnet"]
        for one, other in (("api-1", "api-2"), ("worker-1", "worker-2")):
            assert services[one] == services[other]
            assert (
                services[one]["stop_grace_period"]
                == yaml.safe_load(text_of("compose.yaml"))["x-tocsin"]["stop_grace_period"]
            )
        for service in services.values():
            assert set(service.get("depends_on", {})) <= set(services)
            named = {volume.split(":")[0] for volume in service.get("volumes", [])}
            assert named - {"./Caddyfile"} <= set(composed["volumes"])
            assert "configs" not in service, "podman-compose leaves them out"
        published = {name for name, service in services.items() if service.get("ports")}
        assert published == {"balancer"}

    @pytest.mark.parametrize("name", ["compose.yaml", "compose-ha.yaml"])
    @pytest.mark.skipif(not has_compose(), reason="there is no docker compose: apt-get install docker-compose-v2")
    async def test_docker_compose_accepts_the_file(self, name: str) -> None:
        given = {"POSTGRES_PASSWORD": "x", "TOCSIN_JWT_SECRET": "x", "TOCSIN_PUBLIC_URL": "https://x", "SITE": "x"}
        status, words = await run("docker", "compose", "-f", name, "config", "--quiet", cwd=DEPLOY, **given)
        assert (status, words) == (0, "")


class Front:
    """A reverse proxy with the shipped configuration, except addresses and paths, and its log."""

    def __init__(self, folder: Path, upstream: int | str) -> None:
        self.folder = folder
        self.upstream = upstream
        self.port = free_port()
        certify(folder)

    @property
    def logged(self) -> str:
        return "".join(path.read_text("utf-8", "replace") for path in self.folder.glob("*.log"))

    @contextlib.asynccontextmanager
    async def running(self, *command: object) -> AsyncIterator[httpx.AsyncClient]:
        with (self.folder / "output.log").open("w") as output:
            process = await asyncio.create_subprocess_exec(
                *map(str, command),
                cwd=self.folder,
                env={"HOME": str(self.folder), "PATH": ""},
                stderr=output,
                stdout=output,
            )
        trusting = ssl.create_default_context(cafile=str(self.folder / "cert.pem"))
        try:
            await until(lambda: process.returncode is not None or is_open(self.port))
            assert process.returncode is None, self.logged
            async with httpx.AsyncClient(
                base_url=f"https://127.0.0.1:{self.port}", verify=trusting, timeout=20
            ) as http:
                http.headers["Host"] = HOST
                yield http
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def nginx(front: Front) -> contextlib.AbstractAsyncContextManager[httpx.AsyncClient]:
    site = (
        text_of("nginx.conf")
        .replace("listen 443 ssl", f"listen 127.0.0.1:{front.port} ssl")
        .replace("server 127.0.0.1:8080;", f"server 127.0.0.1:{front.upstream};")
        .replace("/var/log/nginx/", f"{front.folder}/")
        .replace(f"/etc/ssl/{HOST}.pem", f"{front.folder}/cert.pem")
        .replace(f"/etc/ssl/private/{HOST}.key", f"{front.folder}/key.pem")
    )
    (front.folder / "site.conf").write_text(site)
    places = "".join(
        f"{part}_temp_path {front.folder}/{part};\n" for part in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (front.folder / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {front.folder}/nginx.pid;\n"
        f"events {{}}\nhttp {{ {places} access_log off; include {front.folder}/site.conf; }}\n"
    )
    return front.running(
        shutil.which("nginx"), "-e", front.folder / "main.log", "-p", front.folder, "-c", front.folder / "nginx.conf"
    )


def caddy(
    front: Front, retry: str = "0s", avoid: str = "1ms"
) -> contextlib.AbstractAsyncContextManager[httpx.AsyncClient]:
    site = (
        text_of("Caddyfile")
        .replace("\n{\n", "\n{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n", 1)
        .replace(f":{HOST}}} {{", f":{HOST}:{front.port}}} {{\n\tbind 127.0.0.1\n\ttls cert.pem key.pem")
        .replace("/var/log/caddy/", f"{front.folder}/")
        .replace("127.0.0.1:8080", f"127.0.0.1:{front.upstream}")
        .replace("{$RETRY_FOR:0s}", retry)
        .replace("{$AVOID_FOR:1ms}", avoid)
    )
    (front.folder / "Caddyfile").write_text(site)
    return front.running(shutil.which("caddy"), "run", "--config", front.folder / "Caddyfile", "--adapter", "caddyfile")


def certify(folder: Path) -> None:
    """Write a certificate for the host of the examples, signed by itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(private)


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_proxies_have_the_timeouts_of_the_service() -> None:
    patience = Patience()
    head, idle = f"{patience.head:g}s", f"{patience.idle:g}s"
    nginx_ = text_of("nginx.conf")
    for directive, seconds in (
        ("client_header_timeout", head),
        ("client_body_timeout", f"{patience.body:g}s"),
        ("send_timeout", f"{patience.answer:g}s"),
        ("keepalive_timeout", idle),
    ):
        assert re.search(rf"^    {directive} {seconds};", nginx_, re.MULTILINE), directive
    caddyfile = text_of("Caddyfile")
    assert re.search(rf"timeouts {{\s+read_header {head}\s+idle {idle}\s+}}", caddyfile)
    assert f"max_header_size {MAX_HEAD_BYTES // 1024}KiB" in caddyfile


@pytest.mark.parametrize(
    "proxy",
    [
        pytest.param(nginx, marks=needs("nginx", "nginx")),
        pytest.param(caddy, marks=needs("caddy", "caddy")),
    ],
)
class TestProxies:
    Proxy = Callable[[Front], contextlib.AbstractAsyncContextManager[httpx.AsyncClient]]
    SNI: dict[str, Any] = {"sni_hostname": HOST}  # noqa: RUF012 - never changed

    @pytest.fixture
    async def trusting(self, url: str, catalogue: Catalogue) -> AsyncIterator[Api]:
        """The service with the settings that the proxy configurations expect."""
        async with serving(url, catalogue, environment={"TOCSIN_TRUSTED_PROXIES": "127.0.0.1,::1"}) as api:
            await api.people(1)
            yield api

    async def test_urls_point_to_the_proxy(self, proxy: Proxy, trusting: Api, tmp_path: Path) -> None:
        for _ in range(2):
            await trusting.post(custom(1))
        async with proxy(Front(tmp_path, port_of(trusting))) as http:
            page = await http.get("/notifications?per_page=1", headers=as_user(1), extensions=self.SNI)
        following = page.json()["pagination"]["urls"]["next"]
        assert following.startswith(f"https://{HOST}/notifications?"), following

    async def test_proxy_adds_strict_transport_security_to_headers_of_the_service(
        self, proxy: Proxy, trusting: Api, tmp_path: Path
    ) -> None:
        async with proxy(Front(tmp_path, port_of(trusting))) as http:
            page = await http.get("/docs", extensions=self.SNI)
            rejected = await http.get("/notifications", extensions=self.SNI)
        assert (page.status_code, rejected.status_code) == (200, 401)
        assert_page_headers(page)
        for answer in (page, rejected):
            assert answer.headers.get_list("strict-transport-security") == ["max-age=31536000"]

    async def test_proxy_logs_no_device_token(self, proxy: Proxy, trusting: Api, tmp_path: Path) -> None:
        front = Front(tmp_path, port_of(trusting))
        paths = [f"/notifications/devices/{TOKEN}", f"/notifications/devices%2F{TOKEN}?x={TOKEN}"]
        headers = {**as_user(1), "Referer": f"https://{HOST}/{TOKEN}", "User-Agent": "known by this"}
        async with proxy(front) as http:
            answers = [await http.post(path, headers=headers, extensions=self.SNI) for path in paths]
            await http.get("/healthz?seen=no", extensions=self.SNI)
            await until(lambda: "/healthz" in front.logged)
        assert answers[0].status_code == 204
        assert "/notifications/devices/" in front.logged
        assert front.logged.count("/healthz") == 1
        assert TOKEN not in front.logged
        assert TOKEN[-12:] not in front.logged
        assert headers["Authorization"].split()[1] not in front.logged

    async def test_proxy_logs_no_device_token_while_the_service_is_down(self, proxy: Proxy, tmp_path: Path) -> None:
        front = Front(tmp_path, upstream=free_port())
        async with proxy(front) as http:
            for path in ("/notifications/devices", "/directory/users/1/devices"):
                answer = await http.delete(f"{path}/{TOKEN}", headers=as_user(1), extensions=self.SNI)
                assert answer.status_code in {502, 503}  # Caddy asks a process that refused only after a pause
            await http.get("/readyz", extensions=self.SNI)
            await until(lambda: "/readyz" in front.logged)
        assert "refused" in front.logged
        assert TOKEN not in front.logged

    async def test_proxy_passes_on_the_413_of_the_service(self, proxy: Proxy, trusting: Api, tmp_path: Path) -> None:
        headers = {"Authorization": f"Bearer {mint_service(SECRET, 'crm', ['events:write'], HOUR)}"}
        fits = {"events": [custom(1, body="x" * 500)] * 1000, "more": "y" * 7_000_000}
        async with proxy(Front(tmp_path, port_of(trusting))) as http:
            posted = await http.post("/events/batch", json=fits, headers=headers, extensions=self.SNI)
            assert posted.status_code == 202, posted.text
            more = {**fits, "more": "y" * 8_200_000}
            refused = await http.post("/events/batch", json=more, headers=headers, extensions=self.SNI)
        assert refused.status_code == 413
        assert refused.json()["errors"][0]["code"] == "too_large"

    async def test_proxy_does_not_buffer_streams(self, proxy: Proxy, tmp_path: Path) -> None:
        asked: list[bytes] = []
        told: asyncio.Queue[int] = asyncio.Queue()

        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            while number := await told.get():
                writer.write(f"data: {number}\n".encode())
            writer.close()

        async with await asyncio.start_server(stream, "127.0.0.1", 0) as listening:
            front = Front(tmp_path, listening.sockets[0].getsockname()[1])
            async with (
                proxy(front) as http,
                http.stream("GET", "/notifications/stream", headers=as_user(1), extensions=self.SNI) as answer,
            ):
                lines = answer.aiter_lines()
                for number in range(1, 6):
                    told.put_nowait(number)
                    assert await anext(lines) == f"data: {number}"
                told.put_nowait(0)
        head = asked[0].decode().lower()
        assert f"x-forwarded-host: {HOST}\r\n" in head
        assert "x-forwarded-proto: https\r\n" in head
        assert "x-forwarded-for: 127.0.0.1\r\n" in head


@needs("caddy", "caddy")
async def test_balancer_leaves_out_a_process_that_is_away(api: Api, tmp_path: Path) -> None:
    balancer = yaml.safe_load(text_of("compose-ha.yaml"))["services"]["balancer"]["environment"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        away = int(free.getsockname()[1])
    front = Front(tmp_path, f"{away} 127.0.0.1:{port_of(api)}")
    async with caddy(front, balancer["RETRY_FOR"], balancer["AVOID_FOR"]) as http:
        sni = {"sni_hostname": HOST}
        read = [await http.get("/healthz", extensions=sni) for _ in range(6)]  # one of them finds out
        written = [await http.post("/events", json={}, extensions=sni) for _ in range(6)]
    assert {answer.status_code for answer in read} == {200}
    assert {answer.status_code for answer in written} == {401}


def port_of(api: Api) -> int:
    return int(api.http.base_url.port or 0)


def as_user(user: int, secret: str = SECRET) -> dict[str, str]:
    return {"Authorization": f"Bearer {mint_user(secret, user, HOUR)}"}


def block_of(heading: str, data: Path, kept: Path) -> str:
    """Return the commands of a section of the page, for a service of this test."""
    page = (OPERATIONS / "back-up.md").read_text("utf-8")
    [section] = re.findall(rf"^## {heading}\n.*?(?=^## )", page, re.DOTALL | re.MULTILINE)
    block = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0]
    return str(block.replace("/var/lib/tocsin", str(data)).replace("/var/backups/tocsin", str(kept)))


@pytest.mark.processes
async def test_backup_is_restored_as_documented(tmp_path: Path) -> None:
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).isoformat()
    own = {"TOCSIN_JWT_SECRET": "", "TOCSIN_VAPID_SUBJECT": "mailto:operator@example.com"}
    async with data_folder() as data, moved_from(data) as other:
        ask = partial(run, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", TOCSIN_DATA_DIR=str(data))
        async with Program(data, "serve", variables=own) as service:
            secret, vapid = ((data / name).read_text() for name in ("jwt-secret", "vapid.pem"))
            token = mint_service(secret, "crm", ["events:write", "directory:write"], HOUR)
            with Client(service.greeting["url"], token) as client:
                client.put_user(1, first_name="John", last_name="Doe")
                sent = client.post(custom(1, body="Before the backup"))
                assert client.state(sent.id, wait=30).state == "delivered"
                held = client.post({**custom(1), "deliver_at": later})
                status, words = await ask("bash", "-euc", block_of("Back up", data, tmp_path))
                assert status == 0, words
                client.post(custom(1, body="After the backup"))
        status, words = await ask("bash", "-euc", block_of("Restore", data, tmp_path))
        assert status == 0, words
        async with Program(other, "serve", variables=own) as service:
            with Client(service.greeting["url"], token) as client:
                assert client.state(held.id).state == "held"
                client.cancel(held.id)
                new = client.post(custom(1, body="After the restore"))
                assert client.state(new.id, wait=30).state == "delivered"
            async with httpx.AsyncClient(base_url=service.greeting["url"], timeout=60) as http:
                page = (await http.get("/notifications", headers=as_user(1, secret))).json()
            assert [entry["id"] for entry in page["data"]] == [new.id, sent.id]
            assert service.complaints() == []
        assert (other / "vapid.pem").read_text() == vapid


@contextlib.asynccontextmanager
async def moved_from(data: Path) -> AsyncIterator[Path]:
    """Yield the data folder that the page restores into; at the end its server is stopped."""
    other = data.with_name(f"{data.name}-new")
    try:
        yield other
    finally:
        await kill_postgres(other)
