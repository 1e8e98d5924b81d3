"""`tocsin doctor` reports every problem and no false ones."""

import fcntl
import os
import socket
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.commands import as_another_user, run
from tests.support.database import locked, make_database, url_for
from tests.support.nats_access import Authority
from tests.support.openid_provider import CLIENT_ID, openid_provider
from tests.support.processes import TOCSIN, Program, data_folder
from tests.support.servers import nats
from tests.support.service import SECRET
from tocsin import nats_bus
from tocsin.cli import doctor
from tocsin.cli.doctor.machine import check_file_limit
from tocsin.db.connections import connect
from tocsin.db.pool import Database
from tocsin.postgres.supervisor import Embedded
from tocsin_phones import Phones


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Change to an empty folder with no settings except the data folder."""
    for name in [name for name in os.environ if name.startswith("TOCSIN_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOCSIN_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TOCSIN_PORT", "0")


@pytest.fixture
async def outside(monkeypatch: pytest.MonkeyPatch, url: str, database: Database) -> str:
    """A healthy external database without workers."""
    await database.value("delete from workers")  # of tests that ran before
    monkeypatch.setenv("TOCSIN_DATABASE_URL", url)
    monkeypatch.setenv("TOCSIN_JWT_SECRET", SECRET)
    return url


async def found() -> dict[str, tuple[str, str]]:
    """Return level and text of each finding by its check."""
    return {finding.what: (finding.level, f"{finding.finding}; {finding.remedy}") for finding in await doctor.examine()}


async def levels() -> dict[str, str]:
    return {what: level for what, (level, _) in (await found()).items() if level != "ok"}


def doctor_says(folder: Path, **environment: str) -> tuple[int, list[str]]:
    """Return the status and the lines of the command."""
    done = run("doctor", cwd=folder, **environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


async def test_doctor_finds_no_problem_before_first_start(tmp_path: Path) -> None:
    assert await levels() == {"keys of tokens": "warn", "data folder": "warn", "database": "warn"}
    assert not (tmp_path / "data").exists()


async def test_doctor_reports_healthy_database(outside: str) -> None:
    assert outside
    assert await levels() == {"workers": "warn"}


async def test_doctor_reports_invalid_settings_as_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_PROT", "1")
    level, words = (await found())["settings"]
    assert level == "FAIL"
    assert "TOCSIN_PROT" in words


async def test_doctor_warns_of_files_with_secrets_that_others_can_read(
    outside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outside
    for setting, content in (("CELLS_FILE", "[main]\ndefault = true\n"), ("OIDC_CLIENT_SECRET_FILE", "secret")):
        path = tmp_path / setting.lower()
        path.write_text(content)
        path.chmod(0o640)
        monkeypatch.setenv(f"TOCSIN_{setting}", str(path))
        level, words = (await found())[f"TOCSIN_{setting}"]
        assert (level, words.rpartition("; ")[2]) == ("warn", f"close it: chmod 600 {path}")
        path.chmod(0o600)
        assert f"TOCSIN_{setting}" not in await found()


async def test_doctor_warns_of_a_secret_that_can_be_guessed(outside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outside
    monkeypatch.setenv("TOCSIN_JWT_SECRET", f"{SECRET},{'secret-' * 5}")
    level, words = (await found())["TOCSIN_JWT_SECRET"]
    assert (level, words.rpartition("; ")[2]) == ("warn", "generate one with `openssl rand -hex 32`")
    monkeypatch.setenv("TOCSIN_JWT_SECRET", SECRET)
    assert "TOCSIN_JWT_SECRET" not in await found()


async def sign_in_findings() -> dict[str, tuple[str, str]]:
    return {what: finding for what, finding in (await found()).items() if what.startswith("console sign-in")}


async def test_doctor_checks_the_provider_of_the_console_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await sign_in_findings() == {}
    parts = ("", " issuer", " endpoints", " PKCE", " keys")
    async with openid_provider() as provider:
        monkeypatch.setenv("TOCSIN_OIDC_ISSUER", provider.issuer)
        assert "TOCSIN_OIDC_CLIENT_ID" in (await sign_in_findings())["console sign-in"][1]
        monkeypatch.setenv("TOCSIN_OIDC_CLIENT_ID", CLIENT_ID)
        healthy = await sign_in_findings()
        assert {what: level for what, (level, _) in healthy.items()} == {
            f"console sign-in{part}": "ok" for part in parts
        }
        for metadata, part, level, words in (
            ({"issuer": f"{provider.issuer}/"}, " issuer", "FAIL", "set TOCSIN_OIDC_ISSUER to exactly"),
            ({"token_endpoint": None}, " endpoints", "FAIL", "token_endpoint is missing"),
            ({"jwks_uri": "http://login.example.com/keys"}, " endpoints", "FAIL", "jwks_uri is not an https URL"),
            ({"code_challenge_methods_supported": ["plain"]}, " PKCE", "FAIL", "does not support S256"),
            ({"code_challenge_methods_supported": None}, " PKCE", "warn", "do not say whether"),
            ({"jwks_uri": f"{provider.issuer}/nothing"}, " keys", "FAIL", "The answer has the status 404"),
            ({"jwks_uri": f"{provider.issuer}/.well-known/openid-configuration"}, " keys", "FAIL", "signing key"),
        ):
            provider.metadata = metadata
            findings = await sign_in_findings()
            assert {what for what, finding in findings.items() if finding != healthy[what]} == {
                f"console sign-in{part}"
            }
            assert findings[f"console sign-in{part}"][0] == level, metadata
            assert words in findings[f"console sign-in{part}"][1], metadata
    level, words = (await sign_in_findings())["console sign-in"]
    assert (level, "make sure that it answers" in words) == ("FAIL", True)


async def test_doctor_waits_a_limited_time_for_the_provider_of_the_sign_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tocsin.auth.oidc.FETCH_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("TOCSIN_OIDC_ISSUER", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("TOCSIN_OIDC_CLIENT_ID", CLIENT_ID)
        level, words = (await sign_in_findings())["console sign-in"]
    assert (level, "within 0.2 s" in words) == ("FAIL", True)


async def test_doctor_reports_nats_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, port: int, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOCSIN_NATS_URL", f"nats://127.0.0.1:{port}")
    for answers in (False, True, False):
        async with nats(port, tmp_path) if answers else nullcontext():
            level, words = (await found())["bus"]
            assert level == ("ok" if answers else "FAIL")
            assert answers or "NATS cannot be reached: [Errno 111] Connect call failed" in words
    monkeypatch.setattr(nats_bus, "CONNECT_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", port)):  # it accepts connections, and says nothing
        level, words = (await found())["bus"]
        assert (level, "NATS cannot be reached: no answer in time;" in words) == ("FAIL", True)


@pytest.mark.processes
async def test_doctor_prints_its_own_sentences_alone_if_nats_uses_tls(port: int, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    certificate, key = authority.issue("server")
    configuration = tmp_path / "nats.conf"
    configuration.write_text(
        f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{authority.certificate}", verify: true }}'
    )
    environment = {"TOCSIN_NATS_URL": f"tls://127.0.0.1:{port}", "TOCSIN_DATA_DIR": str(tmp_path / "data")}
    known, foreign = (
        {"TOCSIN_NATS_CERT_FILE": str(file), "TOCSIN_NATS_KEY_FILE": str(private)}
        for file, private in (authority.issue("known"), other.issue("foreign"))
    )
    async with nats(port, tmp_path, "-c", str(configuration)):
        for ca, client, said in (
            (authority, known, "ok   bus: NATS answers"),
            (authority, foreign, "FAIL bus: NATS cannot be reached: "),
            (authority, {}, "FAIL bus: NATS cannot be reached: "),
            (other, known, "FAIL bus: NATS cannot be reached: [SSL: CERTIFICATE_VERIFY_FAILED]"),
        ):
            files = {"TOCSIN_NATS_CA_FILE": str(ca.certificate), **client}
            done = run("doctor", cwd=tmp_path, **environment, **files)
            assert done.stderr == ""
            assert [line for line in done.stdout.splitlines() if line.startswith(said)], done.stdout
            assert {line[:5] for line in done.stdout.splitlines()} <= {"ok   ", "warn ", "FAIL "}


async def test_doctor_reports_invalid_preference_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await found())["preferences"][0] == "ok"
    monkeypatch.setenv("TOCSIN_PREFERENCES_FILE", str(tmp_path / "rules.toml"))
    level, words = (await found())["preferences"]
    assert (level, "cannot be read" in words) == ("FAIL", True)
    (tmp_path / "rules.toml").write_text("[kinds.note]\npush = false\n")
    assert (await found())["preferences"][0] == "ok"


async def test_doctor_reports_errors_of_one_file_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_PREFERENCES_FILE", str(tmp_path / "rules.toml"))
    (tmp_path / "rules.toml").write_text("[kinds.note]\npusch = false\nurgend = true\n")
    lines = [str(finding) for finding in await doctor.examine() if finding.what == "preferences"]
    assert all(word in lines[0] for word in ("pusch", "urgend"))
    assert "\n" not in lines[0]


async def test_doctor_reports_readable_env_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("TOCSIN_LOG_FORMAT=json\n")
    file.chmod(0o644)
    assert (await found())[".env"][0] == "warn"
    file.chmod(0o600)
    assert (await found())[".env"][0] == "ok"


async def test_doctor_reports_external_database_without_a_jwt_key(
    outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outside
    monkeypatch.delenv("TOCSIN_JWT_SECRET")
    level, words = (await found())["keys of tokens"]
    assert level == "FAIL"
    assert "TOCSIN_JWT_SECRET" in words


async def test_doctor_reports_readable_secret_and_data_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    secret = folder / "jwt-secret"
    secret.write_text(SECRET)
    secret.chmod(0o640)
    seen = await levels()
    assert (seen["keys of tokens"], seen["data folder"]) == ("FAIL", "warn")
    secret.chmod(0o600)
    folder.chmod(0o700)
    assert await levels() == {"database": "warn", "push web/default": "warn"}


async def test_doctor_reports_low_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    gib, disk = 2**30, SimpleNamespace(f_frsize=1, f_blocks=100 * 2**30)
    monkeypatch.setattr("os.statvfs", lambda _: disk)
    for disk.f_bavail, level in ((2 * gib, "ok"), (2 * gib - 1, "warn"), (gib, "warn"), (gib - 1, "FAIL")):
        assert (await found())["disk"][0] == level


async def test_doctor_reports_port_in_use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("TOCSIN_PORT", str(port))
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setattr("tocsin.cli.doctor.machine.PORT_TIMEOUT", 0.2)
        assert (await found())["port"][0] == "FAIL"
    assert (await found())["port"][0] == "ok"
    monkeypatch.setenv("TOCSIN_HOST", "192.0.2.1")
    assert (await found())["port"][0] == "FAIL"


async def test_doctor_reports_too_broad_cors_origins_and_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_CORS_ORIGINS", "https://crm.example.com,http://localhost:5173")
    monkeypatch.setenv("TOCSIN_TRUSTED_PROXIES", "10.0.0.0/8")
    assert not {"origins", "proxies"} & set(await levels())
    monkeypatch.setenv("TOCSIN_CORS_ORIGINS", "http://localhost.evil.example.com")
    monkeypatch.setenv("TOCSIN_TRUSTED_PROXIES", "10.0.0.0/8,::/0")
    assert {"origins": "warn", "proxies": "warn"}.items() <= (await levels()).items()


async def test_doctor_reports_unreachable_database_without_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", "postgresql://crm:geheim@127.0.0.1:1/crm")
    monkeypatch.setenv("TOCSIN_JWT_SECRET", SECRET)
    seen = await found()
    assert seen["database"][0] == "FAIL"
    assert "geheim" not in str(seen)


async def test_remedy_for_the_embedded_database_names_no_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    monkeypatch.setenv("TOCSIN_DATA_DIR", str(tmp_path / "data"))
    with (tmp_path / "data/tocsin.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        level, words = (await found())["database"]
    assert level == "FAIL"
    assert "see that `tocsin serve` runs, and its log" in words
    assert "TOCSIN_DATABASE_URL" not in words


async def test_missing_schema_is_ok_before_first_start(
    monkeypatch: pytest.MonkeyPatch, outside: str, server: Embedded
) -> None:
    assert outside
    monkeypatch.setenv("TOCSIN_DATABASE_URL", url_for(server, "postgres"))
    level, words = (await found())["schema"]
    assert level == "ok"
    assert "the first `tocsin serve`" in words


async def test_doctor_reports_pending_migrations(
    monkeypatch: pytest.MonkeyPatch, outside: str, server: Embedded
) -> None:
    assert outside
    url = await make_database(server, "behind")
    connection = await connect(url)
    await connection.execute("delete from migrations where number > 3")
    await connection.close()
    monkeypatch.setenv("TOCSIN_DATABASE_URL", url)
    level, words = (await found())["schema"]
    assert level == "FAIL"
    assert "`tocsin migrate`" in words


async def test_doctor_names_database_without_password(monkeypatch: pytest.MonkeyPatch, outside: str) -> None:
    assert outside
    assert "tocsin@" in (await found())["database"][1]
    monkeypatch.setenv("TOCSIN_DATABASE_URL", "postgresql://crm:geheim@127.0.0.1:1/staging")
    level, words = (await found())["database"]
    assert level == "FAIL"
    assert "crm@127.0.0.1:1/staging" in words
    assert "geheim" not in words


async def test_doctor_reports_rejected_connection_as_one_finding(monkeypatch: pytest.MonkeyPatch, outside: str) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", f"{outside}&nonsense=1")
    level, words = (await found())["database"]
    assert (level, "take that parameter out" in words) == ("FAIL", True)
    monkeypatch.setenv("TOCSIN_DATABASE_URL", f"{outside}&sslrootcert=/nonexistent")
    level, words = (await found())["database"]
    assert (level, "/nonexistent" in words) == ("FAIL", True)


async def test_doctor_reports_database_that_is_not_durable(
    monkeypatch: pytest.MonkeyPatch, outside: str, server: Embedded
) -> None:
    assert outside
    url = await make_database(server, "forgetful")
    connection = await connect(server.url)
    await connection.execute("alter database forgetful set synchronous_commit = off")
    await connection.close()
    monkeypatch.setenv("TOCSIN_DATABASE_URL", url)
    level, words = (await found())["durability"]
    assert level == "FAIL"
    assert "synchronous_commit" in words


async def test_doctor_reports_database_in_another_encoding(
    monkeypatch: pytest.MonkeyPatch, outside: str, server: Embedded
) -> None:
    assert outside
    connection = await connect(server.url)
    await connection.execute("create database latin encoding 'LATIN1' locale 'C' template template0")
    await connection.close()
    monkeypatch.setenv("TOCSIN_DATABASE_URL", url_for(server, "latin"))
    level, words = (await found())["encoding"]
    assert level == "FAIL"
    assert "LATIN1" in words


async def test_doctor_reports_clock_skew(monkeypatch: pytest.MonkeyPatch, outside: str) -> None:
    assert outside
    really = time.time
    monkeypatch.setattr("tocsin.cli.doctor.database.time.time", lambda: really() - 3)
    level, words = (await found())["clock"]
    assert level == "warn"
    assert "+3" in words


@pytest.mark.parametrize(("queue", "seconds"), [("direct", 60), ("bulk", 1800)])
async def test_doctor_reports_dead_letters_and_stalled_queue(
    outside: str, database: Database, queue: str, seconds: int
) -> None:
    assert outside
    await database.value(
        "insert into dead_letters (id, task, lane, attempts, progress, reason)"
        " values (gen_random_uuid(), 'x', 'direct', 8, 0, 'x')"
    )
    await database.value(
        "insert into jobs (id, task, lane, due_at)"
        " values (gen_random_uuid(), 'x', $1, now() - make_interval(secs => $2 / 2))",
        *(queue, seconds),
    )
    assert await levels() == {"dead letters": "warn", "workers": "warn"}
    await database.value("update jobs set due_at = due_at - make_interval(secs => $1)", seconds)
    assert f"the oldest {queue} job has waited" in (await found())["queue"][1]
    assert await levels() == {"dead letters": "warn", "queue": "FAIL", "workers": "warn"}
    await database.value("insert into workers (id, name) values (gen_random_uuid(), 'one')")
    assert await levels() == {"dead letters": "warn", "queue": "warn"}
    await database.value("update jobs set due_at = now() + interval '1 day'")
    assert await levels() == {"dead letters": "warn"}
    await database.value("delete from workers")


@pytest.mark.parametrize(
    ("table", "unchecked"),
    [("inbox", set()), ("jobs", {"queue"}), ("workers", {"workers", "lanes"}), ("lanes", {"lanes"})],
)
async def test_doctor_names_a_locked_table_and_what_it_could_not_check(
    outside: str, monkeypatch: pytest.MonkeyPatch, table: str, unchecked: set[str]
) -> None:
    monkeypatch.setattr("tocsin.cli.doctor.database.LOCK_TIMEOUT", 0.1)
    usual = await levels()
    dba = await connect(outside)
    async with locked(dba, table):
        seen = await found()
    await dba.close()
    level, words = seen["locks"]
    assert (level, f"the table {table} is locked by another session" in words) == ("FAIL", True)
    assert {what for what, (_, words) in seen.items() if "not checked, because" in words} == unchecked
    assert {what for what, (level, _) in seen.items() if level == "FAIL"} == {"locks"}
    assert await levels() == usual


@pytest.mark.processes
async def test_doctor_prints_one_line_per_check_with_and_without_service(tmp_path: Path) -> None:
    async with data_folder() as data:
        async with Program(data, "serve") as program:
            place = {
                "TOCSIN_DATA_DIR": str(data),
                "TOCSIN_PORT": str(program.address[1]),
                "TOCSIN_JWT_SECRET": SECRET,
                "TOCSIN_VAPID_SUBJECT": "mailto:push@example.com",
            }
            status, lines = doctor_says(tmp_path, **place)
            assert (status, [line for line in lines if not line.startswith("ok ")]) == (0, [])
            assert any("port: a Tocsin listens" in line for line in lines)
            assert any("workers: 1 running" in line for line in lines)
            status, lines = doctor_says(tmp_path, **place, TOCSIN_LOG_FORMAT="xml")
            assert status == 1
            assert lines[0].startswith("FAIL settings: TOCSIN_LOG_FORMAT")
        status, lines = doctor_says(tmp_path, **place)
        assert status == 0
        [line] = [line for line in lines if not line.startswith("ok ")]
        assert line == "warn database: the embedded PostgreSQL does not run; start `tocsin serve`"


@pytest.mark.processes
def test_openapi_command_needs_no_database(tmp_path: Path) -> None:
    done = run("openapi", cwd=tmp_path, TOCSIN_ROOT_PATH="/notify")
    assert done.returncode == 0
    assert done.stdout.startswith('{"openapi":"3.1.0"')
    assert '"servers":[{"url":"/notify"}]' in done.stdout
    assert '"/notifications"' in done.stdout


async def test_doctor_distinguishes_rejected_probe_from_unreachable_provider(
    monkeypatch: pytest.MonkeyPatch, phones: Phones, tmp_path: Path
) -> None:
    for name, value in phones.credentials(tmp_path).items():
        monkeypatch.setenv(name, value)
    phones.answer("apns", status=503, reason="ServiceUnavailable", times=2)
    level, words = (await found())["push apns/default"]
    assert (level, "refused a test push: 503 ServiceUnavailable" in words) == ("warn", True)
    assert "network" not in words
    phones.forget()
    phones.answer("apns", status=403, reason="InvalidProviderToken", times=2)
    level, words = (await found())["push apns/default"]
    assert (level, "until then its pushes wait" in words) == ("FAIL", True)


def said_to_another_user(*command: str, cwd: Path, data: Path) -> str:
    """Return what a doctor that fails prints to a user without rights."""
    done = subprocess.run(
        [TOCSIN, *command],
        env={"PATH": os.defpath, "TOCSIN_DATA_DIR": str(data), "TOCSIN_PORT": "0"},
        user=54321,
        group=54321,
        extra_groups=[],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout


@as_another_user
def test_doctor_reports_unreadable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    said = said_to_another_user("doctor", cwd=tmp_path, data=Path("/nonexistent"))
    assert "cannot be read: Permission denied" in said


@as_another_user
@pytest.mark.parametrize("data", [".", "data"])
def test_doctor_reports_a_data_folder_of_another_user(tmp_path: Path, data: str) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "vapid.pem").touch()
    said = said_to_another_user("doctor", "--deep", cwd=Path("/"), data=tmp_path / data)
    assert f"FAIL data folder: {tmp_path / data}: Permission denied; become its user" in said
    assert "FAIL deep checks: " in said


def test_deep_doctor_reports_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    done = run("doctor", "--deep", cwd=tmp_path, TOCSIN_DATA_DIR=str(tmp_path / "data"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAIL deep checks: The embedded PostgreSQL cannot be used: [Errno 20] Not a directory" in done.stdout


async def test_doctor_reports_a_data_folder_too_long_for_a_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOCSIN_DATA_DIR", str(tmp_path / ("long" * 25)))
    level, said = (await found())["data folder"]
    assert (level, "bytes too long for a unix socket; set TOCSIN_DATA_DIR to a shorter one" in said) == ("FAIL", True)


@pytest.mark.parametrize(("files", "level"), [(1024, "warn"), (4096, "ok")])
def test_doctor_reports_the_limit_of_open_files_and_its_connections(files: int, level: str) -> None:
    [finding] = check_file_limit(512, files)
    assert finding.level == level
    assert f"{files} open files are allowed, for {files - 288} connections (soft limit 512" in finding.finding
