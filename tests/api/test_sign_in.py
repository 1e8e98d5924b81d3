"""Sign-in to the console at an OpenID provider, and attacks on it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest

from tests.support.answers import codes_of
from tests.support.commands import refusal, run
from tests.support.database import locked
from tests.support.events import custom
from tests.support.issuer import pair
from tests.support.openid_provider import CLIENT_ID, OpenIdProvider, openid_provider, unsigned
from tests.support.service import HOUR, SECRET, Api, serving
from tocsin import console_sessions
from tocsin.api.app import operations_service
from tocsin.audit import actor_of_command
from tocsin.auth.from_settings import provider_of
from tocsin.auth.minting import mint_service
from tocsin.auth.oidc import MAX_EXCHANGES, Attempt
from tocsin.catalogue import Catalogue
from tocsin.console_sessions import IDLE_LIFETIME, MAX_SESSIONS, TOKEN_INTERVAL
from tocsin.db.connections import Connection
from tocsin.errors import Refusal
from tocsin.retention import run_once
from tocsin.settings import read_settings

pytestmark = pytest.mark.one_cell("console sessions are in the first cell")

ANNA = {"sub": "anna-1", "name": "Anna Ærø", "roles": ["operator"]}


class Browser:
    """A browser at the console: it keeps cookies, and sends its origin with requests of pages."""

    def __init__(self, api: Api, provider: OpenIdProvider, console: str | None = None) -> None:
        self.api = api
        self.provider = provider
        self.console = console or f"{str(api.http.base_url).rstrip('/')}/console"
        self.http = httpx.AsyncClient(timeout=60)
        parts = urlsplit(self.console)
        self.origin = f"{parts.scheme}://{parts.netloc}"

    async def start(self) -> httpx.Response:
        return await self.http.get(f"{self.console}/sign-in")

    async def authorize(self) -> str:
        """Sign in at the provider, and return the url that it sends the browser to."""
        started = await self.start()
        assert started.status_code == 303, started.text
        answer = await self.http.get(started.headers["location"])
        assert answer.status_code == 303, answer.text
        location: str = answer.headers["location"]
        return location

    async def sign_in(self) -> httpx.Response:
        return await self.http.get(await self.authorize())

    async def session(self, **headers: str) -> Any:
        answer = await self.http.put(f"{self.console}/session", headers={"Origin": self.origin, **headers})
        assert answer.status_code == 200, answer.text
        return answer.json()["session"]

    async def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return await self.api.call(method, path, (await self.session())["token"], **more)


@pytest.fixture
async def provider() -> AsyncIterator[OpenIdProvider]:
    async with openid_provider() as provider:
        yield provider


@asynccontextmanager
async def served(
    url: str, catalogue: Catalogue, provider: OpenIdProvider, console: str | None = None, **more: Any
) -> AsyncIterator[Browser]:
    """Run the service with this provider, and yield a browser of Anna, an operator."""
    settings = {"oidc_issuer": provider.issuer, "oidc_client_id": CLIENT_ID, **more}
    async with serving(url, catalogue, with_worker=False, **settings) as api:
        browser = Browser(api, provider, console)
        provider.redirect_uris = {f"{browser.console}/signed-in"}
        provider.person = ANNA
        async with browser.http:
            yield browser


@pytest.fixture
async def browser(url: str, catalogue: Catalogue, provider: OpenIdProvider) -> AsyncIterator[Browser]:
    async with served(url, catalogue, provider) as browser:
        yield browser


def failed(answer: httpx.Response) -> str:
    """Return why a sign-in failed. The browser is at the console, without a session."""
    assert answer.status_code == 303, answer.text
    assert "tocsin-console" not in str(answer.headers.get_list("set-cookie"))
    console, _, reason = answer.headers["location"].partition("#sign-in-failed/")
    assert urlsplit(console).path == "/console"
    return reason


async def actions(api: Api) -> list[tuple[str, str, str | None, int | None]]:
    rows = await api.app_state.database.rows(
        "select action, caller, name, company_id from audit_entries order by happened_at, id"
    )
    return [(row["action"], row["caller"], row["name"], row["company_id"]) for row in rows]


FORGED: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://evil.example.com"},
    "another audience": {"aud": "another client"},
    "two audiences": {"aud": [CLIENT_ID, "another"]},
    "another azp": {"azp": "another"},
    "no audience": {"aud": []},
    "another nonce": {"nonce": "x"},
    "no nonce": {"nonce": None},
    "expired": {"exp": 1},
    "no time": {"exp": "never"},
    "issued later": {"iat": 2**40},
    "not issued": {"iat": None},
}


def with_claims(changed: dict[str, Any]) -> Callable[[OpenIdProvider, dict[str, Any]], str]:
    return lambda provider, claims: provider.signed({**claims, **changed})


class TestSignIn:
    async def test_person_signs_in_with_pkce_and_acts_under_their_name(self, browser: Browser) -> None:
        answer = await browser.sign_in()
        assert (answer.status_code, answer.headers["location"]) == (303, browser.console)
        found = await browser.session()
        assert (found["name"], found["role"], found["company_id"]) == ("Anna Ærø", "operator", None)
        assert (await browser.call("GET", "/operations/audit")).json()["data"][0]["caller"] == "operator anna-1"
        await browser.http.delete(f"{browser.console}/session", headers={"Origin": browser.origin})
        assert await actions(browser.api) == [
            ("signed_in", "operator anna-1", "Anna Ærø", None),
            ("signed_out", "operator anna-1", "Anna Ærø", None),
        ]
        assert browser.provider.refusals == []

    async def test_actions_of_a_person_are_in_the_audit_log_with_their_name(self, browser: Browser) -> None:
        await browser.sign_in()
        await browser.api.people(1)
        event = (await browser.api.as_service("POST", "/events", json=custom(1))).json()["id"]
        assert (await browser.call("DELETE", f"/events/{event}")).status_code == 204
        assert (await actions(browser.api))[-1][:3] == ("event_cancelled", "operator anna-1", "Anna Ærø")

    @pytest.mark.parametrize("secret", ["s3cr:t/ä", "s3cret"], ids=["basic", "post"])
    async def test_confidential_client_proves_its_secret(
        self, url: str, catalogue: Catalogue, provider: OpenIdProvider, tmp_path: Path, secret: str
    ) -> None:
        provider.secret, provider.posts_secret = secret, secret == "s3cret"
        (tmp_path / "secret").write_text(f"{provider.secret}\n")
        async with served(url, catalogue, provider, oidc_client_secret_file=tmp_path / "secret") as browser:
            await browser.sign_in()
            assert (await browser.session())["role"] == "operator"
            provider.secret = "another"
            assert failed(await browser.sign_in()) == "provider"
            assert provider.refusals == ["client"]

    @pytest.mark.parametrize(
        ("settings", "claims", "expected"),
        [
            ({}, {"roles": ["viewer", "support"]}, ("support", None)),
            ({}, {"roles": "viewer other"}, ("viewer", None)),
            ({}, {"roles": ["operator"], "company_id": "7"}, ("operator", 7)),
            ({"oidc_roles": "crm-admins=operator,crm=viewer"}, {"roles": ["crm"]}, ("viewer", None)),
            ({"oidc_role_claim": "realm_access.roles"}, {"realm_access": {"roles": ["viewer"]}}, ("viewer", None)),
            ({"oidc_company_claim": "https://x/company"}, {"https://x/company": 3}, ("operator", 3)),
            ({"oidc_company_claim": "company"}, {"company": "*"}, ("operator", None)),
        ],
    )
    async def test_role_and_company_come_from_claims(  # noqa: PLR0913, PLR0917 - fixtures and a case
        self,
        url: str,
        catalogue: Catalogue,
        provider: OpenIdProvider,
        settings: dict[str, str],
        claims: dict[str, Any],
        expected: tuple[str, int | None],
    ) -> None:
        async with served(url, catalogue, provider, **settings) as browser:
            provider.person = {**ANNA, **claims}
            await browser.sign_in()
            found = await browser.session()
            assert (found["role"], found["company_id"]) == expected

    @pytest.mark.parametrize(
        ("settings", "claims", "reason"),
        [
            ({}, {"roles": []}, "role"),
            ({}, {"roles": None}, "role"),
            ({}, {"roles": ["Operator", "admin"]}, "role"),
            ({}, {"roles": {"operator": True}}, "role"),
            ({"oidc_roles": "crm-admins=operator"}, {"roles": ["operator"]}, "role"),
            ({}, {"company_id": "all"}, "company"),
            ({}, {"company_id": "*"}, "company"),
            ({}, {"company_id": 0}, "company"),
            ({"oidc_company_claim": "company"}, {"company_id": 7}, "company"),
            ({}, {"sub": ""}, "provider"),
            ({}, {"sub": None}, "provider"),
            ({}, {"sub": "a\nb"}, "provider"),
            ({}, {"sub": "a" * 181}, "provider"),
        ],
    )
    async def test_person_without_a_role_or_with_an_unusable_claim_gets_no_session(  # noqa: PLR0913, PLR0917 - as above
        self,
        url: str,
        catalogue: Catalogue,
        provider: OpenIdProvider,
        settings: dict[str, str],
        claims: dict[str, Any],
        reason: str,
    ) -> None:
        async with served(url, catalogue, provider, **settings) as browser:
            provider.person = {**ANNA, **claims}
            assert failed(await browser.sign_in()) == reason
            assert await browser.session() is None

    async def test_company_without_a_value_does_not_permit_all_companies(self, browser: Browser) -> None:
        """As some providers write the claim of a person who has no company."""
        key = browser.provider.key
        browser.provider.sign = lambda claims: jwt.encode(
            {**claims, "company_id": None}, key.private, key.algorithm, {"kid": key.kid}
        )
        assert failed(await browser.sign_in()) == "company"
        assert await browser.session() is None

    async def test_person_whom_the_provider_refuses_gets_no_session(self, browser: Browser) -> None:
        browser.provider.person = {}
        assert failed(await browser.sign_in()) == "denied"

    async def test_sign_in_that_the_database_cannot_store_ends_at_the_console(
        self, browser: Browser, dba: Connection
    ) -> None:
        authorized = await browser.authorize()
        async with locked(dba, "console_sessions"):
            assert failed(await browser.http.get(authorized)) == "unavailable"
        assert (await browser.sign_in()).headers["location"] == browser.console

    async def test_redirect_uri_is_that_of_the_public_url_behind_a_proxy(
        self, url: str, catalogue: Catalogue, provider: OpenIdProvider
    ) -> None:
        public = {"public_url": "https://crm.example.com", "root_path": "/notify"}
        async with served(url, catalogue, provider, **public) as browser:
            started = await browser.http.get(f"{browser.api.http.base_url}/notify/console/sign-in")
            query = parse_qs(urlsplit(started.headers["location"]).query)
            assert query["redirect_uri"] == ["https://crm.example.com/notify/console/signed-in"]
            [cookie] = started.headers.get_list("set-cookie")
            assert cookie.startswith("__Host-tocsin-sign-in=")
            assert {"Secure", "HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie.split("; "))
            assert "Domain" not in cookie

    async def test_headers_of_a_trusted_proxy_count_on_the_operations_port(
        self, url: str, catalogue: Catalogue, provider: OpenIdProvider
    ) -> None:
        proxied: dict[str, Any] = {
            "operations_port": 9000,
            "trusted_proxies": ("127.0.0.1",),
            "limit_failed_auth": "1/hour",
        }
        forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "ops.example.com"}
        async with served(url, catalogue, provider, **proxied) as browser:
            transport = httpx.ASGITransport(operations_service(browser.api.app_state), client=("127.0.0.1", 4711))
            async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7:9000") as http:
                started = await http.get("/console/sign-in", headers=forwarded)
                query = parse_qs(urlsplit(started.headers["location"]).query)
                assert query["redirect_uri"] == ["https://ops.example.com/console/signed-in"]
                refused = [
                    (await http.get("/operations/lanes", headers={**forwarded, "X-Forwarded-For": client})).status_code
                    for client in ("192.0.2.1", "192.0.2.1", "192.0.2.2")
                ]
                assert refused == [401, 429, 401], "each client is counted by its own address"

    async def test_console_url_setting_is_used_for_the_redirect_uri(
        self, url: str, catalogue: Catalogue, provider: OpenIdProvider
    ) -> None:
        async with served(url, catalogue, provider, console_url="https://ops.example.com/console") as browser:
            started = await browser.http.get(f"{browser.api.http.base_url}/console/sign-in")
            query = parse_qs(urlsplit(started.headers["location"]).query)
            assert query["redirect_uri"] == ["https://ops.example.com/console/signed-in"]

    async def test_session_cookie_is_closed_to_scripts_and_other_sites(self, browser: Browser) -> None:
        cookies = (await browser.sign_in()).headers.get_list("set-cookie")
        session, attempt = (next(each for each in cookies if name in each) for name in ("console=", "sign-in="))
        assert {"HttpOnly", "Path=/", "SameSite=strict", "Max-Age=28800"} <= set(session.split("; "))
        assert "Max-Age=0" in attempt

    async def test_service_without_a_provider_offers_no_sign_in(self, api: Api) -> None:
        answer = await api.call("PUT", "/console/session")
        assert answer.json() == {"available": False, "session": None}
        for method, path in (("GET", "sign-in"), ("GET", "signed-in"), ("DELETE", "session")):
            assert (await api.call(method, f"/console/{path}")).status_code == 404

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"TOCSIN_OIDC_ISSUER": "https://id.example.com"}, "TOCSIN_OIDC_CLIENT_ID"),
            ({"TOCSIN_OIDC_ISSUER": "http://id.example.com", "TOCSIN_OIDC_CLIENT_ID": "x"}, "https"),
            ({"TOCSIN_OIDC_ISSUER": "https://a:b@id.example.com", "TOCSIN_OIDC_CLIENT_ID": "x"}, "user"),
            ({"TOCSIN_OIDC_ROLES": "admins=root"}, "operator"),
            ({"TOCSIN_OIDC_SCOPES": "profile"}, "openid"),
            ({"TOCSIN_CONSOLE_URL": "https://ops.example.com"}, "ends with /console"),
            (
                {
                    "TOCSIN_OIDC_ISSUER": "https://id.example.com",
                    "TOCSIN_OIDC_CLIENT_ID": "x",
                    "TOCSIN_OIDC_CLIENT_SECRET_FILE": "/nonexistent",
                },
                "client secret",
            ),
        ],
    )
    def test_wrong_settings_of_the_provider_are_refused(self, settings: dict[str, str], words: str) -> None:
        with pytest.raises(Refusal, match=words):
            provider_of(read_settings(settings, Path("/nonexistent")))


class TestAttacks:
    async def test_code_with_another_state_is_refused_before_it_is_exchanged(self, browser: Browser) -> None:
        for changed in ("state=x", "other="):
            assert failed(await browser.http.get((await browser.authorize()).replace("state=", changed))) == "state"
        assert browser.provider.exchanged == 0

    async def test_login_csrf_with_the_code_of_an_attacker_is_refused(self, browser: Browser) -> None:
        async with httpx.AsyncClient(timeout=60) as other:
            attacker = Browser(browser.api, browser.provider)
            attacker.http = other
            browser.provider.person = {**ANNA, "sub": "mallory"}
            url = await attacker.authorize()
            assert failed(await browser.http.get(url)) == "expired", "a browser without a sign-in under way"
            await browser.start()
            assert failed(await browser.http.get(url)) == "state", "a browser with another sign-in under way"
        assert browser.provider.exchanged == 0

    async def test_sign_in_of_the_latest_tab_succeeds_after_that_of_another_failed(self, browser: Browser) -> None:
        first, second = await browser.authorize(), await browser.authorize()
        assert failed(await browser.http.get(first)) == "state"
        assert (await browser.http.get(second)).headers["location"] == browser.console
        third = await browser.authorize()
        browser.provider.metadata = {"issuer": "https://other.example.com"}
        provider = browser.api.app_state.provider
        assert provider
        provider._fetch_after, provider._metadata = 0.0, None  # noqa: SLF001 - as after a start
        assert failed(await browser.start()) == "provider", "a third tab, while the provider is away"
        provider._fetch_after, browser.provider.metadata = 0.0, {}  # noqa: SLF001 - as five seconds later
        assert (await browser.http.get(third)).headers["location"] == browser.console

    async def test_replayed_code_opens_nothing(self, browser: Browser) -> None:
        url = await browser.authorize()
        cookies = dict(browser.http.cookies)
        await browser.http.get(url)
        assert failed(await browser.http.get(url)) == "expired", "the browser's sign-in is over"
        browser.http.cookies.update(cookies)
        assert failed(await browser.http.get(url)) == "provider", "the provider accepts a code once"
        assert "code" in browser.provider.refusals

    async def test_stolen_code_is_worthless_without_the_browser_that_began(self, browser: Browser) -> None:
        stolen = parse_qs(urlsplit(await browser.authorize()).query)["code"][0]
        async with httpx.AsyncClient(timeout=60) as other:
            thief = Browser(browser.api, browser.provider)
            thief.http = other
            started = await thief.start()
            state = parse_qs(urlsplit(started.headers["location"]).query)["state"][0]
            answer = await other.get(
                f"{thief.console}/signed-in",
                params={"code": stolen, "state": state, "iss": browser.provider.issuer},
            )
            assert failed(answer) == "provider"
        assert browser.provider.refusals == ["verifier"]

    @pytest.mark.parametrize(
        "forge",
        [
            pytest.param(lambda _, claims: unsigned(claims), id="alg none"),
            pytest.param(lambda provider, claims: provider.signed(claims, pair("ES256", "foreign")), id="foreign key"),
            pytest.param(
                lambda _, claims: pair("RS256", "one").sign({"alg": "HS256"}, **claims), id="another algorithm"
            ),
            pytest.param(lambda *_: mint_service(SECRET, "crm", ["operations"], HOUR), id="our secret"),
            pytest.param(lambda *_: "x" * 70_000, id="huge"),
            *(pytest.param(with_claims(changed), id=name) for name, changed in FORGED.items()),
        ],
    )
    async def test_forged_id_token_opens_nothing(
        self, browser: Browser, forge: Callable[[OpenIdProvider, dict[str, Any]], str]
    ) -> None:
        browser.provider.sign = lambda claims: forge(browser.provider, claims)
        assert failed(await browser.sign_in()) == "provider"
        assert browser.provider.exchanged == 1
        assert await browser.session() is None

    async def test_response_of_another_issuer_is_refused_before_the_code_is_sent(self, browser: Browser) -> None:
        """Which would send the code to a provider that an attacker runs (RFC 9207)."""
        for change in ("iss=https%3A%2F%2Fevil.example.com&x=", "no="):
            url = (await browser.authorize()).replace("iss=", change)
            assert failed(await browser.http.get(url)) == "provider"
        assert browser.provider.exchanged == 0

    @pytest.mark.parametrize(
        "metadata",
        [
            {"issuer": "https://evil.example.com"},
            {"token_endpoint": "http://evil.example.com/token"},
            {"authorization_endpoint": "javascript:alert(1)"},
            {"authorization_endpoint": "https://id.example.com/\r\nSet-Cookie: x=y"},
            {"jwks_uri": None},
            {"jwks_uri": "https://user:password@id.example.com/jwks"},
        ],
        ids=str,
    )
    async def test_unusable_metadata_of_the_provider_are_not_used(
        self, browser: Browser, metadata: dict[str, Any]
    ) -> None:
        browser.provider.metadata = metadata
        assert failed(await browser.start()) == "provider"

    async def test_cookie_of_the_session_alone_opens_no_other_route(self, browser: Browser) -> None:
        await browser.sign_in()
        for method, path in (("GET", "/operations/lanes"), ("POST", "/operations/replay"), ("GET", "/metrics")):
            answer = await browser.http.request(method, f"{browser.api.http.base_url}{path}")
            assert codes_of(answer) == (401, [("unauthenticated", None)])

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example.com"},
            {"Origin": "null"},
            {"Origin": "http://localhost.evil.example.com"},
            {},
            {"Origin": "own", "Sec-Fetch-Site": "cross-site"},
            {"Origin": "own", "Sec-Fetch-Site": "same-site"},
        ],
        ids=str,
    )
    async def test_other_origins_get_no_token_and_end_no_session(
        self, browser: Browser, headers: dict[str, str]
    ) -> None:
        await browser.sign_in()
        sent = {name: browser.origin if value == "own" else value for name, value in headers.items()}
        for method in ("PUT", "DELETE"):
            answer = await browser.http.request(method, f"{browser.console}/session", headers=sent)
            assert codes_of(answer) == (403, [("unauthorized", None)]), method
            assert "console_" not in answer.text
        assert await browser.session()

    async def test_listed_cors_origin_cannot_read_the_token(
        self, url: str, catalogue: Catalogue, provider: OpenIdProvider
    ) -> None:
        origin = "https://crm.example.com"
        async with served(url, catalogue, provider, cors_origins=(origin,)) as browser:
            await browser.sign_in()
            answer = await browser.http.put(f"{browser.console}/session", headers={"Origin": origin})
            assert answer.status_code == 403
            assert "access-control-allow-credentials" not in answer.headers

    async def test_no_parameter_or_header_changes_where_a_sign_in_leads(self, browser: Browser) -> None:
        evil = "https://evil.example.com"
        query = f"next={evil}&redirect_uri={evil}&return_to={evil}&redirect={evil}"
        headers = {"X-Forwarded-Host": "evil.example.com", "Forwarded": "host=evil.example.com", "Referer": evil}
        started = await browser.http.get(f"{browser.console}/sign-in?{query}", headers=headers)
        assert started.headers["location"].startswith(f"{browser.provider.issuer}/authorize?")
        assert "evil" not in started.headers["location"]
        url = await browser.authorize()
        answer = await browser.http.get(f"{url}&{query}", headers=headers)
        assert answer.headers["location"] == browser.console

    async def test_console_on_another_host_over_http_offers_no_sign_in(self, browser: Browser) -> None:
        answer = await browser.http.get(f"{browser.console}/sign-in", headers={"Host": "crm.example.com"})
        assert answer.headers["location"] == "http://crm.example.com/console#sign-in-failed/insecure"
        assert "evil" not in answer.headers["location"]

    async def test_session_is_never_one_that_the_browser_had_before(self, browser: Browser) -> None:
        """A planted cookie (fixation) is replaced, and the session that it names ends."""
        await browser.sign_in()
        planted = browser.http.cookies["tocsin-console"]
        await browser.sign_in()
        assert browser.http.cookies["tocsin-console"] != planted
        async with httpx.AsyncClient(cookies={"tocsin-console": planted}, timeout=60) as other:
            attacker = Browser(browser.api, browser.provider)
            attacker.http = other
            assert await attacker.session() is None
        assert [action for action, *_ in await actions(browser.api)] == ["signed_in", "signed_out", "signed_in"]

    async def test_person_of_one_company_sees_and_replays_nothing_of_another(self, browser: Browser) -> None:
        await browser.api.people(1)
        await browser.api.people(2, company_id=2, first_name="Strange")
        event = (await browser.api.as_service("POST", "/events", json=custom(2))).json()["id"]
        browser.provider.person = {**ANNA, "company_id": 1}
        await browser.sign_in()
        for path in ("/operations/users/2", f"/events/{event}", f"/operations/events/{event}/recipients"):
            assert (await browser.call("GET", path)).status_code == 404
        for path in ("/operations/users?search=strange", "/operations/custom-notifications"):
            assert (await browser.call("GET", path)).json()["data"] == []
        assert (await browser.call("DELETE", f"/events/{event}")).status_code == 404

    async def test_role_of_a_session_limits_its_token(self, browser: Browser) -> None:
        browser.provider.person = {**ANNA, "roles": ["viewer"]}
        await browser.sign_in()
        assert (await browser.call("GET", "/operations/lanes")).status_code == 200
        for path in ("/operations/users/1", "/operations/audit"):
            assert (await browser.call("GET", path)).status_code == 403
        for path in ("/notifications", "/directory/users"):
            assert (await browser.call("GET", path)).status_code == 403

    async def test_exchanges_at_the_same_time_are_limited(self, browser: Browser) -> None:
        provider = browser.api.app_state.provider
        assert provider
        provider._exchanges = MAX_EXCHANGES  # noqa: SLF001 - as if so many were waiting for the provider
        assert failed(await browser.sign_in()) == "busy"
        provider._exchanges = 0  # noqa: SLF001 - as above
        assert (await browser.sign_in()).headers["location"] == browser.console

    async def test_sign_ins_count_towards_the_limit_of_refused_tokens(
        self, url: str, catalogue: Catalogue, provider: OpenIdProvider
    ) -> None:
        async with served(url, catalogue, provider, limit_failed_auth="3/hour") as browser:
            attempt = Attempt.new()
            browser.http.cookies.set("tocsin-sign-in", attempt.secret)
            query = {"code": "guess", "state": attempt.state, "iss": provider.issuer}
            statuses = []
            for _ in range(4):
                browser.http.cookies.set("tocsin-sign-in", attempt.secret)
                answer = await browser.http.get(f"{browser.console}/signed-in", params=query)
                statuses.append(answer.status_code)
            assert statuses == [303, 303, 303, 429]
            assert provider.exchanged == 3


class TestSessions:
    async def test_session_ends_at_once_when_the_person_signs_out(self, browser: Browser) -> None:
        await browser.sign_in()
        token = (await browser.session())["token"]
        cookie = browser.http.cookies["tocsin-console"]
        answer = await browser.http.delete(f"{browser.console}/session", headers={"Origin": browser.origin})
        assert (answer.status_code, "tocsin-console" in browser.http.cookies) == (204, False)
        assert (await browser.api.call("GET", "/operations/lanes", token)).status_code == 401
        browser.http.cookies.set("tocsin-console", cookie)
        assert await browser.session() is None

    @pytest.mark.parametrize(
        "change",
        ["ends_at = now()", f"renewed_at = now() - make_interval(secs => {IDLE_LIFETIME})"],
        ids=["old", "idle"],
    )
    async def test_expired_session_opens_nothing(self, browser: Browser, change: str) -> None:
        await browser.sign_in()
        token = (await browser.session())["token"]
        await browser.api.app_state.database.value(f"update console_sessions set {change}")
        assert await browser.session() is None
        answer = await browser.api.call("GET", "/operations/lanes", token)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')

    async def test_token_of_a_session_is_short_lived(self, browser: Browser) -> None:
        await browser.sign_in()
        database, cookie = browser.api.app_state.database, browser.http.cookies["tocsin-console"]
        now = time.time() // TOKEN_INTERVAL * TOKEN_INTERVAL
        tokens = []
        for later in range(3):
            made = await console_sessions.renew(database, cookie, partial(float, now + later * TOKEN_INTERVAL))
            assert made
            assert made.seconds == 2 * TOKEN_INTERVAL
            tokens.append(made.token)
        assert len(set(tokens)) == 3
        statuses = [(await browser.api.call("GET", "/operations/lanes", token)).status_code for token in tokens]
        assert statuses == [401, 200, 200], "the current one and the one before, which other tabs may use"
        await database.value("update console_sessions set renewed_at = now() - interval '10 minutes'")
        assert (await browser.api.call("GET", "/operations/lanes", tokens[2])).status_code == 401

    async def test_tabs_of_one_session_share_a_token(self, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
        await browser.sign_in()
        monkeypatch.setattr("tocsin.console_sessions.TOKEN_INTERVAL", 10**9)
        assert (await browser.session())["token"] == (await browser.session())["token"]

    async def test_nothing_stored_opens_a_session(self, browser: Browser) -> None:
        await browser.sign_in()
        token = (await browser.session())["token"]
        rows = await browser.api.app_state.database.rows("select * from console_sessions")
        stored = str([tuple(row) for row in rows])
        for secret in (token[-43:], browser.http.cookies["tocsin-console"][-43:]):
            assert secret not in stored

    async def test_malformed_cookies_and_tokens_are_refused(self, browser: Browser) -> None:
        await browser.sign_in()
        good, token = browser.http.cookies["tocsin-console"], (await browser.session())["token"]
        for cookie in ("", "x", good[:-1], good[:-1] + "!", good + "A", good.upper(), good.replace(".", "_")):
            browser.http.cookies.clear()
            assert await browser.session(Cookie=f"tocsin-console={cookie}") is None, cookie
        for wrong in (token[:-1], token[:-1] + ("A" if token[-1] != "A" else "B"), "console_", f"{token}x", good):
            assert (await browser.api.call("GET", "/operations/lanes", wrong)).status_code == 401, wrong

    async def test_person_has_a_limited_number_of_sessions(self, browser: Browser) -> None:
        cookies = []
        for _ in range(MAX_SESSIONS + 1):
            browser.http.cookies.clear()
            await browser.sign_in()
            cookies.append(browser.http.cookies["tocsin-console"])
        browser.http.cookies.clear()
        assert await browser.session(Cookie=f"tocsin-console={cookies[0]}") is None
        assert await browser.session(Cookie=f"tocsin-console={cookies[1]}")
        assert await browser.api.app_state.database.value("select count(*) from console_sessions") == MAX_SESSIONS

    async def test_operator_of_the_host_ends_sessions_of_a_person_or_of_all(self, browser: Browser) -> None:
        database, actor = browser.api.app_state.database, actor_of_command("tocsin sign-out")
        for subject, ended in (("bob", 0), ("anna-1", 1), (None, 1)):
            await browser.sign_in()
            assert await console_sessions.finish_all(database, subject, actor) == ended
            assert (await browser.session() is None) == bool(ended)
        recorded = [entry[:2] for entry in await actions(browser.api) if entry[0] == "sessions_ended"]
        assert recorded == [("sessions_ended", "command tocsin sign-out")] * 2

    async def test_command_sign_out_ends_the_sessions_of_a_person_or_of_all(
        self, browser: Browser, url: str, tmp_path: Path
    ) -> None:
        settings = {"TOCSIN_DATABASE_URL": url, "TOCSIN_JWT_SECRET": SECRET}

        def sign_out(*arguments: str) -> str:
            done = run("sign-out", *arguments, cwd=tmp_path, **settings)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        for arguments, said, is_ended in (
            (("bob",), "Ended 0 sessions.", False),
            (("anna-1",), "Ended 1 session.", True),
            (("--all",), "Ended 1 session.", True),
        ):
            await browser.sign_in()
            token = (await browser.session())["token"]
            assert await asyncio.to_thread(sign_out, *arguments) == said
            assert (await browser.session() is None) == is_ended
            status = (await browser.api.call("GET", "/operations/lanes", token)).status_code
            assert status == (401 if is_ended else 200), "the token of the session, too"
        for wrong in ((), ("anna-1", "--all")):
            assert "or use --all" in refusal("sign-out", *wrong, cwd=tmp_path, **settings)

    async def test_ended_sessions_are_deleted_by_retention(self, browser: Browser) -> None:
        await browser.sign_in()
        await browser.sign_in()
        database = browser.api.app_state.database
        assert await run_once(database, None) == {}
        await database.value("update console_sessions set ends_at = now() - interval '1 second'")
        assert await run_once(database, None) == {"console_sessions": 1}

    async def test_new_key_of_the_provider_is_fetched(self, browser: Browser) -> None:
        await browser.sign_in()
        browser.provider.key = pair("RS256", "two")
        provider = browser.api.app_state.provider
        assert provider
        assert provider._metadata  # noqa: SLF001 - keys are fetched at most once a minute
        provider._metadata.jwks._began = -1e9  # noqa: SLF001 - as above
        await browser.sign_in()
        assert (await browser.session())["role"] == "operator"
