"""Operator mistakes are reported in one sentence with the remedy, without a traceback or a secret."""

import asyncio
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import commands
from tests.support.built_in import CATALOGUE
from tests.support.commands import as_another_user
from tests.support.processes import TOCSIN, Program, data_folder
from tests.support.service import SECRET
from tests.support.waiting import bounded
from tocsin import directory
from tocsin.auth import from_settings
from tocsin.catalogue import Catalogue
from tocsin.cli import doctor
from tocsin.db.pool import Database
from tocsin.db.url import masked, place_of
from tocsin.errors import Refusal
from tocsin.formats import User, is_time_zone
from tocsin.preferences import Operator
from tocsin.push.apps import lanes_of
from tocsin.settings import Settings, read_settings

NAMES = [f"TOCSIN_{name.upper()}" for name in Settings.model_fields]
OF_PATHS = [name for name in NAMES if name.endswith(("_FILE", "_FILES", "_DIR"))]
APNS = {
    "TOCSIN_APNS_KEY_FILE": "key.p8",
    "TOCSIN_APNS_KEY_ID": "ABC",
    "TOCSIN_APNS_TEAM_ID": "DEF",
    "TOCSIN_APNS_TOPIC": "com.example",
}

VALUES = {
    "blank": " ",
    "garbage": "%$geheim§",
    "a number": "7",
    "a negative number": "-1",
    "a large number": "99999999999999999999999",
    "a comma": ",",
    "a space inside": "a geheim",
    "a line break": "a\ngeheim",
    "NUL": "a\0geheim",
    "Latin-1": os.fsdecode("geheim-ø".encode("latin-1")),
    "too long": "geheim" * 20_000,
    "rather long": "g" * 60_000,
    "a home of nobody": "~nobody-of-this-name/x",
    "an open bracket": "https://[geheim",
    "a url with a password": "https://user:geheim@host.example:99999/",
}

FILES: dict[str, Any] = {
    "missing": lambda path: path.with_name("other").touch(),
    "an empty file": lambda path: path.write_bytes(b""),
    "a folder": lambda path: path.mkdir(),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 300),
    "Latin-1": lambda path: path.write_bytes("# ø geheim\n".encode("latin-1")),
    "NUL": lambda path: path.write_bytes(b"\0geheim\0"),
    "text": lambda path: path.write_text("geheim"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "an object": lambda path: path.write_text('{"geheim": 1}'),
    "TOML": lambda path: path.write_text('[x]\ny = "geheim"\n'),
    "broken PEM": lambda path: path.write_text("-----BEGIN PRIVATE KEY-----\ngeheim\n-----END PRIVATE KEY-----\n"),
    "a loop of links": lambda path: path.symlink_to(path),
    "a pipe": os.mkfifo,
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("TOCSIN_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def others_of(name: str) -> dict[str, str]:
    """Return the settings that a setting depends on."""
    return APNS if "APNS" in name and not name.endswith("URL") else {}


async def use(environment: dict[str, str]) -> Settings:
    """Use settings like a start does, up to the database connection."""
    settings = read_settings({"TOCSIN_JWT_SECRET": SECRET, **environment}, Path("/nonexistent"))
    from_settings.keys_of(settings)
    catalogue = Catalogue.load(*settings.catalogue_folders) if settings.catalogue_folders else CATALOGUE
    Operator.load(catalogue, settings.preferences_file)
    for lane in lanes_of(settings):
        await lane.transport.close()
    return settings


async def sentence_on(environment: dict[str, str]) -> str:
    """Return the error about these settings, or nothing."""
    try:
        async with bounded():
            await use(environment)
    except Refusal as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("name", NAMES)
async def test_unusable_value_is_reported_in_one_sentence(name: str, value: str) -> None:
    said = await sentence_on({**others_of(name), name: value})
    assert "\n" not in said
    if name not in OF_PATHS:
        assert "geheim" not in said
        assert not said or name in said or "APNs" in said


@pytest.mark.processes
@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
@pytest.mark.parametrize("name", OF_PATHS)
async def test_unusable_file_is_reported_in_one_sentence(
    name: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "given"
    make(path)
    environment = {**others_of(name), name: str(path)}
    said = await sentence_on(environment)
    assert "geheim" not in said
    for variable, value in {"TOCSIN_JWT_SECRET": SECRET, **environment}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(doctor, "check_database", nothing)
    async with bounded():
        findings = [str(finding) for finding in await doctor.examine()]
    assert not any("geheim" in line or "\n" in line for line in findings)


async def nothing(_settings: Settings) -> AsyncIterator[doctor.Finding]:
    """Skip the checks of the database."""
    found: tuple[doctor.Finding, ...] = ()
    for finding in found:
        yield finding


URLS = {
    "postgres://u:geheim@h/db?sslmode=require&channel_binding=require": "",
    "postgres://u:geheim@h/db?connect_timeout=10&gssencmode=disable&keepalives=1": "",
    "postgresql://u:geh%23%2Feim@[::1]:5432,h2:5433/db?target_session_attrs=read-write": "",
    "postgresql:///db?host=/run/postgresql&user=u@host": "",
    "postgresql://%2Frun%2Fpostgresql/db": "",
    "postgres://u:gehe#im@h/db": "percent-encode",
    "postgres://u:gehe/im@h/db": "percent-encode",
    "postgres://u:gehe?im@h/db": "percent-encode",
    "postgres://u:12?gehe=im@h/db": "percent-encode",
    "postgres://u:12/gehe?im=x@h/db": "percent-encode",
    "postgres://u:gehe@im@h/db": "percent-encode",
    "postgres://u:[geheim]@h/db": "percent-encode",
    "postgres://u:gehe[im@h/db": "percent-encode",
    "postgres://u:gehe im@h/db": "control character",
    "postgres://u:geheim@h:port/db": "port",
    "postgres://u:geheim@h:99999/db": "port",
    "postgres://u:geheim@h/db?port=x": "port",
    "postgres://u:geheim@h,,h2/db": "empty host",
    "postgres://u:geheim@h/db?geheim": "name=value",
    "postgresql://u:geheim@h/db?target_session_attrs=master": "target_session_attrs must be one of primary",
    "mysql://u:geheim@h/db": "postgresql://",
    "u:geheim@h/db": "postgresql://",
}


@pytest.mark.parametrize(("url", "due"), URLS.items())
async def test_database_url_of_providers_works_or_is_rejected_in_a_sentence(url: str, due: str) -> None:
    said = await sentence_on({"TOCSIN_DATABASE_URL": url})
    assert due in said
    assert bool(due) == bool(said)
    assert not any(part in said for part in ("geh", "eim", "u:"))


def test_url_is_shown_without_passwords() -> None:
    for url, shown in (
        ("postgres://u:geheim@h:5433/db?sslpassword=geheim&x=1", "postgres://u:***@h:5433/db?sslpassword=***&x=1"),
        ("https://u:geheim@h/p?q", "https://u:***@h/p?q"),
        ("https://h/p", "https://h/p"),
    ):
        assert masked(url) == shown
    assert masked("nats://geheim@h:4222", user_too=True) == "nats://***@h:4222"
    assert place_of("postgres://u:geheim@h:5433/db?sslmode=x") == "u@h:5433/db"
    assert place_of("postgresql:///db?host=/run&user=u") == "u@/run/db"


ENV_FILES: dict[str, tuple[bytes, str]] = {
    "Latin-1": (b"# \xf8\nTOCSIN_PORT=1\n", "not UTF-8 at line 1"),
    "UTF-16": ("TOCSIN_PORT=1\n".encode("utf-16"), "not UTF-8 at line 1"),
    "a line without =": (b"\n# x\nTOCSIN_PORT 21097\n", "Line 3 of"),
    "a name alone": (b"TOCSIN_PORT\n", "Line 1 of"),
    "a quote that does not end": (b'A=1\nB="geheim\nTOCSIN_PORT=1\n', "Line 2 of"),
    "NUL": (b"TOCSIN_JWT_ISSUER=a\0geheim\n", "control characters"),
}


@pytest.mark.parametrize(("content", "due"), ENV_FILES.values(), ids=ENV_FILES)
def test_unreadable_env_file_is_reported_in_one_sentence(content: bytes, due: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(Refusal, match=due) as refused:
        read_settings({})
    assert "geheim" not in str(refused.value)


def test_env_file_from_windows_is_accepted(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfTOCSIN_PORT=1\r\n\r\nexport TOCSIN_HOST='::1'\r\n")
    settings = read_settings({})
    assert (settings.port, settings.host) == (1, "::1")


def test_env_file_does_not_expand_dollar_signs(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TOCSIN_JWT_ISSUER=${HOME}\n")
    assert read_settings({}).jwt_issuer == "${HOME}"


def test_home_tilde_is_expanded_and_host_brackets_are_removed() -> None:
    settings = read_settings({"TOCSIN_DATA_DIR": "~/x", "TOCSIN_HOST": "[::1]"})
    assert settings.data_dir == Path.home() / "x"
    assert settings.host == "::1"


@pytest.mark.processes
def test_startup_error_is_logged_as_json_if_the_log_is_json(tmp_path: Path) -> None:
    for environment in (
        {"TOCSIN_LOG_FORMAT": "json", "TOCSIN_HOST": "192.0.2.1"},
        {"TOCSIN_LOG_FORMAT": "json", "TOCSIN_PROT": "1"},
    ):
        done = run("serve", environment={**environment, "TOCSIN_DATA_DIR": str(tmp_path / "data")})
        lines = [json.loads(line) for line in done.stderr.decode().splitlines()]
        assert done.returncode == 1
        assert lines[-1]["event"] == "refused"
        assert "TOCSIN_HOST" in lines[-1]["reason"] or "TOCSIN_PROT" in lines[-1]["reason"]


@pytest.mark.processes
async def test_log_reopen_signal_does_not_end_the_server() -> None:
    async with data_folder() as data, Program(data, "serve") as service:
        for kind in (signal.SIGUSR1, signal.SIGUSR2):
            service.signal(kind)
        url = f"http://{service.address[0]}:{service.address[1]}/healthz"
        async with httpx.AsyncClient(timeout=60) as client:
            assert (await client.get(url)).status_code == 200
        assert service.alive


@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a small /dev/shm of its own")
def test_small_shared_memory_is_reported_besides_full_disk() -> None:
    small = "mount -t tmpfs -o size=256k tmpfs /dev/shm && exec"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f'{small} "$@"', "sh", TOCSIN, "serve"],
            env={"PATH": os.defpath, "TOCSIN_PORT": "0", "TOCSIN_DATA_DIR": f"{folder}/data"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=100,
            check=False,
        )
    if b"unshare" in done.stderr or b"mount:" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert "--shm-size" in one_sentence(done)


@pytest.mark.processes
def test_message_that_is_not_utf8_is_rejected() -> None:
    said = one_sentence(run("send", "--user", "4", os.fsdecode("ø".encode("latin-1"))))
    assert "not UTF-8" in said


@pytest.mark.processes
def test_web_inbox_url_works_if_service_listens_on_all_addresses(tmp_path: Path) -> None:
    for host, due in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("[::1]", "[::1]")):  # noqa: S104
        variables = {"TOCSIN_JWT_SECRET": SECRET, "TOCSIN_HOST": host, "TOCSIN_PORT": "8080"}
        assert f'src="http://{due}:8080/' in commands.run("inbox", cwd=tmp_path, **variables).stdout


@pytest.mark.processes
def test_service_token_expiry_is_printed_to_stderr(tmp_path: Path) -> None:
    arguments = ("token", "service", "crm", "--scope", "events:write", "--expires", "90m")
    done = commands.run(*arguments, cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET)
    assert len(done.stdout.splitlines()) == 1
    assert re.search(r"expires at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, after 90m\.", done.stderr)


@pytest.mark.processes
def test_config_shows_locations_and_no_password(tmp_path: Path) -> None:
    urls = {
        "TOCSIN_DATABASE_URL": "postgresql://crm:geheim@db.example.com:5433/staging?sslpassword=geheim",
        "TOCSIN_NATS_URL": "nats://geheim@nats:4222,nats://u:geheim@nats2:4222",
    }
    said = commands.run("config", cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, **urls).stdout
    assert "geheim" not in said
    assert "TOCSIN_DATABASE_URL=postgresql://crm:***@db.example.com:5433/staging" in said
    assert "nats://***@nats:4222,nats://***@nats2:4222" in said


@pytest.mark.parametrize("zone", ["localtime", "Factory", "posixrules"])
def test_other_files_in_zoneinfo_are_not_time_zones(zone: str) -> None:
    assert not is_time_zone(zone)
    assert is_time_zone("Europe/Copenhagen")


COMMANDS = (
    *(
        ["serve"],
        ["worker"],
        ["demo"],
        ["migrate"],
        ["config"],
        ["doctor"],
        ["openapi"],
        ["preview", "note"],
        ["inbox"],
    ),
    *(
        ["console"],
        ["token", "user", "4"],
        ["token", "service", "crm", "--scope", "operations"],
        ["catalogue", "check"],
    ),
    *(["send", "--user", "4", "x"], ["import", "-"], ["export"], ["explain", "--user", "4"], ["replay"]),
)


@pytest.fixture
async def peopled(database: Database) -> None:
    """A directory with the user 4 in it."""
    user = User(id=4, company_id=1, first_name="A", last_name="B")
    await directory.put_user(database, user, None)


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": os.defpath, "TOCSIN_JWT_SECRET": SECRET, "TOCSIN_PORT": "0", **more.pop("environment", {})}
    return subprocess.run(
        [TOCSIN, *arguments],
        **{"env": environment, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **more},
        stderr=subprocess.PIPE,
        timeout=100,
        check=False,
    )


def one_sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the only line of what a command that failed said."""
    said = done.stderr.decode()
    assert done.returncode == 1, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    lines = said.splitlines()
    assert lines[-1].startswith("tocsin: "), said
    return lines[-1]


@pytest.mark.processes
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_reports_invalid_env_file(command: list[str], tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"# \xf8\n")
    if command == ["doctor"]:
        done = commands.run(*command, cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_PORT="0")
        assert (done.returncode, "FAIL settings: The file" in done.stdout) == (1, True)
    else:
        assert "is not UTF-8" in commands.refusal(*command, cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_PORT="0")


@pytest.mark.processes
@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each[0] not in {"serve", "worker", "demo", "send"}], ids=" ".join
)
@pytest.mark.usefixtures("peopled")
def test_every_command_reports_full_or_closed_output(command: list[str], url: str) -> None:
    environment = {"TOCSIN_DATABASE_URL": url, "TOCSIN_PORT": "8080"}
    silent = command[0] in {"migrate", "import"}
    with Path("/dev/full").open("w") as full:
        done = run(*command, stdout=full, environment=environment)
        if not silent:
            assert "No space left on device" in one_sentence(done)
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr
    closed = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", TOCSIN, *command],
        env={"PATH": os.defpath, "TOCSIN_JWT_SECRET": SECRET, **environment},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=100,
        check=False,
    )
    if not silent:
        assert "Standard output cannot be written" in one_sentence(closed)
    assert b"Traceback" not in closed.stderr
    assert closed.returncode in {0, 1}


@pytest.mark.processes
def test_version_and_help_report_full_disk_in_one_sentence() -> None:
    for command in (["--help"], ["--version"]):
        with Path("/dev/full").open("w") as full:
            assert "No space left on device" in one_sentence(run(*command, stdout=full))


@pytest.mark.processes
@pytest.mark.usefixtures("peopled")
def test_export_to_full_disk_is_reported_in_one_sentence(url: str) -> None:
    done = run("export", "/dev/full", environment={"TOCSIN_DATABASE_URL": url})
    assert "The file /dev/full cannot be written: No space left on device" in one_sentence(done)


@pytest.mark.processes
@pytest.mark.usefixtures("peopled")
def test_failed_export_leaves_the_last_one_as_it_was(url: str, tmp_path: Path) -> None:
    (last := tmp_path / "lines").write_text("last")
    limited = ["sh", "-c", f"ulimit -f 0; exec {TOCSIN} export {last}"]
    done = subprocess.run(limited, env=os.environ | {"TOCSIN_DATABASE_URL": url}, capture_output=True, check=False)
    assert f"The file {last} cannot be written: File too large" in one_sentence(done)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["last"]


@pytest.mark.processes
@pytest.mark.usefixtures("peopled")
def test_export_replaces_what_a_link_names_by_a_private_file(url: str, tmp_path: Path) -> None:
    (last := tmp_path / "last").write_text("last")
    (link := tmp_path / "link").symlink_to("last")
    assert run("export", str(link), environment={"TOCSIN_DATABASE_URL": url}).returncode == 0
    assert (link.is_symlink(), last.stat().st_mode & 0o777) == (True, 0o600)
    assert "user" in json.loads(last.read_text().splitlines()[0])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last", "link"]


@pytest.mark.processes
def test_refused_import_names_its_file_or_standard_input(url: str, tmp_path: Path) -> None:
    (path := tmp_path / "users").write_text('{"user": {"id": 1, "first_name": "A"}}\n')
    for name, due in ((str(path), str(path)), ("-", "standard input")):
        with path.open("rb") as lines:
            done = run("import", name, stdin=lines, environment={"TOCSIN_DATABASE_URL": url})
        assert done.returncode == 1
        assert done.stderr.decode().splitlines() == [
            f"tocsin: Nothing was imported from {due}:",
            "The lines.1.user.last_name field is required.",
        ]


@pytest.mark.processes
@as_another_user
def test_user_without_name_and_home_gets_a_remedy() -> None:
    nameless: dict[str, Any] = {"user": 54321, "group": 54321, "extra_groups": [], "cwd": "/"}
    for command in (["config"], ["openapi"], ["preview", "note"], ["catalogue", "check"], ["token", "user", "4"]):
        assert run(*command, **nameless).returncode == 0
    assert b"Traceback" not in run("doctor", **nameless).stderr
    with tempfile.TemporaryDirectory(dir="/tmp") as data:
        os.chown(data, 54321, 54321)
        said = one_sentence(run("serve", environment={"TOCSIN_DATA_DIR": data}, **nameless))
    assert "54321 has none" in said
    assert "TOCSIN_DATABASE_URL" in said


@pytest.mark.processes
@as_another_user
def test_env_file_of_another_user_is_reported_in_one_sentence(place: Path) -> None:
    (place / ".env").write_text("TOCSIN_PORT=1\n")
    (place / ".env").chmod(0o600)
    assert "Permission denied" in one_sentence(run("config", user=54321, group=54321, extra_groups=[], cwd=place))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("query", "due"),
    [
        ("?nonsense=1", "take that parameter out"),
        ("?sslrootcert=/nonexistent&sslmode=verify-full", "/nonexistent.*sslrootcert.*No such file"),
        ("?sslmode=nonsense", "sslmode"),
    ],
)
async def test_rejected_database_url_ends_the_start_immediately(url: str, query: str, due: str) -> None:
    address = url + query.replace("?", "&")
    done = await asyncio.to_thread(run, "migrate", environment={"TOCSIN_DATABASE_URL": address})
    assert re.search(due, one_sentence(done))
    assert len(done.stderr.splitlines()) == 1
