"""Push services that reject all pushes: no subscription is lost, others are unaffected, operators see it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.events import custom, post
from tests.support.pushes import comes_to, hurry, push_report, pushes_of
from tests.support.service import Api, serving
from tests.support.waiting import until
from tocsin.catalogue import Catalogue
from tocsin.cli import doctor
from tocsin.push import deliveries, services
from tocsin.push.apps import reload_keys
from tocsin.push.channels.vapid import Vapid
from tocsin_phones import Phones


@dataclass
class Two:
    """The service, and two push services with a browser each: of user 1 and of user 2."""

    api: Api
    first: Phones
    second: Phones
    origins: tuple[str, str]

    async def browsers(self, user: int) -> int:
        return len((await self.api.as_user(user, "GET", "/notifications/devices")).json()["data"])

    async def refusing(self) -> list[tuple[str, str]]:
        return [(row["origin"], row["reason"]) for row in await deliveries.refusing(self.api.app_state.database)]


@pytest.fixture
async def two(url: str, catalogue: Catalogue, tmp_path: Path) -> AsyncIterator[Two]:
    Vapid.make(tmp_path / "vapid.pem", "mailto:push@example.com")
    async with Phones() as first, Phones() as second:
        variables = []
        for phones, name in ((first, "first"), (second, "second")):
            (tmp_path / name).mkdir()
            variables.append(phones.credentials(tmp_path / name))
        origins = tuple(each["TOCSIN_WEB_PUSH_ORIGINS"] for each in variables)
        anchors = tmp_path / "anchors.pem"
        anchors.write_text("".join(Path(each["TOCSIN_PUSH_CA_FILE"]).read_text() for each in variables))
        environment = {
            "TOCSIN_VAPID_KEY_FILE": str(tmp_path / "vapid.pem"),
            "TOCSIN_VAPID_SUBJECT": "mailto:push@example.com",
            "TOCSIN_WEB_PUSH_ORIGINS": ",".join(origins),
            "TOCSIN_PUSH_CA_FILE": str(anchors),
        }
        async with serving(url, catalogue, environment=environment) as api:
            await api.people(1, 2)
            for user, phones in ((1, first), (2, second)):
                answer = await api.as_user(user, "POST", "/notifications/web-push", json=phones.subscribe(""))
                assert answer.status_code == 204, answer.text
            yield Two(api, first, second, (origins[0], origins[1]))


REFUSALS: list[dict[str, Any]] = [
    {"status": 403, "answer": "empty"},
    {"status": 403, "answer": "not json"},
    {"status": 403, "reason": "Forbidden"},
    {"status": 403, "reason": "permission denied: sender not permitted to send"},
    {"status": 401, "reason": "Unauthorized"},
    {"status": 400, "reason": "UnauthorizedRegistration"},
    {"status": 400, "reason": "VapidPkHashMismatch"},
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: " ".join(map(str, each.values())))
async def test_push_service_that_rejects_all_pushes_loses_no_browser(two: Two, refusal: dict[str, Any]) -> None:
    assert await pushes_of(two.api, await two.api.post(custom(1, 2))) == {"delivered": 2}
    two.second.answer("browser", **refusal)
    id_ = (await post(two.api, custom(1, 2))).json()["id"]
    await comes_to(two.api, id_, {"delivered": 1, "later": 1})
    assert [await two.browsers(user) for user in (1, 2)] == [1, 1]
    [(origin, reason)] = await two.refusing()
    assert (origin, reason[:3]) == (two.origins[1], str(refusal["status"]))
    two.second.forget()
    await hurry(two.api)
    await comes_to(two.api, id_, {"delivered": 2})
    assert await two.refusing() == []


async def test_rejecting_push_service_is_in_log_doctor_and_operations(
    two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    two.second.answer("browser", status=403, reason="BadJwtToken")
    with capture_logs() as logs:
        id_ = (await post(two.api, custom(2))).json()["id"]
        await comes_to(two.api, id_, {"later": 1})
        await hurry(two.api)
        await until(lambda: two.api.app_state.database.value("select 1 from deliveries where attempts = 2"))
        await comes_to(two.api, id_, {"later": 1})
    [logged] = [each for each in logs if each["log_level"] == "error"]
    assert (logged["event"], logged["service"]) == ("push service refused the authentication", two.origins[1])
    assert "BadJwtToken" in logged["reason"]
    lanes = (await two.api.as_service("GET", "/operations/lanes", "operations")).json()["data"]
    [refused] = next(lane for lane in lanes if lane["name"] == "web/default")["refused_by"]
    assert (refused["service"], refused["reason"]) == (two.origins[1], "403 BadJwtToken")
    monkeypatch.setenv("TOCSIN_DATABASE_URL", url)
    found = [str(finding) for finding in await doctor.examine(tmp_path / "none")]
    [said] = [line for line in found if two.origins[1] in line]
    assert said.startswith(f"FAIL push web/default: {two.origins[1]} has refused authentication since ")
    assert "403 BadJwtToken" in said
    two.second.forget()
    with capture_logs() as logs:
        await hurry(two.api)
        await comes_to(two.api, id_, {"delivered": 1})
    assert "push service accepts pushes again" in {each["event"] for each in logs}


async def test_rejecting_push_service_without_waiting_pushes_is_not_reported(two: Two) -> None:
    two.second.answer("browser", status=403)
    id_ = (await post(two.api, custom(2))).json()["id"]
    await comes_to(two.api, id_, {"later": 1})
    assert len(await two.refusing()) == 1
    await two.api.app_state.database.value("update push_services set last_refused_at = now() - interval '26 hours'")
    assert await two.refusing() == []


async def test_waiting_pushes_are_sent_once_the_push_service_accepts_one(two: Two) -> None:
    two.second.answer("browser", status=403)
    first = (await post(two.api, custom(2, body="first"))).json()["id"]
    await comes_to(two.api, first, {"later": 1})
    database = two.api.app_state.database
    await database.value("update push_services set refused_at = now() - interval '2 minutes'")
    await database.value("update deliveries set due_at = now() + interval '1 hour'")
    two.second.forget()
    second = await two.api.post(custom(2, body="second"))
    for id_ in (first, second):
        await comes_to(two.api, id_, {"delivered": 1})


async def test_subscription_rejected_alone_fails_its_push_and_is_kept(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "NOTED", 0.0)
    other = two.first.subscribe("")
    assert (await two.api.as_user(2, "POST", "/notifications/web-push", json=other)).status_code == 204
    two.first.answer("browser", status=403, token=other["endpoint"])
    id_ = (await post(two.api, custom(2))).json()["id"]
    await comes_to(two.api, id_, {"delivered": 1, "later": 1})
    database = two.api.app_state.database
    for attempts in range(2, 5):
        await hurry(two.api)
        waiting = f"select 1 from deliveries where state = 'later' and worker_id is null and attempts = {attempts}"
        await until(partial(database.value, waiting))
    assert await pushes_of(two.api, await two.api.post(custom(1))) == {"delivered": 1}
    await hurry(two.api)
    await comes_to(two.api, id_, {"delivered": 1, "refused": 1})
    assert f"refused: refused: 403 Forbidden, while {two.origins[0]} takes other pushes" in await push_report(
        two.api, id_, 2
    )
    assert await two.browsers(2) == 2


async def test_new_keys_retry_waiting_pushes_immediately(two: Two, tmp_path: Path) -> None:
    two.second.answer("browser", status=403)
    id_ = (await post(two.api, custom(2))).json()["id"]
    await comes_to(two.api, id_, {"later": 1})
    database, app_state = two.api.app_state.database, two.api.app_state
    await database.value("update deliveries set due_at = now() + interval '1 hour'")
    two.second.forget()
    Vapid.make(tmp_path / "new.pem")
    (tmp_path / "vapid.pem").write_bytes((tmp_path / "new.pem").read_bytes() + (tmp_path / "vapid.pem").read_bytes())
    assert reload_keys(app_state.lanes, app_state.settings)
    assert two.api.worker
    assert two.api.worker.dispatcher
    await two.api.worker.dispatcher.keys_reloaded()
    assert await two.refusing() == []
    await comes_to(two.api, id_, {"delivered": 1})


async def test_outage_of_a_push_service_is_not_a_rejection(two: Two) -> None:
    two.second.answer("browser", status=503)
    since = datetime.now(UTC)
    id_ = (await post(two.api, custom(2))).json()["id"]
    await comes_to(two.api, id_, {"later": 1})
    assert await two.refusing() == []
    due_at = await two.api.app_state.database.value("select due_at from deliveries")
    assert due_at >= since + timedelta(seconds=5)
