"""Key rotation in a running service: SIGHUP reloads keys, and no subscription is lost."""

import signal
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.events import custom, post
from tests.support.issuer import pair
from tests.support.processes import Program, data_folder
from tests.support.pushes import IPHONE, comes_to, hurry, pushes_of, register, until_stopped
from tests.support.service import HOUR, SECRET, Api, settings_for
from tests.support.waiting import bounded, reaches, until
from tocsin.auth.claims import UserCaller
from tocsin.auth.keys import ALL_SPEAKERS, hs256
from tocsin.auth.minting import Signer, mint_service, mint_user
from tocsin.auth.tokens import Verifier
from tocsin.db.pool import Database
from tocsin.errors import Refusal, Unauthenticated, Unavailable
from tocsin.push import deliveries
from tocsin.push.apps import reload_keys
from tocsin.push.channels.vapid import Vapid
from tocsin_phones import Phones


def a_key() -> bytes:
    return generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


async def subscribe(api: Api, phones: Phones, user: int) -> str:
    """Subscribe a browser like a page does, and return its application server key."""
    key: str = (await api.as_user(user, "GET", "/notifications/web-push/key")).json()["key"]
    answer = await api.as_user(user, "POST", "/notifications/web-push", json=phones.subscribe(key))
    assert answer.status_code == 204, answer.text
    return key


async def read(api: Api) -> bool:
    assert api.worker
    assert api.worker.dispatcher
    changed = reload_keys(api.app_state.lanes, api.app_state.settings)
    await api.worker.dispatcher.keys_reloaded()
    return changed


async def test_browsers_of_old_and_new_vapid_key_are_reached(pushing: Api, phones: Phones, tmp_path: Path) -> None:
    file = tmp_path / "vapid.pem"
    before = await subscribe(pushing, phones, 1)
    file.write_bytes(a_key() + file.read_bytes())
    assert await read(pushing)
    after = await subscribe(pushing, phones, 2)
    assert after != before
    for _ in range(2):
        id_ = await pushing.post(custom(1, 2))
        assert await pushes_of(pushing, id_) == {"delivered": 2}
    kept = await pushing.app_state.database.rows("select user_id, server_key from devices order by user_id")
    assert [tuple(row) for row in kept] == [(1, before[:16]), (2, None)]
    refused = [push for push in phones.pushes("browser") if push["status"] == 403]
    assert len(refused) == 1  # the first to the old one, and not again


async def test_browser_of_a_removed_vapid_key_is_kept_and_its_push_waits(
    pushing: Api, phones: Phones, tmp_path: Path
) -> None:
    await subscribe(pushing, phones, 1)
    (tmp_path / "vapid.pem").write_bytes(a_key())
    assert await read(pushing)
    await subscribe(pushing, phones, 2)
    await pushes_of(pushing, await pushing.post(custom(2)))
    id_ = (await post(pushing, custom(1))).json()["id"]
    await comes_to(pushing, id_, {"later": 1})
    assert len((await pushing.as_user(1, "GET", "/notifications/devices")).json()["data"]) == 1


async def test_rejected_vapid_token_deletes_no_browser(pushing: Api, phones: Phones, tmp_path: Path) -> None:
    file = tmp_path / "vapid.pem"
    file.write_bytes(file.read_bytes() + a_key())
    assert await read(pushing)
    await subscribe(pushing, phones, 1)
    assert await pushes_of(pushing, await pushing.post(custom(1))) == {"delivered": 1}
    phones.answer("browser", status=401, times=1)
    id_ = (await post(pushing, custom(1))).json()["id"]
    await hurry(pushing)
    assert await pushes_of(pushing, id_) == {"delivered": 1}


async def test_stopped_lane_resumes_with_the_right_key(pushing: Api, tmp_path: Path) -> None:
    [file] = tmp_path.glob("*.p8")
    right = file.read_bytes()
    file.write_bytes(a_key())
    assert await read(pushing)
    await register(pushing, 1, IPHONE)
    id_ = (await post(pushing, custom(1))).json()["id"]
    assert "InvalidProviderToken" in (await until_stopped(pushing))["reason"]
    assert not await read(pushing)  # the same key would be no better
    file.write_bytes(right)
    assert await read(pushing)
    assert await pushes_of(pushing, id_) == {"delivered": 1}


async def test_response_to_the_old_key_does_not_stop_the_lane(pushing: Api, phones: Phones, tmp_path: Path) -> None:
    await register(pushing, 1, IPHONE)
    phones.answer("apns", status=403, reason="InvalidProviderToken", after_ms=800, times=1)
    id_ = (await post(pushing, custom(1))).json()["id"]
    await until(lambda: phones.pushes("apns"))
    await renew(pushing, tmp_path)
    assert await pushes_of(pushing, id_) == {"delivered": 1}
    assert len(phones.pushes("apns")) == 2


async def test_new_keys_use_separate_connections(pushing: Api, phones: Phones, tmp_path: Path) -> None:
    # APNs refuses a second token on a connection within 20 minutes, and so does the stand-in.
    await register(pushing, 1, IPHONE)
    for _ in range(3):
        assert await pushes_of(pushing, await pushing.post(custom(1))) == {"delivered": 1}
        await renew(pushing, tmp_path)
    assert [push["status"] for push in phones.pushes("apns")] == [200] * 3


async def renew(api: Api, folder: Path) -> None:
    """Reload the APNs key from a changed file with the same key."""
    [file] = folder.glob("*.p8")
    file.write_bytes(file.read_bytes() + b"\n")
    assert await read(api)


async def test_unusable_new_key_keeps_the_previous_one(pushing: Api, tmp_path: Path) -> None:
    await register(pushing, 1, IPHONE)
    [file] = tmp_path.glob("*.p8")
    file.write_text("half of a ke")
    assert not await read(pushing)
    id_ = await pushing.post(custom(1))
    assert await pushes_of(pushing, id_) == {"delivered": 1}


def test_vapid_key_file_has_at_most_two_keys(tmp_path: Path) -> None:
    file = tmp_path / "vapid.pem"
    file.write_bytes(b"# the new one\n" + a_key() + a_key())
    assert len({key.name for key in Vapid.load(file)}) == 2
    file.write_bytes(a_key() + a_key() + a_key())
    with pytest.raises(Refusal, match="more than two"):
        Vapid.load(file)
    file.write_bytes(a_key() + pair("RS256").private_pem)
    with pytest.raises(Refusal, match="no private key on the curve"):
        Vapid.load(file)


def test_tokens_of_removed_secret_are_rejected_immediately() -> None:
    other = SECRET[::-1]
    verifier = Verifier([SECRET])
    token = mint_user(Signer(SECRET), 4, HOUR)
    assert isinstance(verifier.verify(token), UserCaller)
    withdrawn: list[None] = []
    verifier.on_withdrawal = lambda: withdrawn.append(None)
    verifier.take([hs256(SECRET, ALL_SPEAKERS), hs256(other, ALL_SPEAKERS)])
    assert withdrawn == []
    verifier.take([hs256(other, ALL_SPEAKERS)])
    assert withdrawn == [None]
    with pytest.raises(Unauthenticated):
        verifier.verify(token)
    assert isinstance(verifier.verify(mint_user(Signer(other), 4, HOUR)), UserCaller)


@pytest.mark.processes
async def test_sighup_reloads_keys(tmp_path: Path) -> None:
    old, new = pair("ES256"), pair("ES256", "other")
    file = tmp_path / "login.pem"
    file.write_bytes(old.pem)
    async with data_folder() as data, Phones() as phones:
        variables = {**phones.credentials(tmp_path), "TOCSIN_JWT_PUBLIC_KEY_FILES": str(file)}
        async with Program(data, "serve", variables=variables) as service:
            vapid = data / "vapid.pem"
            host, port = service.address
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60) as http:

                async def status(token: str, path: str = "/notifications/web-push/key") -> httpx.Response:
                    return await http.get(path, headers={"Authorization": f"Bearer {token}"})

                crm = mint_service(SECRET, "crm", ["directory:write"], HOUR)
                answer = await http.put(
                    "/directory/users/4",
                    json={"first_name": "B", "last_name": "K"},
                    headers={"Authorization": f"Bearer {crm}"},
                )
                assert answer.status_code == 204, answer.text
                first = await status(old.sign())
                assert first.status_code == 200, first.text
                bearer = {"Authorization": f"Bearer {old.sign()}"}
                async with http.stream("GET", "/notifications/stream", headers=bearer) as stream:
                    lines = stream.aiter_lines()
                    assert (await anext(lines)).startswith("id: ")
                    file.write_bytes(new.pem)
                    vapid.write_bytes(a_key() + vapid.read_bytes())
                    service.signal(signal.SIGHUP)
                    await until(lambda: "keys reloaded" in service.log())
                    async with bounded():
                        async for _ in lines:  # which ends with the key
                            pass
                assert (await status(old.sign())).status_code == 401
                second = await status(new.sign())
                assert second.status_code == 200
                assert second.json()["key"] != first.json()["key"]
                file.write_text("nothing of the kind")
                service.signal(signal.SIGHUP)
                await until(lambda: "key reload failed" in service.log())
                assert (await status(new.sign())).status_code == 200


async def test_new_app_takes_effect_at_the_next_start(pushing: Api, tmp_path: Path) -> None:
    apps = tmp_path / "apps.toml"
    [key] = tmp_path.glob("*.p8")
    apps.write_text(
        f'[van.apns]\nkey_file = "{key}"\nkey_id = "ABCDE12345"\nteam_id = "ABCDE12345"\ntopic = "com.example.van"\n'
    )
    more = {**pushing.app_state.settings.model_dump(exclude_unset=True), "apps_file": apps}
    assert not reload_keys(pushing.app_state.lanes, settings_for(**more))
    assert "apns/van" not in {lane.name for lane in pushing.app_state.lanes}


async def test_invalid_key_file_keeps_the_previous_key(pushing: Api, tmp_path: Path) -> None:
    [file] = tmp_path.glob("*.p8")
    file.unlink()
    file.mkdir()
    assert not await read(pushing)
    await register(pushing, 1, IPHONE)
    id_ = await pushing.post(custom(1))
    assert await pushes_of(pushing, id_) == {"delivered": 1}


async def test_key_reload_restarts_lanes_despite_database_outage(pushing: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pushing.worker
    assert pushing.worker.dispatcher

    async def entered() -> int:
        return len(await deliveries.lanes(pushing.app_state.database))

    await reaches(entered, len(pushing.app_state.lanes))
    enter, tries = deliveries.enter_lane, []

    async def away_at_first(database: Database, name: str, configuration: str) -> None:
        tries.append(name)
        if len(tries) == 1:
            raise Unavailable
        await enter(database, name, configuration)

    monkeypatch.setattr(deliveries, "enter_lane", away_at_first)
    await pushing.worker.dispatcher.keys_reloaded()
    assert len(tries) == len(pushing.app_state.lanes) + 1
