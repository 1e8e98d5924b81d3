import base64
import hashlib
import json
import os
import re
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clock import Clock
from tests.support.cost import cost
from tests.support.tokens import SECRET, part, signed
from tocsin.auth import tokens
from tocsin.auth.claims import CLOCK_SKEW, SCOPES, ServiceCaller, UserCaller
from tocsin.auth.keys import own_secret
from tocsin.auth.minting import mint_service, mint_user
from tocsin.auth.tokens import Verifier, required_bearer
from tocsin.errors import Refusal, Unauthenticated

OTHER = "another-secret-for-tests-fedcba9876543210"
HOUR = timedelta(hours=1)
NOW = 1_800_000_000
LARGEST = 2**31 - 1
IDS = st.integers(1, LARGEST)
CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
ODD_SUBS: list[Any] = [
    *("04", "٤", "4٤", "", " ", " 4", "4 ", "4\n", "+4", "-4", "4.0", "4e0", "0x4", "4_0", "0", "four", "²"),
    *(0, -4, 4.0, True, False, None, [4], ["4"], {"id": 4}, LARGEST + 1, str(LARGEST + 1), "9" * 4000, 10**60),
    *("4\0", "\ud800", "4;--", "4,5"),
]
ODD_NAMES: list[Any] = [
    *(
        "4",
        4,
        "1",
        str(LARGEST),
        str(LARGEST + 1),
        "0",
        "-5",
        "+5",
        "4.0",
        "04",
        "٤",
        " 4",
        "4\u00a0",
        "",
        "x" * 101,
        "crm\n",
        "c\0",
    ),
    *("crm\x1b[2J", "crm\x7f", "crm\x85", None, True, 4.5, ["crm"], {}),
]
ODD_COMPANIES: list[Any] = [0, -1, "1", 1.0, True, False, None, [1], {}, LARGEST + 1, 10**60]
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="".join(CONTROLS)), min_size=1, max_size=100
).filter(lambda name: not re.fullmatch(r"\s*[+-]?\d+(\.\d*)?\s*", name))


def token(**claims: Any) -> str:
    return signed({"alg": "HS256"}, {"sub": "4", "exp": NOW + 60, **claims})


def without(name: str) -> str:
    return signed({"alg": "HS256"}, {key: value for key, value in {"sub": "4", "exp": NOW + 60}.items() if key != name})


def headed(**header: Any) -> str:
    return signed({"alg": "HS256", **header}, {"sub": "4", "exp": NOW + 60})


def read(token: str) -> dict[str, Any]:
    """Return the claims of a token."""
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return claims


def cut(token: str, count: int) -> str:
    return ".".join(token.split(".")[:count])


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def verifier(clock: Clock) -> Verifier:
    return Verifier([SECRET], clock=clock)


GOOD = token()
FAIR = {"sub": "4", "exp": NOW + 60}
BAD = {
    "nothing": "",
    "a dot": ".",
    "two dots": "..",
    "words": "not a token",
    "one part": cut(GOOD, 1),
    "two parts": cut(GOOD, 2),
    "two parts and a dot": cut(GOOD, 2) + ".",
    "four parts": GOOD + ".AAAA",
    "five parts": ".".join([part({"alg": "dir", "enc": "A128GCM"}), "", "AAAA", "AAAA", "AAAA"]),
    "an empty header": "." + GOOD.partition(".")[2],
    "an empty payload": signed({"alg": "HS256"}, "", body=""),
    "truncated": GOOD[:-1],
    "a byte too many": GOOD + "A",
    "padded": GOOD + "=",
    "a bit of the signature": GOOD[:-10] + ("A" if GOOD[-10] != "A" else "B") + GOOD[-9:],
    "another payload": ".".join([GOOD.split(".")[0], part({"sub": "5", "exp": NOW + 60}), GOOD.split(".")[2]]),
    "another key": signed({"alg": "HS256"}, FAIR, OTHER),
    "an empty key": signed({"alg": "HS256"}, FAIR, ""),
    "half of the key": signed({"alg": "HS256"}, FAIR, SECRET[:32]),
    "HS512 with the right key": signed({"alg": "HS512"}, FAIR, hash_=hashlib.sha512),
    "HS384 with the right key": signed({"alg": "HS384"}, FAIR, hash_=hashlib.sha384),
    "HS512 that says HS256": signed({"alg": "HS256"}, FAIR, hash_=hashlib.sha512),
    "HS256 that says HS512": signed({"alg": "HS512"}, FAIR),
    "HS256 that says RS256": signed({"alg": "RS256"}, FAIR),
    "HS256 that says ES256": signed({"alg": "ES256"}, FAIR),
    "hs256": headed(alg="hs256"),
    "HS256 and a blank": headed(alg="HS256 "),
    "alg is a list": headed(alg=["HS256"]),
    "alg is an object": headed(alg={"HS256": 1}),
    "alg is null": headed(alg=None),
    "alg is a number": headed(alg=256),
    "alg is empty": headed(alg=""),
    "no alg": signed({"typ": "JWT"}, FAIR),
    **{f"alg {none}": f"{part({'alg': none})}.{part(FAIR)}." for none in ("none", "None", "nOnE", "NONE")},
    **{f"alg {none}, signed": headed(alg=none) for none in ("none", "None", "nOnE", "NONE")},
    "crit": headed(crit=["exp"], exp=NOW),
    "crit, empty": headed(crit=[]),
    "b64 false": headed(b64=False, crit=["b64"]),
    "b64 false without crit": headed(b64=False),
    "b64 false, detached": signed({"alg": "HS256", "b64": False, "crit": ["b64"]}, "", body=""),
    "b64 true": headed(b64=True),
    "alg twice": signed('{"alg":"none","alg":"HS256"}', FAIR),
    "alg twice, escaped": signed('{"alg":"none","\\u0061lg":"HS256"}', FAIR),
    "kid is a number": headed(kid=1),
    "the header is a list": signed(["HS256"], FAIR),
    "the header is no JSON": signed("HS256", FAIR),
    "the header is deep": signed("[" * 1000, FAIR),
    "the payload is no JSON": signed({"alg": "HS256"}, "sub=4"),
    "the payload is a list": signed({"alg": "HS256"}, [FAIR]),
    "the payload is deep": signed({"alg": "HS256"}, "[" * 3000),
    "the payload is not UTF-8": signed({"alg": "HS256"}, "", body="_____w"),
    "the payload has a length that base64 has not": signed({"alg": "HS256"}, "", body="AAAAA"),
    "sub twice": signed({"alg": "HS256"}, f'{{"sub":"4","exp":{NOW + 60},"sub":"5"}}'),
    "exp twice": signed({"alg": "HS256"}, f'{{"sub":"4","exp":1,"exp":{NOW + 60}}}'),
    "a claim twice inside another": signed({"alg": "HS256"}, f'{{"sub":"4","exp":{NOW + 60},"x":{{"y":1,"y":2}}}}'),
    "no exp": without("exp"),
    "exp long ago": token(exp=1),
    "exp is zero": token(exp=0),
    "exp just out of the skew": token(exp=NOW - CLOCK_SKEW),
    "exp is a string": token(exp=str(NOW + 60)),
    "exp is a float just out of the skew": token(exp=NOW - CLOCK_SKEW + 0.99),
    "exp is negative": token(exp=-1),
    "exp is -1e10 seconds": token(exp=-NOW),
    "exp is 1e308": token(exp=1e308),
    "exp is 1e999": signed({"alg": "HS256"}, '{"sub":"4","exp":1e999}'),
    "exp is NaN": token(exp=float("nan")),
    "exp is infinite": token(exp=float("inf")),
    "exp has 5,000 digits": signed({"alg": "HS256"}, '{"sub":"4","exp":' + "9" * 5000 + "}"),
    "exp is after the year 9999": token(exp=253_402_300_800),
    "exp is true": token(exp=True),
    "exp is null": token(exp=None),
    "exp is a list": token(exp=[NOW + 60]),
    "nbf to come": token(nbf=NOW + CLOCK_SKEW + 1),
    "nbf is a string": token(nbf=str(NOW)),
    "nbf is a float just out of the skew": token(nbf=NOW + CLOCK_SKEW + 0.01),
    "nbf is 1e308": token(nbf=1e308),
    "nbf is NaN": token(nbf=float("nan")),
    **{
        f"iat {iat!r}": token(iat=iat)
        for iat in (str(NOW), True, None, [NOW], -1, -0.5, 1e308, float("inf"), float("nan"), 253_402_300_800)
    },
    "nbf is negative": token(nbf=-1),
    "nbf is false": token(nbf=False),
    "nbf is null": token(nbf=None),
    "no sub": without("sub"),
    **{f"sub {sub!r}": token(sub=sub) for sub in ODD_SUBS},
    **{
        f"scope {scope!r}": token(scope=scope)
        for scope in (1, True, ["events:write"], ["openid", "operations"], {"events:write": 1}, {})
    },
    **{f"a scope and the sub {str(sub)[:20]!r}": token(scope="events:write", sub=sub) for sub in ODD_NAMES},
    "a scope and no sub": signed({"alg": "HS256"}, {"exp": NOW + 60, "scope": "operations"}),
    "a user's id and one scope of many": token(scope="openid profile operations"),
    **{
        f"company_id {company!r}": token(sub="crm", scope="events:write", company_id=company)
        for company in ODD_COMPANIES
    },
    **{
        f"a service's name with the scope {scope!r}": token(sub="crm", scope=scope)
        for scope in (
            "",
            " ",
            "openid",
            "events",
            "EVENTS:WRITE",
            "events:write,operations",
            "events:write\t",
            "operationsx",
        )
    },
    "a blank before": " " + GOOD,
    "a blank after": GOOD + " ",
    "a line break after": GOOD + "\n",
    "a blank inside": GOOD.replace(".", ". "),
    "a tab inside": GOOD.replace(".", "\t."),
    "quoted": f'"{GOOD}"',
    "base64 of the other alphabet": GOOD.replace("_", "/").replace("-", "+") + "+",
    "NUL after": GOOD + "\0",
    "non-ASCII": GOOD + "é",
    "non-ASCII digits": GOOD + "\u0661",
    "a lone surrogate": GOOD + "\ud800",
    "a megabyte": "A" * 2**20,
    "a megabyte of dots": "." * 2**20,
    "a megabyte, signed": token(x="x" * 2**20),
    "a byte over 8 KiB, signed": token(x="x" * 8192),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_invalid_token_is_rejected(verifier: Verifier, bad: str) -> None:
    for _ in range(2):
        with pytest.raises(Unauthenticated) as caught:
            verifier.verify(bad)
        assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


def test_invalid_token_is_rejected_regardless_of_cache(verifier: Verifier) -> None:
    assert verifier.verify(GOOD) == UserCaller(4, NOW + 60)
    for name, bad in BAD.items():
        with pytest.raises(Unauthenticated):
            pytest.fail(f"{name} is let in as {verifier.verify(bad)}")


def test_too_long_token_is_rejected_before_parsing(verifier: Verifier) -> None:
    def refused(token: str) -> None:
        with pytest.raises(Unauthenticated):
            verifier.verify(token)

    short, long = "A" * 5000, "A" * 50_000_000
    assert cost(partial(refused, long), 100) < 20 * cost(partial(refused, short), 100)


@pytest.mark.parametrize(
    "kid", ["../../../../dev/null", "' or 1=1 --", "/etc/passwd\0", "http://169.254.169.254/", "", "k" * 4000]
)
def test_kid_header_selects_no_other_secret(verifier: Verifier, kid: str) -> None:
    with pytest.raises(Unauthenticated):
        verifier.verify(signed({"alg": "HS256", "kid": kid}, FAIR, ""))
    with pytest.raises(Unauthenticated):
        verifier.verify(signed({"alg": "HS256", "kid": kid}, FAIR, OTHER))


@pytest.mark.parametrize("header", ["jwk", "jku", "x5u", "x5c"])
def test_key_in_token_header_is_ignored(verifier: Verifier, header: str) -> None:
    key = {"kty": "oct", "k": part(OTHER), "alg": "HS256"}
    with pytest.raises(Unauthenticated):
        verifier.verify(signed({"alg": "HS256", header: key}, FAIR, OTHER))


@pytest.mark.parametrize(
    ("good", "caller"),
    [
        (token(), UserCaller(4, NOW + 60)),
        (token(sub=4), UserCaller(4, NOW + 60)),
        (token(sub=1), UserCaller(1, NOW + 60)),
        (token(sub=str(LARGEST)), UserCaller(LARGEST, NOW + 60)),
        (token(exp=NOW - CLOCK_SKEW + 1), UserCaller(4, NOW - CLOCK_SKEW + 1)),
        (token(exp=NOW + 60.0, nbf=NOW + 0.5, iat=NOW + 0.25), UserCaller(4, NOW + 60)),
        (token(exp=NOW + 60.999999), UserCaller(4, NOW + 60)),
        *((token(scope=scope), UserCaller(4, NOW + 60)) for scope in (None, [], ["openid"], [1, {}], "openid")),
        (
            token(sub="crm", scope=["openid", "operations"]),
            ServiceCaller("crm", frozenset({"operations"}), None, NOW + 60),
        ),
        (token(exp=253_402_300_799), UserCaller(4, 253_402_300_799)),
        (token(nbf=NOW + CLOCK_SKEW, iat=NOW + 999), UserCaller(4, NOW + 60)),
        (token(nbf=0, aud=["x"], iss=7), UserCaller(4, NOW + 60)),
        (token(scope="openid profile", company_id="x"), UserCaller(4, NOW + 60)),
        (token(scope=""), UserCaller(4, NOW + 60)),
        (headed(typ="at+jwt"), UserCaller(4, NOW + 60)),
        (headed(typ="JWT", kid="2024"), UserCaller(4, NOW + 60)),
        (headed(typ=None), UserCaller(4, NOW + 60)),
        (token(sub="crm", scope="operations"), ServiceCaller("crm", frozenset({"operations"}), None, NOW + 60)),
        (
            token(sub="crm", scope="openid events:write  directory:write", company_id=1),
            ServiceCaller("crm", frozenset({"events:write", "directory:write"}), 1, NOW + 60),
        ),
        (token(sub="c" * 100, scope="operations"), ServiceCaller("c" * 100, SCOPES & {"operations"}, None, NOW + 60)),
        (
            token(sub="Bücher & Söhne 4" * 6, scope="events:write", company_id=LARGEST),
            ServiceCaller("Bücher & Söhne 4" * 6, frozenset({"events:write"}), LARGEST, NOW + 60),
        ),
    ],
)
def test_valid_token_identifies_the_caller(verifier: Verifier, good: str, caller: UserCaller | ServiceCaller) -> None:
    assert verifier.verify(good) == caller
    assert verifier.verify(good) == caller


@given(IDS, st.integers(1, 10**6))
def test_minted_user_token_is_verified(id_: int, seconds: int) -> None:
    began = int(time.time())
    caller = Verifier([SECRET]).verify(mint_user(SECRET, id_, timedelta(seconds=seconds)))
    assert isinstance(caller, UserCaller)
    assert caller.id == id_
    assert began + seconds <= caller.expires <= time.time() + seconds


@given(NAMES, st.sets(st.sampled_from(sorted(SCOPES)), min_size=1), st.none() | IDS)
def test_minted_service_token_is_verified(name: str, scopes: set[str], company_id: int | None) -> None:
    caller = Verifier([SECRET]).verify(mint_service(SECRET, name, scopes, HOUR, company_id))
    assert isinstance(caller, ServiceCaller)
    assert (caller.name, caller.scopes, caller.company_id) == (name, frozenset(scopes), company_id)


@given(
    st.text(max_size=300) | st.binary(max_size=300).map(lambda body: f"{GOOD.partition('.')[0]}.{part(str(body))}.x")
)
def test_arbitrary_strings_are_rejected_as_tokens(made_up: str) -> None:
    with pytest.raises(Unauthenticated):
        Verifier([SECRET]).verify(made_up)


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("ABQgwz059-_."))
def test_token_with_any_changed_character_is_rejected(position: int, other: str) -> None:
    changed = GOOD[:position] + other + GOOD[position + 1 :]
    verifier = Verifier([SECRET], clock=Clock(NOW))
    if changed == GOOD:
        assert verifier.verify(changed) == UserCaller(4, NOW + 60)
        return
    with pytest.raises(Unauthenticated):
        verifier.verify(changed)


def test_minted_tokens_hold_standard_claims() -> None:
    began = int(time.time())
    user = read(mint_user(SECRET, 4, HOUR))
    assert began <= user["iat"] <= time.time()
    assert user == {"sub": "4", "iat": user["iat"], "exp": user["iat"] + 3600}
    service = read(mint_service(SECRET, "crm", ["operations", "events:write"], HOUR, 7))
    whole = {"sub": "crm", "scope": "events:write operations", "company_id": 7}
    assert service == {**whole, "iat": service["iat"], "exp": service["iat"] + 3600}
    assert {type(token["iat"]) for token in (user, service)} == {int}


@pytest.mark.parametrize("name", ["", "4", "-5", "٤", "x" * 101, "crm\n"])
def test_no_token_is_minted_for_an_invalid_service_name(name: str) -> None:
    with pytest.raises(Refusal):
        mint_service(SECRET, name, ["operations"], HOUR)


def test_any_configured_secret_verifies_until_removed() -> None:
    old, new = mint_user(OTHER, 4, HOUR), mint_user(SECRET, 5, HOUR)
    both = Verifier([SECRET, OTHER])
    assert [both.verify(old), both.verify(new)] == [Verifier([OTHER]).verify(old), Verifier([SECRET]).verify(new)]
    with pytest.raises(Unauthenticated):
        Verifier([SECRET]).verify(old)


def test_no_token_is_accepted_without_secrets() -> None:
    with pytest.raises(Unauthenticated):
        Verifier([]).verify(GOOD)


def test_public_key_is_rejected_as_secret() -> None:
    with pytest.raises(Refusal):
        Verifier(["-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQ\n-----END PUBLIC KEY-----\n"])


def test_cached_token_expires_to_the_second(verifier: Verifier, clock: Clock) -> None:
    verifier.verify(GOOD)
    clock.now = NOW + 60 + CLOCK_SKEW - 0.001
    assert verifier.verify(GOOD) == UserCaller(4, NOW + 60)
    clock.now = NOW + 60 + CLOCK_SKEW
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="expired"):
            verifier.verify(GOOD)


def test_token_rejected_before_nbf_is_accepted_later(verifier: Verifier, clock: Clock) -> None:
    early = token(nbf=NOW + CLOCK_SKEW + 1)
    with pytest.raises(Unauthenticated, match="not valid yet"):
        verifier.verify(early)
    clock.now += 1
    assert verifier.verify(early) == UserCaller(4, NOW + 60)


def test_token_cache_evicts_the_least_recently_used(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHE_SIZE", 2)
    verifier = Verifier([SECRET], clock=clock)
    first, second, third = (token(sub=id_) for id_ in (1, 2, 3))
    one, two = verifier.verify(first), verifier.verify(second)
    assert verifier.verify(first) is one
    verifier.verify(third)
    assert verifier.verify(first) is one
    assert verifier.verify(second) is not two
    assert verifier.verify(second) == two


def test_unverified_tokens_are_not_cached(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHE_SIZE", 1)
    verifier = Verifier([SECRET], clock=clock)
    one = verifier.verify(GOOD)
    for bad in BAD.values():
        with pytest.raises(Unauthenticated):
            verifier.verify(bad)
    assert verifier.verify(GOOD) is one


@pytest.mark.parametrize(
    "header", [None, "", " ", "Bearerx", f"Basic {GOOD}", GOOD, f"Token {GOOD}", f"Bearer\t{GOOD}", "\uff22earer x"]
)
def test_missing_bearer_token_gets_plain_challenge(verifier: Verifier, header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(required_bearer(header))
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "bearer x", f"Bearer {GOOD} {GOOD}", f"Bearer {GOOD},{GOOD}"])
def test_invalid_bearer_token_gets_invalid_token_challenge(verifier: Verifier, header: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(required_bearer(header))
    assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer "])
def test_bearer_scheme_is_case_insensitive(verifier: Verifier, scheme: str) -> None:
    assert verifier.verify(required_bearer(f"{scheme} {GOOD}")) == UserCaller(4, NOW + 60)


def test_callers_have_labels_for_logs() -> None:
    assert UserCaller(4, NOW).label == "user 4"
    assert ServiceCaller("crm", SCOPES, None, NOW).label == "service crm"


def test_generated_secret_is_created_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    secret = own_secret(folder)
    assert len(secret) == 64
    assert own_secret(folder) == secret
    assert [path.name for path in folder.iterdir()] == ["jwt-secret"]
    assert (folder / "jwt-secret").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert own_secret(tmp_path) != secret


def test_generated_secret_is_private_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        own_secret(tmp_path / "data")
    finally:
        os.umask(before)
    assert (tmp_path / "data" / "jwt-secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o601])
def test_world_readable_secret_file_is_rejected(tmp_path: Path, mode: int) -> None:
    own_secret(tmp_path)
    (tmp_path / "jwt-secret").chmod(mode)
    with pytest.raises(Refusal, match="chmod 600"):
        own_secret(tmp_path)


def test_too_short_secret_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "jwt-secret").write_text("s" * 31 + "\n")
    (tmp_path / "jwt-secret").chmod(0o600)
    with pytest.raises(Refusal, match="too short"):
        own_secret(tmp_path)


@pytest.mark.parametrize("content", ["s" * 32, "s" * 32 + "\n", "  " + "é" * 48 + "\r\n"])
def test_secret_file_is_used_without_surrounding_white_space(tmp_path: Path, content: str) -> None:
    (tmp_path / "jwt-secret").write_text(content, "utf-8")
    (tmp_path / "jwt-secret").chmod(0o600)
    assert own_secret(tmp_path) == content.strip()


def test_secret_file_that_is_not_text_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "jwt-secret").write_bytes(bytes(range(128, 192)))
    (tmp_path / "jwt-secret").chmod(0o600)
    with pytest.raises(Refusal, match="not text"):
        own_secret(tmp_path)


def test_secret_file_must_be_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "jwt-secret").symlink_to(tmp_path / "b" / "jwt-secret")
    with pytest.raises(Refusal):
        own_secret(tmp_path / "a")
    own_secret(tmp_path / "b")
    with pytest.raises(Refusal):
        own_secret(tmp_path / "a")
    (tmp_path / "c" / "jwt-secret").mkdir(parents=True, mode=0o700)
    with pytest.raises(Refusal):
        own_secret(tmp_path / "c")


def test_concurrent_first_callers_get_the_same_secret(tmp_path: Path) -> None:
    for attempt in range(20):
        folder, ready = tmp_path / str(attempt), threading.Barrier(8)
        found: list[str] = []

        def ask(folder: Path = folder, found: list[str] = found, ready: threading.Barrier = ready) -> None:
            ready.wait()
            found.append(own_secret(folder))

        asking = [threading.Thread(target=ask) for _ in range(8)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1
