"""The demo is isolated from a service with the same settings."""

import signal
from pathlib import Path

import httpx
import pytest

from tests.support.commands import refusal, run
from tests.support.processes import Program, data_folder
from tests.support.service import HOUR, SECRET
from tests.support.waiting import until
from tocsin.auth.minting import mint_service, mint_user
from tocsin.demo.run import MARK, PASSED_SETTINGS, _own_settings
from tocsin.settings import Settings, read_settings
from tocsin_phones import Phones

REAL = {
    "TOCSIN_APNS_KEY_FILE": "/etc/ours/apns.p8",
    "TOCSIN_APNS_KEY_ID": "OURKEY",
    "TOCSIN_APNS_TEAM_ID": "OURTEAM",
    "TOCSIN_APNS_TOPIC": "com.example.ours",
    "TOCSIN_APNS_URL": "https://apns.example.com",
    "TOCSIN_APNS_SANDBOX_URL": "https://sandbox.example.com",
    "TOCSIN_APNS_SANDBOX_KEY_FILE": "/etc/ours/sandbox.p8",
    "TOCSIN_APNS_SANDBOX_KEY_ID": "OUROTHER",
    "TOCSIN_FCM_CREDENTIALS_FILE": "/etc/ours/fcm.json",
    "TOCSIN_FCM_URL": "https://fcm.example.com",
    "TOCSIN_APPS_FILE": "/etc/ours/apps.toml",
    "TOCSIN_VAPID_KEY_FILE": "/etc/ours/vapid.pem",
    "TOCSIN_VAPID_SUBJECT": "mailto:us@example.com",
    "TOCSIN_WEB_PUSH_ORIGINS": "https://push.example.com",
    "TOCSIN_PUSH_CA_FILE": "/etc/ours/ca.pem",
    "TOCSIN_JWT_SECRET": SECRET,
    "TOCSIN_JWT_JWKS_URL": "https://id.example.com/jwks",
    "TOCSIN_NATS_URL": "nats://nats.example.com:4222",
}
"""Settings of a production service."""


async def test_demo_ignores_keys_push_services_and_database_of_the_service(tmp_path: Path) -> None:
    given = {**REAL, "TOCSIN_PORT": "81", "TOCSIN_DATA_DIR": str(tmp_path / "ours")}
    real = read_settings(given, tmp_path / "no.env")
    async with Phones() as phones:
        fakes = phones.credentials(tmp_path)
        own = _own_settings(real, tmp_path / "own", fakes)
    assert (own.port, own.data_dir) == (81, tmp_path / "own")
    usual = read_settings(fakes, tmp_path / "no.env")
    for name in Settings.model_fields.keys() - PASSED_SETTINGS - {"data_dir"}:
        assert getattr(own, name) == getattr(usual, name), name
    assert Settings.model_fields.keys() >= PASSED_SETTINGS
    assert not any(name.startswith(("jwt_", "apns_", "fcm_", "vapid_", "database_")) for name in PASSED_SETTINGS)


@pytest.mark.processes
def test_demo_rejects_another_database_in_one_sentence(tmp_path: Path) -> None:
    url = "postgresql://crm@127.0.0.1:1/crm"
    assert "unset TOCSIN_DATABASE_URL" in refusal("demo", cwd=tmp_path, TOCSIN_DATABASE_URL=url)
    database = tmp_path / "data" / "demo" / "postgres"
    database.mkdir(parents=True)
    said = refusal("demo", cwd=tmp_path, TOCSIN_DATA_DIR=str(tmp_path / "data"))
    assert "was not made by the demo" in said
    assert [path.name for path in database.parent.iterdir()] == ["postgres"]
    assert MARK not in {path.name for path in database.parent.iterdir()}


@pytest.mark.processes
async def test_demo_does_not_change_a_service_with_the_same_settings() -> None:
    async with data_folder() as data:
        async with Program(data, "serve") as service:
            await _fill(service)
            before = await _exported(data)
            await _end(service)
        async with Program(data, "demo", variables=REAL) as demo:
            await until(lambda: "Open http" in demo.log())
            crm = await _token_of_demo(demo)
            await _end(demo)
        async with Program(data, "serve") as service:
            assert await _exported(data) == before
            async with _client(service) as http:
                answer = await http.get("/directory/users", headers={"Authorization": f"Bearer {crm}"})
            assert answer.status_code == 401


@pytest.mark.processes
async def test_tour_after_a_demo_finds_an_empty_inbox() -> None:
    async with data_folder() as data:
        async with Program(data, "demo") as demo:
            await until(lambda: "Open http" in demo.log())
            await _end(demo)
        async with Program(data, "serve") as service, _client(service) as http:
            crm = {"Authorization": f"Bearer {mint_service(SECRET, 'crm', ['directory:write'], HOUR)}"}
            assert (await http.get("/directory/users", headers=crm)).json()["data"] == []
            john = {"first_name": "John", "last_name": "Doe"}
            assert (await http.put("/directory/users/1", json=john, headers=crm)).status_code == 204
            inbox = await http.get("/notifications", headers={"Authorization": f"Bearer {mint_user(SECRET, 1, HOUR)}"})
            assert inbox.json()["data"] == []


async def _fill(service: Program) -> None:
    """Create a user with an id of the demo, with a phone and a team."""
    crm = {"Authorization": f"Bearer {mint_service(SECRET, 'crm', ['directory:write'], HOUR)}"}
    async with _client(service) as http:
        real = {"first_name": "Real", "last_name": "Customer", "company_id": 77, "email": "real@customer.example"}
        assert (await http.put("/directory/users/1", json=real, headers=crm)).status_code == 204
        team = {"name": "Ours", "company_id": 77, "users": [1]}
        assert (await http.put("/directory/teams/1", json=team, headers=crm)).status_code == 204
        user = {"Authorization": f"Bearer {mint_user(SECRET, 1, HOUR)}"}
        assert (await http.post(f"/notifications/devices/{'ab' * 32}", headers=user)).status_code == 204


async def _exported(data: Path) -> list[str]:
    running = run("export", cwd=data.parent, TOCSIN_DATA_DIR=str(data), TOCSIN_JWT_SECRET=SECRET)
    assert running.returncode == 0, running.stderr
    lines = running.stdout.splitlines()
    assert any("real@customer.example" in line for line in lines)
    assert any("abababab" in line for line in lines)
    return lines


async def _token_of_demo(demo: Program) -> str:
    async with _client(demo) as http:
        return str((await http.get("/demo/people")).json()["crm"])


async def _end(program: Program) -> None:
    program.signal(signal.SIGTERM)
    await until(lambda: not program.alive)


def _client(program: Program) -> httpx.AsyncClient:
    host, port = program.address
    return httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60)
