"""The command line."""

import asyncio
import contextlib
import gc
import re
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.support.commands import refusal, run, run_installed
from tests.support.database import url_for
from tests.support.events import custom
from tests.support.service import SECRET, Api
from tocsin.auth.claims import Expected, ServiceCaller, UserCaller
from tocsin.auth.tokens import Verifier
from tocsin.cli.running import uncollected
from tocsin.postgres.supervisor import Embedded

pytestmark = pytest.mark.processes


def test_token_user_prints_a_token_that_the_service_accepts(tmp_path: Path) -> None:
    done = run("token", "user", "4", "--expires", "90s", cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET)
    caller = Verifier([SECRET]).verify(done.stdout.strip())
    assert isinstance(caller, UserCaller)
    assert caller.id == 4


OPS = {"TOCSIN_CONSOLE_URL": "https://ops.example.com/console/"}


def test_console_link_has_one_hour_token_in_its_fragment(tmp_path: Path) -> None:
    for more, variables, due in (
        ([], {}, "http://127.0.0.1:8080/console"),
        ([], {"TOCSIN_ROOT_PATH": "/notify"}, "http://127.0.0.1:8080/notify/console"),
        ([], {"TOCSIN_OPERATIONS_PORT": "9000", "TOCSIN_ROOT_PATH": "/notify"}, "http://127.0.0.1:9000/console"),
        ([], {**OPS, "TOCSIN_OPERATIONS_PORT": "9000"}, "https://ops.example.com/console"),
        (["--url", "https://x.example/", "--company-id", "3"], OPS, "https://x.example/console"),
    ):
        done = run("console", *more, cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, **variables)
        url, _, token = done.stdout.strip().partition("#token=")
        assert url == due
        caller = Verifier([SECRET]).verify(token)
        assert isinstance(caller, ServiceCaller)
        assert caller.scopes == {"operations"}
        assert caller.company_id == (3 if more else None)
        assert 3500 < caller.expires - time.time() <= 3600


def test_first_of_several_secrets_signs_tokens(tmp_path: Path) -> None:
    newer = "another-secret-for-tests-0123456789abcdef"
    done = run(
        *("token", "service", "crm", "--scope", "events:write", "--scope", "directory:write", "--company-id", "3"),
        cwd=tmp_path,
        TOCSIN_JWT_SECRET=f"{newer},{SECRET}",
    )
    caller = Verifier([newer]).verify(done.stdout.strip())
    assert isinstance(caller, ServiceCaller)
    assert caller.scopes == {"events:write", "directory:write"}
    assert (caller.name, caller.company_id) == ("crm", 3)


def test_unknown_scope_is_rejected(tmp_path: Path) -> None:
    said = refusal("token", "service", "crm", "--scope", "all", cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET)
    assert "all" in said
    assert "events:write" in said


def test_invalid_token_lifetime_is_rejected(tmp_path: Path) -> None:
    said = refusal("token", "user", "4", "--expires", "soon", cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET)
    assert "15m" in said


def test_token_without_a_secret_prints_the_remedy(tmp_path: Path) -> None:
    said = refusal("token", "user", "4", cwd=tmp_path, TOCSIN_DATA_DIR=str(tmp_path / "nothing"))
    assert "tocsin serve" in said


def test_public_keys_verify_but_mint_no_tokens(tmp_path: Path, server: Embedded) -> None:
    keys = {"TOCSIN_JWT_PUBLIC_KEY_FILES": "key.pem", "TOCSIN_DATABASE_URL": server.url}
    for command in (["token", "user", "4"], ["token", "service", "crm", "--scope", "operations"]):
        assert "Public keys cannot sign tokens" in refusal(*command, cwd=tmp_path, **keys)
    assert "key.pem cannot be read" in refusal("serve", cwd=tmp_path, **keys)


def test_token_has_the_configured_claims(tmp_path: Path) -> None:
    demanded = {"TOCSIN_JWT_ISSUER": "us", "TOCSIN_JWT_AUDIENCE": "tocsin", "TOCSIN_JWT_USER_CLAIM": "uid"}
    done = run("token", "user", "4", cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, **demanded)
    verifier = Verifier([SECRET], expected=Expected("us", "tocsin", user_claim="uid"))
    assert verifier.verify(done.stdout.strip()).label == "user 4"
    said = refusal("token", "user", "4", cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_JWT_SECRET_FOR="services")
    assert "TOCSIN_JWT_SECRET_FOR" in said


def test_config_masks_secrets_and_shows_settings(tmp_path: Path) -> None:
    url = "postgresql://crm:geheim@db.example.com/crm"
    done = run("config", cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_DATABASE_URL=url, TOCSIN_PORT="9000")
    assert SECRET not in done.stdout
    assert "geheim" not in done.stdout
    assert re.search(r"^TOCSIN_PORT=9000 +# set", done.stdout, re.MULTILINE)
    assert re.search(r"^TOCSIN_HOST=127.0.0.1 +# default", done.stdout, re.MULTILINE)


def test_every_command_rejects_unknown_variables(tmp_path: Path) -> None:
    for command in ("serve", "worker", "demo", "migrate", "config"):
        assert "TOCSIN_SECERT" in refusal(command, cwd=tmp_path, TOCSIN_SECERT="x")


def test_serve_with_external_database_requires_a_secret(tmp_path: Path, server: Embedded) -> None:
    said = refusal("serve", cwd=tmp_path, TOCSIN_DATABASE_URL=server.url)
    assert "TOCSIN_JWT_SECRET" in said


def test_serve_warns_of_a_secret_that_can_be_guessed(tmp_path: Path) -> None:
    for secret, warnings in (("x" * 32, 1), (SECRET, 0)):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            done = run("serve", cwd=tmp_path, TOCSIN_JWT_SECRET=secret, TOCSIN_PORT=port)
        assert (done.returncode, done.stderr.count("TOCSIN_JWT_SECRET can be guessed")) == (1, warnings)
        assert secret not in done.stderr


def test_port_in_use_is_named(tmp_path: Path, server: Embedded) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        serve = partial(refusal, "serve", cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_DATABASE_URL=server.url)
        in_use = f"Cannot listen on 127.0.0.1:{port}: Address already in use; set"
        assert f"{in_use} TOCSIN_PORT" in serve(TOCSIN_PORT=port)
        assert f"{in_use} TOCSIN_OPERATIONS_PORT" in serve(TOCSIN_PORT="0", TOCSIN_OPERATIONS_PORT=port)
    assert "TOCSIN_PORT and TOCSIN_OPERATIONS_PORT are both" in serve(TOCSIN_PORT=port, TOCSIN_OPERATIONS_PORT=port)


def test_migrate_updates_an_external_database(tmp_path: Path, server: Embedded, quiet_database: str) -> None:
    assert url_for(server, "quiet") == quiet_database
    done = run("migrate", cwd=tmp_path, TOCSIN_DATABASE_URL=quiet_database, TOCSIN_LOG_FORMAT="json")
    assert done.returncode == 0
    assert '"new_steps":[]' in done.stderr.replace(" ", "")


def test_invalid_database_url_is_rejected_without_repeating_it(tmp_path: Path) -> None:
    said = refusal("serve", cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_DATABASE_URL="mysql://root:geheim@db/x")
    assert "TOCSIN_DATABASE_URL" in said
    assert "geheim" not in said


def test_invalid_arguments_are_rejected_before_starting_the_database(tmp_path: Path) -> None:
    for arguments, expected in (
        (["explain"], "an event and a user, or --user"),
        (["explain", "abc", "4"], "'abc' is not the id of an event"),
        (["cancel", "abc"], "'abc' is not the id of an event"),
        (["explain", "--user", "4", "--since", "noon"], "10:00"),
        (["replay", "--since", "noon"], "10:00"),
        (["replay", "--since", "999999d"], "'999999d' ago is before the year 1"),
        (["restore", ".", "--to-time", ""], "'' is not a time"),
        (["restore", ""], "The folder is empty"),
        (["backup", ""], "The folder is empty"),
        (["restore", ".", "--restore-command", ""], "`false` leaves the archive out"),
        (["relay", "--database", ""], "OUTBOX_DATABASE_URL"),
        (["cell", "add", "east", "--url", "postgresql:///x", "--company", "\u00b2"], "write the id of a company"),
    ):
        assert expected in refusal(*arguments, cwd=tmp_path, TOCSIN_DATA_DIR=str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_export_of_an_unknown_company_is_refused(tmp_path: Path, quiet_database: str) -> None:
    (tmp_path / "export").write_text("kept")
    said = refusal("export", "export", "--company-id", "99", cwd=tmp_path, TOCSIN_DATABASE_URL=quiet_database)
    assert said == "tocsin: Company 99 has no users and no teams."
    assert (tmp_path / "export").read_text() == "kept"


@pytest.mark.parametrize("arguments", [("--user", f"{2**31}"), ("00000000-0000-0000-0000-000000000001", f"{2**31}")])
def test_user_id_out_of_range_is_named(tmp_path: Path, arguments: tuple[str, str]) -> None:
    done = run("explain", *arguments, cwd=tmp_path, TOCSIN_DATA_DIR=str(tmp_path / "data"))
    assert (done.returncode, "Input should be less than or equal to 2147483647" in done.stderr) == (2, True)


def test_commands_for_an_existing_database_create_none(tmp_path: Path) -> None:
    (tmp_path / "export").write_text("kept")
    for arguments in (
        ["export", "export"],
        ["explain", "--user", "4"],
        ["replay"],
        ["cancel", str(uuid4())],
        ["sign-out", "--all"],
        ["partition"],
        ["post-role", "crm", "--all-companies"],
    ):
        said = refusal(*arguments, cwd=tmp_path, TOCSIN_DATA_DIR=str(tmp_path / "data"))
        assert f"There is no database in {tmp_path}/data; set TOCSIN_DATA_DIR." in said, arguments
    assert not (tmp_path / "data").exists()
    assert (tmp_path / "export").read_text() == "kept"


def test_url_to_which_no_path_can_be_appended_is_refused(tmp_path: Path) -> None:
    settings = {"TOCSIN_JWT_SECRET": SECRET, "OUTBOX_DATABASE_URL": "postgresql://127.0.0.1:1/crm"}
    for arguments in (["console"], ["inbox"], ["relay"], ["send", "--user", "1", "Hello"]):
        for url in ("crm.example.com", "https://x.example/?a=b", "https://x.example/#a", "http://[::1"):
            said = refusal(*arguments, "--url", url, cwd=tmp_path, **settings)
            assert f"'{url}' is not the url of a service" in said, arguments


async def test_cancel_command_cancels_an_event(tmp_path: Path, idle: Api, quiet_database: str) -> None:
    await idle.people(1)
    held, delivered = [(await idle.as_service("POST", "/events", json=custom(1))).json()["id"] for _ in range(2)]
    await idle.app_state.database.value("delete from jobs where id = $1", UUID(delivered))
    cancel = partial(run, "cancel", cwd=tmp_path, TOCSIN_DATABASE_URL=quiet_database)
    for _ in range(2):
        assert (await asyncio.to_thread(cancel, held)).stdout == f"Cancelled event {held}.\n"
    told = (await idle.as_service("GET", f"/events/{held}")).json()
    assert (told["state"], told["reason"]) == ("cancelled", "cancelled by an operator: tocsin cancel")
    assert "too late" in (await asyncio.to_thread(cancel, delivered)).stderr
    assert "There is no event" in (await asyncio.to_thread(cancel, str(uuid4()))).stderr


@pytest.mark.parametrize("lane", ["apns/defualt", ""])
def test_unknown_lane_is_named(tmp_path: Path, quiet_database: str, lane: str) -> None:
    said = refusal("replay", "--lane", lane, cwd=tmp_path, TOCSIN_DATABASE_URL=quiet_database)
    assert f"Unknown lane '{lane}': " in said


def test_uncreatable_data_folder_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal("serve", cwd=tmp_path, TOCSIN_PORT="0", TOCSIN_DATA_DIR=str(tmp_path / "file/data"))
    assert f"{tmp_path}/file/data: Not a directory; set TOCSIN_DATA_DIR" in said


def test_version_is_printed(tmp_path: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", run_installed("--version", cwd=tmp_path).stdout)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["token", "--help"]])
def test_help_is_printed(tmp_path: Path, arguments: list[str]) -> None:
    done = run_installed(*arguments, cwd=tmp_path)
    assert "Usage" in done.stdout + done.stderr


_WRITE_LOADED = """
import atexit, pathlib, sys
atexit.register(lambda: pathlib.Path("loaded").write_text("\\n".join(sys.modules)))
from tocsin.cli.commands import main
main()
"""


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("--version", set()),
        ("--help", set()),
        ("config", {"tocsin.settings"}),
        ("token user 1", {"tocsin.settings", "pycurl"}),
        ("doctor", {"tocsin.settings", "pycurl", "asyncpg"}),
        ("backup backups", {"tocsin.settings", "asyncpg"}),
        ("restore backups", {"tocsin.settings", "asyncpg"}),
        ("migrate", {"tocsin.settings", "asyncpg"}),
        ("serve", {"tocsin.settings", "tocsin.worker", "asyncpg", "fastapi", "pycurl", "starlette", "uvicorn"}),
        ("worker", {"tocsin.settings", "tocsin.worker", "asyncpg", "fastapi", "pycurl", "starlette", "uvicorn"}),
    ],
)
def test_command_loads_only_what_it_runs(tmp_path: Path, command: str, allowed: set[str]) -> None:
    """The last three end at a database that refuses connections: nothing starts."""
    refusing = {"TOCSIN_DATABASE_URL": "postgresql:///x?sslmode=nonsense"}
    subprocess.run(
        [sys.executable, "-c", _WRITE_LOADED, *command.split()],
        cwd=tmp_path,
        env={"TOCSIN_DATA_DIR": str(tmp_path), "PATH": ""}
        | (refusing if command in {"migrate", "serve", "worker"} else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    loaded = (tmp_path / "loaded").read_text().split()
    parts = {"fastapi", "starlette", "uvicorn", "nats", "pycurl", "asyncpg", "tocsin.settings", "tocsin.worker"}
    parts |= {"rich.console", "pydantic.v1.main", "tocsin.api.app"}
    assert parts & set(loaded) == allowed


def test_models_of_the_api_document_are_built_when_it_is_made() -> None:
    """FastAPI builds its own models when it is imported: that would take 30 ms of each start, and 1.3 MB."""
    built = "import tocsin.api.app, fastapi.openapi.models as made; print(made.OpenAPI.__pydantic_complete__)"
    assert subprocess.check_output([sys.executable, "-c", built], text=True, timeout=60) == "False\n"


def test_garbage_is_collected_after_an_import_that_failed() -> None:
    try:
        with contextlib.suppress(ImportError), uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled()
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
