"""Rate limits of requests: who is refused, when, and what responses say about it."""

import asyncio
import re
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from tests.support.answers import errors_of, field_errors
from tests.support.database import locked
from tests.support.events import custom
from tests.support.pushes import IPHONE
from tests.support.service import HOUR, Api, serving
from tocsin.api.limiting import address_of
from tocsin.auth.minting import mint_user
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection
from tocsin.errors import Refusal
from tocsin.setting_types import Rate
from tocsin.settings import read_settings

OFF = dict.fromkeys(
    (
        *("limit_user_requests", "limit_custom_calls", "limit_custom_recipients", "limit_devices"),
        "limit_failed_auth",
    ),
    "none",
)


def limited(url: str, catalogue: Catalogue, **limits: Any) -> AbstractAsyncContextManager[Api]:
    """Run the service with these limits alone."""
    return serving(url, catalogue, with_worker=False, **{**OFF, **limits})


async def listed(api: Api, user: int = 1) -> httpx.Response:
    return await api.as_user(user, "GET", "/notifications")


async def sent(api: Api, user: int = 1, *, users: list[int] | None = None, **more: Any) -> httpx.Response:
    body = {"message": "Hello", "notify": {"users": users if users is not None else [2], **more.pop("notify", {})}}
    return await api.as_user(user, "POST", "/notifications", json=body, **more)


def standing(answer: httpx.Response, name: str) -> tuple[int, int] | None:
    """Return the units that are left of a limit, and the seconds until its window ends, of the header."""
    found = re.search(rf'"{name}";r=(\d+);t=(\d+)', answer.headers.get("ratelimit", ""))
    return (int(found[1]), int(found[2])) if found else None


def refused_by(answer: httpx.Response, name: str) -> bool:
    """Return whether a limit refused a request, in the form of all errors and with all headers."""
    if answer.status_code != 429:
        return False
    assert errors_of(answer) == [("rate_limited", None)]
    rest = standing(answer, name)
    assert rest is not None
    assert int(answer.headers["retry-after"]) == rest[1] > 0
    assert f'"{name}";q=' in answer.headers["ratelimit-policy"]
    return True


async def refusals(api: Api, name: str) -> float:
    """Return the metric of a limit."""
    text = (await api.as_service("GET", "/metrics", "operations")).text
    found = re.search(rf'tocsin_rate_limited_total{{limit="{name}"}} (\S+)', text)
    return float(found[1]) if found else 0.0


class TestRequests:
    async def test_requests_of_a_user_are_limited_and_others_are_not(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue, limit_user_requests="3/minute") as api:
            await api.people(1, 2)
            answers = [await listed(api) for _ in range(5)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
            assert [standing(answer, "user-requests") for answer in answers[:3]] == [(2, 60), (1, 60), (0, 60)]
            assert answers[0].headers["ratelimit-policy"] == '"user-requests";q=3;w=60'
            assert refused_by(answers[3], "user-requests")
            assert answers[3].json()["errors"][0]["message"] == (
                "Rate limit exceeded: at most 3 requests of a user per minute."
            )
            assert (await listed(api, 2)).status_code == 200
            assert await refusals(api, "user-requests") == 2

    async def test_every_request_of_a_user_counts_whatever_its_answer(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue, limit_user_requests="5/minute") as api:
            await api.people(1)
            calls = [
                ("GET", "/notifications?page=x", 422),
                ("GET", "/notifications/00000000-0000-4000-8000-000000000000", 404),
                ("GET", "/directory/users/1", 403),
                ("PATCH", "/notifications/preferences", 200),
                ("GET", "/notifications/stream", 200),
            ]
            for number, (method, path, status) in enumerate(calls):
                answer = await api.as_user(1, method, path)
                assert (answer.status_code, standing(answer, "user-requests")) == (status, (4 - number, 60)), path
            assert refused_by(await listed(api), "user-requests")

    async def test_service_has_a_limit_for_each_company_by_itself(self, url: str, catalogue: Catalogue) -> None:
        limits = {"limit_service_requests": "3/minute", "limit_service_events": "2/minute"}
        async with limited(url, catalogue, **limits) as api:
            await api.people(1)
            await api.people(2, company_id=2)
            for _ in range(4):
                await api.as_service("POST", "/events", json=custom(2), company_id=2)
            for company in (None, 1):
                answer = await api.as_service("POST", "/events", json=custom(1), company_id=company)
                assert answer.status_code == 202
                assert (standing(answer, "service-requests"), standing(answer, "service-events")) == ((2, 60), (1, 60))

    async def test_requests_and_events_of_a_service_are_limited(self, url: str, catalogue: Catalogue) -> None:
        more = {"limit_service_requests": "6/minute", "limit_service_events": "4/minute"}
        async with limited(url, catalogue, **more) as api:
            await api.people(1)
            batch = {"events": [custom(1)] * 3}
            answer = await api.as_service("POST", "/events/batch", json=batch)
            assert (standing(answer, "service-requests"), standing(answer, "service-events")) == ((5, 60), (1, 60))
            assert refused_by(await api.as_service("POST", "/events/batch", json=batch), "service-events")
            assert field_errors(await api.as_service("POST", "/events", json=custom(99)))
            assert (await api.as_service("POST", "/events", json=custom(1))).status_code == 202, "invalid ones are free"
            assert refused_by(await api.as_service("POST", "/events", json=custom(1)), "service-events")
            assert await api.app_state.database.value("select count(*) from events") == 4
            assert (await api.as_service("GET", "/directory/users/1")).status_code == 200
            assert refused_by(await api.as_service("GET", "/directory/users/1"), "service-requests")
            assert (await api.as_service("POST", "/events", json=custom(1), name="other")).status_code == 202

    async def test_limits_that_are_switched_off_leave_no_header(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue) as api:
            await api.people(1, 2)
            for answer in (await listed(api), await sent(api), await api.call("GET", "/notifications")):
                assert not [name for name in answer.headers if name.startswith("ratelimit")]

    async def test_second_process_and_restart_give_no_second_budget(self, url: str, catalogue: Catalogue) -> None:
        more = {"limit_user_requests": "6/minute"}
        async with limited(url, catalogue, **more) as one, limited(url, catalogue, **more) as other:
            await one.people(1)
            statuses = [(await listed(api)).status_code for _ in range(4) for api in (one, other)]
            assert statuses == [200] * 6 + [429] * 2
        async with limited(url, catalogue, **more) as again:
            assert refused_by(await listed(again), "user-requests")

    async def test_database_outage_is_answered_503_with_retry_after(
        self, url: str, catalogue: Catalogue, dba: Connection
    ) -> None:
        async with limited(url, catalogue, limit_user_requests="3/minute") as api:
            await api.people(1)
            async with locked(dba, "rate_limits"):
                answer = await listed(api)
            assert (answer.status_code, errors_of(answer)) == (503, [("unavailable", None)])
            assert answer.headers["retry-after"]
            assert (await listed(api)).status_code == 200

    async def test_refused_requests_ask_nothing_of_the_database(
        self, url: str, catalogue: Catalogue, dba: Connection
    ) -> None:
        async with limited(url, catalogue, limit_user_requests="1/minute") as api:
            await api.people(1)
            assert [(await listed(api)).status_code for _ in range(2)] == [200, 429]
            async with locked(dba, "rate_limits"), locked(dba, "heads"):
                assert refused_by(await listed(api), "user-requests")


class TestCustomNotifications:
    async def test_calls_are_limited_before_their_body_is_read(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue, limit_custom_calls="2/hour") as api:
            await api.people(1, 2)
            assert [(await sent(api)).status_code for _ in range(2)] == [202, 202]
            answer = await api.as_user(1, "POST", "/notifications", content=b"{")
            assert refused_by(answer, "custom-calls")
            assert (await listed(api)).status_code == 200, "other requests go on"

    async def test_recipients_are_counted_after_teams_are_resolved(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue, limit_custom_recipients="10/hour") as api:
            await api.people(*range(1, 9))
            await api.people(9, active=False)
            await api.team(7, 1, 2, 3, 4, 9)
            await api.team(8, 3, 4, 5)
            both = await sent(api, users=[2, 5, 6], notify={"teams": [7, 8]})  # 2, 3, 4, 5, 6; not the sender
            assert (both.status_code, standing(both, "custom-recipients")) == (202, (5, 3600))
            named = await sent(api, users=[1], notify={"teams": [7]})  # the sender is named; 9 is not active
            assert standing(named, "custom-recipients") == (1, 3600)
            refused = await sent(api, users=[], notify={"teams": [8]})
            assert refused_by(refused, "custom-recipients")
            assert refused.json()["errors"][0]["message"] == (
                "Rate limit exceeded: at most 10 recipients of a user's custom notifications per hour."
                " This request needs 3, and 1 are left."
            )
            assert await api.app_state.database.value("select count(*) from events") == 2
            assert (await sent(api, users=[2])).status_code == 202, "the refused request used none"
            assert refused_by(await sent(api, users=[2]), "custom-recipients")
            assert (await sent(api, 2, users=[1])).status_code == 202

    async def test_invalid_and_repeated_requests_use_no_recipients(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue, limit_custom_recipients="3/hour") as api:
            await api.people(1, 2)
            await api.people(3, company_id=2)
            assert field_errors(await sent(api, users=[2, 99]))
            assert field_errors(await sent(api, users=[2, 3]))
            key = {"Idempotency-Key": "once"}
            first = await sent(api, users=[2], headers=key)
            assert standing(first, "custom-recipients") == (2, 3600)
            assert (await sent(api, users=[2], headers=key)).status_code == 202
            assert standing(await sent(api, users=[1, 2]), "custom-recipients") == (0, 3600)

    async def test_counting_a_huge_team_reads_only_as_many_as_are_allowed(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue, limit_custom_recipients="10/hour") as api:
            await api.people(1)
            await api.app_state.database.value(
                "with u as (insert into users (id, company_id, first_name, last_name, time_zone)"
                " select i, 1, '', '', '' from generate_series(10, 3000) i returning id),"
                " h as (insert into heads (user_id, locale, active) select id, 'en', true from u) select 1"
            )
            await api.team(7, *range(10, 3001))
            refused = await sent(api, users=[], notify={"teams": [7]})
            assert "needs at least 11, and 10 are left" in refused.json()["errors"][0]["message"]

    async def test_concurrent_requests_with_keys_do_not_wait_for_each_other(
        self, url: str, catalogue: Catalogue
    ) -> None:
        """Each holds a connection of the pool while its limits ask the database."""
        async with limited(url, catalogue, limit_custom_recipients="1000/hour", limit_custom_calls="40/hour") as api:
            await api.people(*range(1, 41))
            answers = await asyncio.gather(
                *(sent(api, user, users=[1], headers={"Idempotency-Key": "x"}) for user in range(1, 41))
            )
            assert {answer.status_code for answer in answers} == {202}


class TestDevices:
    async def test_registrations_of_devices_and_browsers_are_limited(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue, limit_devices="3/hour") as api:
            await api.people(1, 2)

            async def register(number: int, user: int = 1) -> httpx.Response:
                return await api.as_user(user, "POST", f"/notifications/devices/{number:064}")

            assert field_errors(await api.as_user(1, "POST", "/notifications/devices/x"))
            assert (await register(1)).status_code == 204
            by_body = await api.as_user(1, "POST", "/notifications/devices", json={"token": f"{2:064}"})
            assert standing(by_body, "devices") == (1, 3600)
            assert (await register(3)).status_code == 204
            assert refused_by(await register(4), "devices")
            assert len((await api.as_user(1, "GET", "/notifications/devices")).json()["data"]) == 3
            assert (await api.as_user(1, "DELETE", f"/notifications/devices/{1:064}")).status_code == 204
            assert (await register(4, user=2)).status_code == 204

    async def test_test_pushes_are_limited_in_all_processes_together(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue) as one, limited(url, catalogue) as other:
            await one.people(1)
            await one.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
            answers = [
                await api.as_user(1, "POST", f"/notifications/devices/{IPHONE}/test")
                for _ in range(4)
                for api in (one, other)
            ]
            assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
            assert refused_by(answers[-1], "test-pushes")


class TestAddresses:
    async def test_requests_without_a_valid_token_are_limited_by_address(self, url: str, catalogue: Catalogue) -> None:
        async with limited(url, catalogue, limit_failed_auth="3/minute") as api:
            await api.people(1)
            answers = [
                await api.call("GET", "/notifications"),
                await api.call("GET", "/notifications", "no.token.atall"),
                await api.call("POST", "/events", mint_user("another-secret-of-32-bytes-0123456789", 1, HOUR)),
            ]
            assert [answer.status_code for answer in answers] == [401] * 3
            assert [standing(answer, "failed-auth") for answer in answers] == [(2, 60), (1, 60), (0, 60)]
            assert refused_by(await api.call("GET", "/notifications", "no.token.atall"), "failed-auth")
            assert refused_by(await api.call("GET", "/notifications"), "failed-auth")
            assert (await api.call("GET", "/healthz")).status_code == 200
            valid = await listed(api)
            assert valid.status_code == 200, "users behind the same address are not locked out"
            assert "ratelimit" not in valid.headers

    async def test_address_is_the_one_that_trusted_proxies_forward(self, url: str, catalogue: Catalogue) -> None:
        async def refused(api: Api, address: str) -> int:
            answer = await api.call("GET", "/notifications", headers={"X-Forwarded-For": address})
            return answer.status_code

        more = {"limit_failed_auth": "1/minute"}
        async with limited(url, catalogue, trusted_proxies="127.0.0.1", **more) as api:
            assert [await refused(api, "192.0.2.1") for _ in range(2)] == [401, 429]
            assert await refused(api, "192.0.2.2") == 401
            assert await refused(api, "2001:db8:1:2::1") == 401
            assert await refused(api, "2001:db8:1:2:ffff::9") == 429, "a customer has all addresses of a /64"
            assert await refused(api, "2001:db8:1:3::1") == 401
            assert await refused(api, "192.0.2.1, 192.0.2.3") == 401, "what the nearest proxy saw counts"
        async with limited(url, catalogue, **more) as api:
            assert [await refused(api, f"192.0.2.{number}") for number in (4, 5)] == [401, 429]

    @pytest.mark.parametrize(
        ("client", "key"),
        [
            (("192.0.2.1", 80), "192.0.2.1"),
            (("::ffff:192.0.2.1", 80), "192.0.2.1"),
            (("2001:db8:1:2:3:4:5:6", 80), "2001:db8:1:2::/64"),
            (("fe80::1%eth0", 80), "fe80::/64"),
            (("unknown", 0), "unknown"),
            (("x" * 500, 0), "x" * 100),
            (None, ""),
        ],
    )
    def test_key_of_an_address_is_short(self, client: tuple[str, int] | None, key: str) -> None:
        assert address_of({"type": "http", "client": client}) == key


class TestSettings:
    @pytest.mark.parametrize("name", ["USER_REQUESTS", "SERVICE_EVENTS", "FAILED_AUTH"])
    @pytest.mark.parametrize("value", ["5", "5/day", "0/minute", "-1/minute", "1.5/hour", "minute", "5/minute/2", "x"])
    def test_invalid_limit_is_rejected_by_name(self, name: str, value: str) -> None:
        with pytest.raises(Refusal, match=rf"TOCSIN_LIMIT_{name} is not usable: write a number and one of second"):
            read_settings({f"TOCSIN_LIMIT_{name}": value})

    @pytest.mark.parametrize(
        ("value", "kept"), [("none", None), ("5/second", Rate(5, "second")), (" 10/Hour ", Rate(10, "hour"))]
    )
    def test_limit_is_read_from_its_variable(self, value: str, kept: Rate | None) -> None:
        assert read_settings({"TOCSIN_LIMIT_DEVICES": value}).limit_devices == kept
