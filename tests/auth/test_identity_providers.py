"""Tokens of identity providers, with the settings of docs/guides/identity-providers.md."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.support.issuer import Site, jwks, pair, responding
from tests.support.service import HOUR, SECRET, serving, settings_for
from tests.support.tokens import signed
from tocsin.auth.claims import Expected, ServiceCaller, UserCaller
from tocsin.auth.from_settings import signer_of, verifier_of
from tocsin.auth.keys import ALL_SPEAKERS, hs256, of_jwks
from tocsin.auth.minting import mint_service, mint_user
from tocsin.auth.tokens import Verifier
from tocsin.catalogue import Catalogue
from tocsin.errors import Refusal, Unauthenticated

DOCUMENT = (Path(__file__).parents[2] / "docs/guides/identity-providers.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
KEYCLOAK: dict[str, Any] = {
    "iss": "https://login.example.com/realms/crm",
    "aud": ["tocsin", "account"],
    "typ": "Bearer",
    "azp": "crm-web",
    "sub": "0f5c4c38-8d4a-4f3f-9d0f-1b2f6f5f3a11",
    "realm_access": {"roles": ["offline_access", "uma_authorization"]},
    "resource_access": {"account": {"roles": ["manage-account"]}},
    "scope": "openid profile email",
}
AUTH0: dict[str, Any] = {
    "iss": "https://crm.eu.auth0.com/",
    "aud": ["https://tocsin.example.com", "https://crm.eu.auth0.com/userinfo"],
    "azp": "hTr0Cr5Wq8",
}
OKTA: dict[str, Any] = {
    "iss": "https://example.okta.com/oauth2/default",
    "aud": "api://default",
    "ver": 1,
    "cid": "0oa1crm",
}
ENTRA: dict[str, Any] = {
    "iss": "https://login.microsoftonline.com/0d5a4c7e-0000-4000-8000-000000000001/v2.0",
    "aud": "7c1b2d3e-0000-4000-8000-000000000002",
    "tid": "0d5a4c7e-0000-4000-8000-000000000001",
    "ver": "2.0",
    "azp": "5b6c7d8e-0000-4000-8000-000000000003",
}
FIREBASE: dict[str, Any] = {
    "iss": "https://securetoken.google.com/crm-example",
    "aud": "crm-example",
    "sub": "x1YzUid",
    "user_id": "x1YzUid",
    "firebase": {"identities": {}, "sign_in_provider": "password"},
}
SUPABASE: dict[str, Any] = {
    "iss": "https://abcdefghij.supabase.co/auth/v1",
    "aud": "authenticated",
    "sub": "2d1f0b6e-8d4a-4f3f-9d0f-1b2f6f5f3a11",
    "role": "authenticated",
    "user_metadata": {"crm_id": 99},
}
SPRING: dict[str, Any] = {"iss": "https://login.example.com", "aud": "tocsin"}
PASSPORT_TIMES = {"iat": time.time(), "nbf": time.time() - 0.25, "exp": time.time() + 3600.46}
PASSPORT: dict[str, Any] = {"jti": "9e70128f", **PASSPORT_TIMES}
CLIENT = "9c1b2d3e-0000-4000-8000-000000000004"
USER_4 = "user 4"
NAMELESS = "The token has a service scope but no name in "

CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("Keycloak", "RS256", {**KEYCLOAK, "crm_user_id": "4"}, USER_4),
    ("Keycloak", "RS256", {**KEYCLOAK, "crm_user_id": ["4"]}, USER_4),
    ("Keycloak", "PS256", {**KEYCLOAK, "crm_user_id": 4, "exp": time.time() + 3600.5}, USER_4),
    ("Keycloak", "ES384", {**KEYCLOAK, "azp": "crm", "scope": "profile events:write"}, "service crm"),
    ("Keycloak", "RS256", {**KEYCLOAK, "crm_user_id": ["4", "5"]}, "not a user's integer id"),
    ("Keycloak", "RS256", {**KEYCLOAK, "crm_user_id": "4", "scope": "openid events:write"}, "scope and a user id"),
    ("Keycloak", "RS256", {**KEYCLOAK, "crm_user_id": ["4"], "scope": "operations"}, "scope and a user id"),
    ("Keycloak", "RS256", {**KEYCLOAK, "azp": "", "scope": "events:write"}, NAMELESS + "azp"),
    ("Keycloak", "RS256", {**KEYCLOAK, "crm_user_id": "4", "aud": "account"}, "aud"),
    ("Auth0", "RS256", {**AUTH0, "sub": "auth0|5f", "https://crm.example.com/user_id": 4, "scope": "openid"}, USER_4),
    (
        "Auth0",
        "RS256",
        {
            **AUTH0,
            "aud": "https://tocsin.example.com",
            "sub": "hTr0Cr5Wq8@clients",
            "gty": "client-credentials",
            "scope": "events:write directory:write",
        },
        "service hTr0Cr5Wq8",
    ),
    ("Okta", "RS256", {**OKTA, "sub": "john@example.com", "uid": "00u1", "scp": ["openid"], "crm_user_id": 4}, USER_4),
    ("Okta", "RS256", {**OKTA, "sub": "0oa1crm", "scp": ["events:write"]}, "service 0oa1crm"),
    ("Microsoft Entra ID", "RS256", {**ENTRA, "scp": "access_as_user", "extn.crm_user_id": ["4"]}, USER_4),
    ("Microsoft Entra ID", "RS256", {**ENTRA, "scp": "x", "roles": ["Reader"], "extn.crm_user_id": "4"}, USER_4),
    (
        "Microsoft Entra ID",
        "RS256",
        {**ENTRA, "roles": ["Events.Write", "Directory.Write"], "idtyp": "app"},
        "service 5b6c7d8e-0000-4000-8000-000000000003",
    ),
    ("Microsoft Entra ID", "RS256", {**ENTRA, "roles": ["Reader"]}, "its roles has no service scope"),
    ("Firebase", "RS256", {**FIREBASE, "crm_user_id": 4}, USER_4),
    ("Firebase", "RS256", {**FIREBASE, "crm_user_id": 4, "aud": "another-project"}, "aud"),
    ("Firebase", "RS256", {**FIREBASE, "scope": "events:write"}, "is not for services"),
    ("Supabase", "ES256", {**SUPABASE, "app_metadata": {"provider": "email", "crm_id": 4}}, USER_4),
    ("Supabase", "Ed25519", {**SUPABASE, "app_metadata": {"crm_id": "4"}}, USER_4),
    ("Supabase", "ES256", {**SUPABASE, "app_metadata": {"provider": "email"}}, "not a user's integer id"),
    ("Supabase", "ES256", {**SUPABASE, "app_metadata": None}, "not a user's integer id"),
    ("Spring", "RS512", {**SPRING, "sub": "john", "scope": ["openid", "profile"], "crm_user_id": 4}, USER_4),
    ("Spring", "RS256", {**SPRING, "sub": "crm", "scope": ["events:write"]}, "service crm"),
    ("Spring", "RS256", {**SPRING, "sub": None, "client_id": "crm", "scope": ["events:write"]}, "service crm"),
    ("Laravel Passport", "RS256", {**PASSPORT, "aud": CLIENT, "sub": "4", "scopes": []}, USER_4),
    ("Laravel Passport", "RS256", {**PASSPORT, "aud": "3", "sub": "4", "scopes": ["view-profile"]}, USER_4),
    ("Laravel Passport", "RS256", {**PASSPORT, "aud": CLIENT, "sub": CLIENT, "scopes": ["operations"]}, CLIENT),
    ("Laravel Passport", "RS256", {**PASSPORT, "aud": "3", "sub": "", "scopes": ["events:write"]}, "service 3"),
    ("Laravel Passport", "RS256", {**PASSPORT, "aud": ["3"], "sub": None, "scopes": ["events:write"]}, "service 3"),
    ("Laravel Passport", "RS256", {**PASSPORT, "aud": "3", "sub": "3", "scopes": ["events:write"]}, "a user id"),
    ("Laravel Passport", "RS256", {**PASSPORT, "aud": "3", "sub": "4", "scopes": ["events:write"]}, "a user id"),
    ("Django SimpleJWT", "HS256", {"token_type": "access", "jti": "83f1", "user_id": 4, "sub": None}, USER_4),
    ("Django SimpleJWT", "HS256", {"token_type": "access", "jti": "83f1", "user_id": "4", "sub": None}, USER_4),
]
"""A section of the page, the algorithm, the claims, and the expected caller or error."""


def environment_of(section: str) -> dict[str, str]:
    """Return the settings that the document shows for a provider."""
    [text] = [text for name, text in SECTIONS.items() if name.startswith(section)]
    [lines] = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return dict(line.split("=", 1) for line in lines.splitlines())


def token_of(algorithm: str, claims: Mapping[str, Any]) -> str:
    if algorithm == "HS256":
        said = {"exp": int(time.time()) + 3600, **claims}
        return signed(
            {"alg": "HS256", "typ": "JWT"}, {name: value for name, value in said.items() if value is not None}
        )
    return pair(algorithm).sign(**claims)


@pytest.mark.parametrize(("section", "algorithm", "claims", "expected"), CASES)
async def test_provider_token_is_read_with_documented_settings(
    tmp_path: Path, section: str, algorithm: str, claims: dict[str, Any], expected: str
) -> None:
    environment = environment_of(section)
    async with AsyncExitStack() as stack:
        if "TOCSIN_JWT_JWKS_URL" in environment:
            site = await stack.enter_async_context(Site(responding(jwks(pair(algorithm)))))
            environment["TOCSIN_JWT_JWKS_URL"] = site.url
        if "TOCSIN_JWT_PUBLIC_KEY_FILES" in environment:
            environment["TOCSIN_JWT_PUBLIC_KEY_FILES"] = str(pair(algorithm).file(tmp_path))
        environment["TOCSIN_JWT_SECRET"] = SECRET
        settings = settings_for(environment=environment, jwt_secret=SECRET)
        verifier = verifier_of(settings)
        stack.push_async_callback(verifier.close)
        token = token_of(algorithm, claims)
        await verifier.prepare(token)
        if expected.startswith(("user ", "service ", CLIENT)):
            assert verifier.verify(token).label.endswith(expected)
        else:
            with pytest.raises(Unauthenticated) as caught:
                verifier.verify(token)
            assert expected in str(caught.value)
        service = mint_service(signer_of(settings, "services"), "crm", ["events:write"], HOUR)
        assert verifier.verify(service).label == "service crm"


async def test_provider_tokens_are_accepted_by_the_service(url: str, catalogue: Catalogue) -> None:
    own = {"TOCSIN_JWT_JWKS_FOR": "both", "TOCSIN_JWT_SCOPE_CLAIM": "scope,scp,roles"}
    async with Site(responding(jwks(pair("RS512")))) as site:
        environment = {**environment_of("Okta"), **own, "TOCSIN_JWT_JWKS_URL": site.url}
        async with serving(url, catalogue, with_worker=False, jwt_secret=(), environment=environment) as api:
            await api.people(4)
            user = pair("RS512").sign(**OKTA, sub="john", scp=["openid"], crm_user_id=["4"], exp=time.time() + 3600.5)
            service = pair("RS512").sign(**OKTA, sub="0oa1crm", scp=["events:write"], exp=time.time() + 3600.5)
            event = {"type": "custom", "notify": {"users": [4]}, "params": {"body": "Hello"}}
            assert (await api.call("GET", "/notifications", user)).status_code == 200
            assert (await api.call("POST", "/events", service, json=event)).status_code == 202
            assert (await api.call("GET", "/notifications", service)).status_code == 403
            assert (await api.call("POST", "/events", user, json=event)).status_code == 403


class TestIssuer:
    """`iss` and `aud` belong to the identity provider; a back end that signs its own tokens need not set them."""

    def verifier(self, whose: str) -> Verifier:
        expected = Expected("https://login", "tocsin", only_published=whose == "published")
        [fetched] = of_jwks(jwks(pair("RS256")), ALL_SPEAKERS)
        return Verifier([hs256(SECRET, ALL_SPEAKERS), fetched], expected=expected)

    @pytest.mark.parametrize("bad", [{}, {"iss": "https://login"}, {"aud": "tocsin"}, {"iss": "x", "aud": "y"}])
    def test_issuer_and_audience_can_apply_to_published_keys_only(self, bad: dict[str, str]) -> None:
        own, theirs = token_of("HS256", {"sub": "4", **bad}), pair("RS256").sign(**bad)
        assert isinstance(self.verifier("published").verify(own), UserCaller)
        for whose, token in (("published", theirs), ("all", own), ("all", theirs)):
            with pytest.raises(Unauthenticated, match=r"iss|aud"):
                self.verifier(whose).verify(token)

    def test_tokens_with_issuer_and_audience_are_accepted(self) -> None:
        good = {"iss": "https://login", "aud": ["tocsin"]}
        for whose in ("published", "all"):
            for token in (token_of("HS256", {"sub": "4", **good}), pair("RS256").sign(**good)):
                assert isinstance(self.verifier(whose).verify(token), UserCaller)


USER_CLAIMS = ("sub", "uid", "app.id", "https://crm/uid")
SERVICE_CLAIMS = (("sub",), ("azp", "sub"))
IDS: list[Any] = [
    *(..., None, "", "crm", "4", 4, "04", " 4", "-4", "4.0", 4.0, True, 0, 2**31, [], ["4"], [4], ["4", "5"], [["4"]]),
    {"id": "4"},
]
WORDS: list[Any] = [
    *(..., None, "", "openid", "operations", "openid operations", "W", [], ["openid"], ["openid", "operations"], ["W"]),
    *([1, "operations"], {"operations": 1}, 1),
]
NAMES: list[Any] = [..., "", "crm", 5, ["crm"]]


@pytest.mark.parametrize("user_claim", USER_CLAIMS)
@pytest.mark.parametrize("service_claims", SERVICE_CLAIMS)
@pytest.mark.parametrize("scope_claims", [("scope",), ("scp", "app.roles")])
def test_user_token_opens_only_its_inbox_and_no_service_endpoint(
    user_claim: str, service_claims: tuple[str, ...], scope_claims: tuple[str, ...]
) -> None:
    scopes = {"W": frozenset({"events:write"})}
    expected = Expected(user_claim=user_claim, service_claims=service_claims, scope_claims=scope_claims, scopes=scopes)
    verifier = Verifier([SECRET], expected=expected)
    found = {UserCaller: 0, ServiceCaller: 0}
    for id_, words, name in product(IDS, WORDS, NAMES):
        claims: dict[str, Any] = {"exp": int(time.time()) + 60}
        for claim, value in ((scope_claims[-1], words), (service_claims[0], name), (user_claim, id_)):
            if value is not ... and (claim != user_claim or value is id_):
                put(claims, claim, value)
        try:
            caller = verifier.verify(signed({"alg": "HS256"}, claims))
        except Unauthenticated:
            continue
        found[type(caller)] += 1
        given = words if isinstance(words, list) else str(words).split(" ")
        rights = {
            {"operations": "operations", "W": "events:write"}[word] for word in given if word in {"operations", "W"}
        }
        if isinstance(caller, UserCaller):
            assert not rights
            assert id_ in ("4", 4) or (id_ in (["4"], [4]) and user_claim != "sub")
            assert caller.id == 4
        else:
            assert caller.scopes == rights != set()
            assert id_ in (..., None, "", "crm", [], {"id": "4"})
            assert caller.name == "crm" or (caller.name == "5" and service_claims[0] != "sub")
    assert found[UserCaller] >= 1
    assert found[ServiceCaller] >= 1


def put(claims: dict[str, Any], claim: str, value: Any) -> None:
    """Set a value at the name or path of a claim."""
    if claim.startswith("app."):
        claims.setdefault("app", {})[claim[4:]] = value
    else:
        claims[claim] = value


@pytest.mark.parametrize("bad", [["crm", "web"], "crm\n", "c" * 101, True, 4.5, {"crm": 1}])
def test_invalid_service_name_is_not_replaced_by_that_of_a_later_claim(bad: Any) -> None:
    verifier = Verifier([SECRET], expected=Expected(service_claims=("azp", "sub")))
    claims = {"exp": int(time.time()) + 60, "scope": "operations", "sub": "crm"}
    assert verifier.verify(signed({"alg": "HS256"}, {**claims, "azp": ""})).label == "service crm"
    with pytest.raises(Unauthenticated, match="its azp is not a service name"):
        verifier.verify(signed({"alg": "HS256"}, {**claims, "azp": bad}))


def test_service_may_have_a_number_as_name_in_a_claim_of_its_own() -> None:
    verifier = Verifier([SECRET], expected=Expected(service_claims=("azp", "sub")))
    for number in (5, "5"):
        claims = {"exp": int(time.time()) + 60, "scope": "operations", "azp": number}
        assert verifier.verify(signed({"alg": "HS256"}, claims)).label == "service 5"


@pytest.mark.parametrize(
    "bad",
    [
        {"jwt_scopes": "Events.Write"},
        {"jwt_scopes": "=events:write"},
        {"jwt_scopes": "Events.Write=events:read"},
        {"jwt_scopes": "Events.Write=events:write,"},
        {"jwt_scope_claim": "scope,"},
        {"jwt_scope_claim": "exp"},
        {"jwt_service_claim": ",azp"},
        {"jwt_service_claim": "company_id"},
        {"jwt_issuer_for": "users"},
    ],
)
def test_contradictory_jwt_settings_are_rejected(bad: dict[str, str]) -> None:
    with pytest.raises(Refusal, match=f"TOCSIN_{min(bad).upper()} is not usable"):
        settings_for(**bad)


def test_one_issuer_role_may_map_to_several_scopes() -> None:
    names = "https://crm/.default=x=events:write,Admin=operations,Admin=directory:write"
    verifier = verifier_of(settings_for(jwt_scopes=names, jwt_scope_claim="roles"))
    for roles, rights in (
        (["Admin"], {"operations", "directory:write"}),
        (["https://crm/.default=x"], {"events:write"}),
        (["operations"], {"operations"}),
    ):
        caller = verifier.verify(token_of("HS256", {"sub": "crm", "roles": roles}))
        assert isinstance(caller, ServiceCaller)
        assert caller.scopes == rights


def test_tokens_minted_by_tocsin_satisfy_all_jwt_settings() -> None:
    settings = settings_for(
        jwt_issuer="us",
        jwt_audience="tocsin",
        jwt_user_claim="app_metadata.crm_id",
        jwt_service_claim="azp,sub",
        jwt_scope_claim="roles,scope",
    )
    for more in ("all", "published"):
        settings = settings.model_copy(update={"jwt_issuer_for": more})
        verifier, signer = verifier_of(settings), signer_of(settings, "users", "services")
        assert verifier.verify(mint_user(signer, 4, HOUR)).label == "user 4"
        assert verifier.verify(mint_service(signer, "crm", ["operations"], HOUR)).label == "service crm"


class TestOwnTokens:
    """The recipes of the page make valid tokens, also for a text secret that looks like hex."""

    secret = "0123456789abcdef" * 4

    def recipe(self, language: str) -> str:
        [code] = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
        return str(code)

    def made_by(self, *command: str) -> str:
        environment = {**os.environ, "TOCSIN_JWT_SECRET": self.secret}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
        return done.stdout.strip()

    def test_python(self) -> None:
        token = self.made_by(sys.executable, "-c", f"{self.recipe('python')}\nprint(user_token(4))")
        self.check(token)

    @pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
    def test_node(self) -> None:
        code = f"{self.recipe('js')}\nconsole.log(userToken(4));"
        self.check(self.made_by("node", "--input-type=module", "-e", code))

    def check(self, token: str) -> None:
        caller = Verifier([self.secret]).verify(token)
        assert isinstance(caller, UserCaller)
        assert caller.id == 4
        assert caller.issued is not None
        assert abs(caller.issued - time.time()) < 60
