"""Keys that verify tokens: files, JWKS, the callers they may sign for, and required claims."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.issuer import ALGORITHMS, Pair, certificate, jwks, pair
from tests.support.service import HOUR, SECRET, Api, serving, settings_for
from tests.support.tokens import signed
from tocsin.auth.claims import ServiceCaller, UserCaller
from tocsin.auth.from_settings import signer_of, verifier_of
from tocsin.auth.keys import ALL_SPEAKERS, of_jwks, of_pem
from tocsin.auth.minting import mint_service, mint_user
from tocsin.auth.tokens import Verifier
from tocsin.catalogue import Catalogue
from tocsin.errors import Refusal, Unauthenticated

EXP = 4_000_000_000
OTHER = "another-secret-for-tests-fedcba9876543210"
SERVICE = {"sub": "crm", "scope": "events:write"}


def each(entry: dict[str, Any], name: str, *values: Any) -> list[dict[str, Any]]:
    """Return the entry with each of these values."""
    return [{**entry, name: value} for value in values]


def refused(verifier: Verifier, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        pytest.fail(f"let in: {verifier.verify(token)}")
    assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    return str(caught.value)


class TestFiles:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_public_key_file_verifies_its_algorithm(self, tmp_path: Path, algorithm: str) -> None:
        verifier = Verifier([of_pem(pair(algorithm).file(tmp_path), ALL_SPEAKERS)])
        assert verifier.verify(pair(algorithm).sign(exp=EXP)) == UserCaller(4, EXP)
        expected = ServiceCaller("crm", frozenset({"events:write"}), None, EXP)
        assert verifier.verify(pair(algorithm).sign({"kid": None, "typ": "at+jwt"}, exp=EXP, **SERVICE)) == expected
        refused(verifier, pair(algorithm, "two").sign({"kid": "one"}))

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_certificate_works_like_its_public_key(self, tmp_path: Path, algorithm: str) -> None:
        (tmp_path / "one.pem").write_bytes(certificate(pair(algorithm), "issuer"))
        assert Verifier([of_pem(tmp_path / "one.pem", ALL_SPEAKERS)]).verify(
            pair(algorithm).sign(exp=EXP)
        ) == UserCaller(4, EXP)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_public_key_is_never_used_as_hmac_secret(self, tmp_path: Path, algorithm: str) -> None:
        verifier = Verifier([of_pem(pair(algorithm).file(tmp_path), ALL_SPEAKERS), SECRET])
        der = pair(algorithm).private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        claims = {"sub": "4", "exp": EXP}
        for secret in (pair(algorithm).pem.decode(), pair(algorithm).pem.decode().strip(), der.decode("latin-1")):
            refused(verifier, signed({"alg": "HS256"}, claims, secret))
            refused(verifier, signed({"alg": "HS256", "kid": "one"}, claims, secret))
            refused(verifier, signed({"alg": algorithm}, claims, secret))
        refused(verifier, signed({"alg": algorithm}, claims, SECRET))

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_other_algorithm_of_the_same_key_is_rejected(self, tmp_path: Path, algorithm: str) -> None:
        verifier = Verifier([of_pem(pair(algorithm).file(tmp_path), ALL_SPEAKERS)])
        head, body, signature = pair(algorithm).sign().split(".")
        for other in ("none", "HS256", "ES512", "ES256K", "Ed448", *ALGORITHMS):
            if other != algorithm and {other, algorithm} != {"EdDSA", "Ed25519"}:
                header = base64.urlsafe_b64encode(json.dumps({"alg": other}).encode()).rstrip(b"=").decode()
                refused(verifier, f"{header}.{body}.{signature}")
                refused(verifier, f"{header}.{body}.AAAA")
        refused(verifier, f"{head}.{body}.AAAA")
        if algorithm == "RS256":
            refused(
                Verifier(of_jwks(jwks(pair(algorithm)), ALL_SPEAKERS)),
                Pair(pair(algorithm).private, "RS512", "one").sign(),
            )

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_critical_header_parameters_are_rejected(self, tmp_path: Path, algorithm: str) -> None:
        verifier = Verifier([of_pem(pair(algorithm).file(tmp_path), ALL_SPEAKERS)])
        refused(verifier, pair(algorithm).sign({"crit": ["exp"], "exp": EXP}))
        refused(verifier, pair(algorithm).sign({"b64": True, "crit": ["b64"]}))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (Path.exists, "cannot be read"),
            (Path.mkdir, "Is a directory"),
            (os.mkfifo, "Not a regular file"),
            (lambda path: path.write_bytes(b""), "contains no key"),
            (lambda path: path.write_bytes(os.urandom(200)), "contains no key"),
            (lambda path: path.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@example.com"), "contains no key"),
            (lambda path: path.write_bytes(pair("RS256").pem[:-60]), "contains no key"),
            (lambda path: path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "no key"),
            (lambda path: path.write_bytes(pair("RS256").private_pem), "private"),
            (lambda path: path.write_bytes(pair("ES256").private_pem + pair("ES256").pem), "private"),
            (lambda path: path.write_bytes(pair("ES256").pem + pair("EdDSA").pem), "several"),
            (lambda path: path.write_bytes(pair("RSA of 1024 bits").pem), "1024 bits"),
            (lambda path: path.write_bytes(pair("P-521").pem), "P-256 or P-384"),
            (lambda path: path.write_bytes(pair("secp256k1").pem), "P-256"),
            (lambda path: path.write_bytes(pair("Ed448").pem), "Ed25519"),
        ],
    )
    def test_unusable_key_file_is_rejected_with_one_sentence(
        self, tmp_path: Path, make: Callable[[Path], object], words: str
    ) -> None:
        path = tmp_path / "key.pem"
        make(path)
        with pytest.raises(Refusal) as caught:
            of_pem(path, ALL_SPEAKERS)
        said = str(caught.value)
        assert words in said
        assert said.startswith(f"The key file {path} ")
        assert ": " in said
        assert said.endswith(".")
        assert "\n" not in said


class TestJwks:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_jwk_verifies_its_algorithm(self, algorithm: str) -> None:
        verifier = Verifier(of_jwks(jwks(pair(algorithm), pair("ES256", "other")), ALL_SPEAKERS))
        assert verifier.verify(pair(algorithm).sign(exp=EXP)) == UserCaller(4, EXP)
        assert verifier.verify(pair(algorithm).sign({"kid": None}, exp=EXP)) == UserCaller(4, EXP)
        refused(verifier, pair(algorithm).sign({"kid": "other"}))

    def test_jwk_without_a_declared_use_is_accepted(self) -> None:
        entry = {name: value for name, value in pair("RS256").jwk().items() if name != "use"}
        [key] = of_jwks(json.dumps({"keys": [entry]}).encode(), ALL_SPEAKERS)
        assert Verifier([key]).verify(pair("RS256").sign(exp=EXP)) == UserCaller(4, EXP)

    @pytest.mark.parametrize("declared", ["EdDSA", "Ed25519"])
    def test_both_names_of_ed25519_verify_with_a_jwk_that_declares_one(self, declared: str) -> None:
        private = pair("EdDSA").private
        entry = {**pair("EdDSA").jwk(), "alg": declared}
        verifier = Verifier(of_jwks(json.dumps({"keys": [entry]}).encode(), ALL_SPEAKERS))
        for name in ("EdDSA", "Ed25519"):
            assert verifier.verify(Pair(private, name, "one").sign(exp=EXP)) == UserCaller(4, EXP)

    def test_unusable_jwks_entries_are_ignored(self) -> None:
        good, ec, okp = pair("RS256").jwk(), pair("ES256").jwk(), pair("EdDSA").jwk()
        small = {**good, "n": base64.urlsafe_b64encode(b"\xff" * 128).decode()}
        secret = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "alg": "HS256", "kid": "one"}
        bad: list[Any] = [
            *(None, 1, "RSA", [], {}, {"kty": ["RSA"]}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-256"}, secret, small),
            *({**secret, **good, "kty": "oct"}, {**good, "use": "enc"}, {**good, "use": None}, {**good, "kid": 1}),
            *each(good, "alg", "HS256", "EdDSA", "ES256", "none", "RSA-OAEP", None, 1, []),
            *each(good, "n", None, 1, "", "!", "é", "AA", [], {}),
            *each(good, "e", None, 1, "", "!", "é", "AA", [], {}),
            *each(ec, "x", None, 1, "", "AAAA", okp["x"], []),
            *each(ec, "y", None, 1, "", "AAAA", okp["x"], []),
            *each(ec, "crv", "P-384", "P-521", "secp256k1", "Ed25519", "", None, []),
            *each(okp, "x", None, 1, "", "AAAA", []),
            *each(okp, "crv", "Ed448", "X25519", "P-256", "", None, []),
            *({**entry, "d": "AQAB"} for entry in (good, ec, okp)),
        ]
        for entry in bad:
            with pytest.raises(ValueError, match="no supported key"):
                pytest.fail(f"{entry} is taken as {of_jwks(json.dumps({'keys': [entry]}).encode(), ALL_SPEAKERS)}")
        [kept] = of_jwks(json.dumps({"keys": [*bad, good], "x": 1}).encode(), ALL_SPEAKERS)
        assert kept.algorithms == ("RS256",)

    @pytest.mark.parametrize(
        "document",
        [
            b'{"keys":[],"keys":[{}]}',
            b'{"keys":' + b"[" * 10_000,
            b"",
            b"[]",
            b"null",
            b"<html>",
            b"{",
            b"{}",
            b'{"keys":{}}',
            b'{"keys":null}',
            b'{"keys":[]}',
            b"\xff",
        ],
    )
    def test_invalid_jwks_document_is_rejected(self, document: bytes) -> None:
        with pytest.raises(ValueError, match=r"\.$"):
            of_jwks(document, ALL_SPEAKERS)


class TestSettings:
    @pytest.mark.parametrize(
        ("whose", "taken"),
        [("users", [True, False]), ("services", [False, True]), ("both", [True, True])],
    )
    @pytest.mark.parametrize("kind", ["secret", "public keys"])
    def test_key_verifies_only_its_kind_of_caller(
        self, tmp_path: Path, kind: str, whose: str, taken: list[bool]
    ) -> None:
        if kind == "secret":
            verifier = verifier_of(settings_for(jwt_secret_for=whose))
            user, service = mint_user(SECRET, 4, HOUR), mint_service(SECRET, "crm", ["operations"], HOUR)
        else:
            file = pair("ES256").file(tmp_path)
            verifier = verifier_of(settings_for(jwt_public_key_files=str(file), jwt_public_keys_for=whose))
            user, service = pair("ES256").sign(), pair("ES256").sign(**SERVICE)
        for token, good in zip((user, service), taken, strict=True):
            if good:
                assert verifier.verify(token)
            else:
                assert "is not for" in refused(verifier, token)

    def test_key_configured_for_users_and_services_verifies_both(self, tmp_path: Path) -> None:
        file = pair("EdDSA").file(tmp_path)
        keys = [of_pem(file, frozenset({"users"})), of_pem(file, frozenset({"services"}))]
        for order in (keys, keys[::-1]):
            verifier = Verifier(order)
            assert isinstance(verifier.verify(pair("EdDSA").sign()), UserCaller)
            assert isinstance(verifier.verify(pair("EdDSA").sign(**SERVICE)), ServiceCaller)

    def test_issuer_claim_is_checked_if_configured(self) -> None:
        verifier = verifier_of(settings_for(jwt_issuer="https://login.example.com"))
        assert verifier.verify(signed({"alg": "HS256"}, {"sub": "4", "exp": EXP, "iss": "https://login.example.com"}))
        for more in ({}, *each({}, "iss", "", "https://login.example.com/", None, 1, ["x"], {})):
            assert "iss" in refused(verifier, signed({"alg": "HS256"}, {"sub": "4", "exp": EXP, **more}))
        whole = {"sub": "4", "exp": EXP, "iss": ["https://login.example.com"]}
        refused(verifier, signed({"alg": "HS256"}, whole))

    def test_audience_claim_is_checked_if_configured(self) -> None:
        verifier = verifier_of(settings_for(jwt_audience="tocsin"))
        for good in ("tocsin", ["tocsin"], ["crm", "tocsin"]):
            assert verifier.verify(signed({"alg": "HS256"}, {"sub": "4", "exp": EXP, "aud": good})) == UserCaller(
                4, EXP
            )
        odd: tuple[Any, ...] = ("", "crm", "tocsin ", "tocsin crm", [], ["crm"], [["tocsin"]], None, 1, {"tocsin": 1})
        for more in ({}, *each({}, "aud", *odd)):
            assert "aud" in refused(verifier, signed({"alg": "HS256"}, {"sub": "4", "exp": EXP, **more}))

    def test_user_id_is_read_from_the_configured_claim(self) -> None:
        verifier = verifier_of(settings_for(jwt_user_claim="https://crm.example.com/user"))

        def token(id_: Any, **claims: Any) -> str:
            more = {} if id_ is ... else {"https://crm.example.com/user": id_}
            return signed({"alg": "HS256"}, {"sub": "9f2c", "exp": EXP, **more, **claims})

        assert verifier.verify(token(4)) == UserCaller(4, EXP)
        assert verifier.verify(token("4", sub="5")) == UserCaller(4, EXP)
        assert verifier.verify(token(["4"], sub="5")) == UserCaller(4, EXP)
        assert verifier.verify(token(..., sub="crm", scope="operations")) == ServiceCaller(
            "crm", frozenset({"operations"}), None, EXP
        )
        assert isinstance(verifier.verify(token("service-account-crm", sub="crm", scope="operations")), ServiceCaller)
        for bad in (..., None, "", "04", "x", 4.0, True, [], [4, 5], [[4]], {"id": 4}):
            refused(verifier, token(bad, sub="4"))
        for id_ in (4, "4", 4.0, "04", " 4", ["4"], [5, 4], "-4", "4.0"):
            assert "a user id" in refused(verifier, token(id_, sub="crm", scope="operations"))
        refused(verifier, token(..., sub="4", scope="operations"))

    @pytest.mark.parametrize(
        "bad",
        [
            {"jwt_jwks_url": "ftp://login.example.com/jwks"},
            {"jwt_jwks_url": "file:///etc/passwd"},
            {"jwt_jwks_url": "login.example.com/jwks"},
            {"jwt_jwks_url": "https://me:geheim@login.example.com/jwks"},
            {"jwt_secret_for": "geheim"},
            {"jwt_jwks_for": "users,services,geheim"},
            {"jwt_public_keys_for": "geheim"},
            {"jwt_public_key_files": "geheim.pem,"},
            {"jwt_user_claim": "scope"},
        ],
    )
    def test_invalid_jwt_setting_is_rejected_without_repeating_its_value(self, bad: dict[str, str]) -> None:
        with pytest.raises(Refusal) as caught:
            settings_for(**bad)
        assert f"TOCSIN_{min(bad).upper()} " in str(caught.value)
        assert "geheim" not in str(caught.value)

    def test_external_database_requires_a_jwt_key(self, tmp_path: Path) -> None:
        settings = settings_for(jwt_secret=(), database_url="postgresql://db/crm", data_dir=tmp_path)
        with pytest.raises(Refusal, match=r"TOCSIN_JWT_SECRET.*TOCSIN_JWT_PUBLIC_KEY_FILES.*TOCSIN_JWT_JWKS_URL"):
            verifier_of(settings)
        for key in (
            {"jwt_public_key_files": str(pair("ES256").file(tmp_path))},
            {"jwt_jwks_url": "http://127.0.0.1:1"},
        ):
            settings = settings_for(jwt_secret=(), database_url="postgresql://db/crm", data_dir=tmp_path, **key)
            assert verifier_of(settings)
        assert not (tmp_path / "jwt-secret").exists()

    def test_embedded_mode_creates_a_secret_only_without_configured_keys(self, tmp_path: Path) -> None:
        (tmp_path / "postgres").mkdir()
        file = str(pair("ES256").file(tmp_path))
        verifier_of(settings_for(jwt_secret=(), jwt_public_key_files=file, data_dir=tmp_path))
        assert not (tmp_path / "jwt-secret").exists()
        verifier = verifier_of(settings_for(jwt_secret=(), data_dir=tmp_path))
        assert verifier.verify(mint_user((tmp_path / "jwt-secret").read_text(), 4, HOUR))

    def test_secret_of_the_embedded_mode_is_made_only_by_its_first_start(self, tmp_path: Path) -> None:
        with pytest.raises(Refusal, match=r"There is no secret in .*: start `tocsin serve` once"):
            verifier_of(settings_for(jwt_secret=(), data_dir=tmp_path))
        assert not (tmp_path / "jwt-secret").exists()

    async def test_without_a_jwks_url_no_key_is_fetched(self) -> None:
        verifier = verifier_of(settings_for())
        verifier.begin()
        await verifier.prepare(pair("RS256").sign())
        assert "signature" in refused(verifier, pair("RS256").sign())
        await verifier.close()

    @pytest.mark.parametrize("whose", ["published", "all"])
    def test_setting_limits_the_issuer_check_to_published_keys(self, whose: str) -> None:
        verifier = verifier_of(settings_for(jwt_issuer="https://login.example.com", jwt_issuer_for=whose))
        token = signed({"alg": "HS256"}, {"sub": "4", "exp": EXP})
        if whose == "published":
            assert verifier.verify(token) == UserCaller(4, EXP)
        else:
            assert "iss" in refused(verifier, token)

    def test_minted_token_is_accepted_by_the_service(self) -> None:
        settings = settings_for(
            jwt_secret=f"{OTHER},{SECRET}", jwt_issuer="us", jwt_audience="tocsin", jwt_user_claim="uid"
        )
        signer, verifier = signer_of(settings, "users", "services"), verifier_of(settings)
        assert isinstance(verifier.verify(mint_user(signer, 4, HOUR)), UserCaller)
        assert isinstance(verifier.verify(mint_service(signer, "crm", ["operations"], HOUR)), ServiceCaller)
        assert isinstance(
            verifier_of(settings_for(jwt_secret=OTHER, jwt_user_claim="uid")).verify(mint_user(signer, 4, HOUR)),
            UserCaller,
        )

    def test_no_token_is_minted_without_a_secret_for_its_kind(self, tmp_path: Path) -> None:
        file = str(pair("ES256").file(tmp_path))
        with pytest.raises(Refusal, match="Public keys cannot sign tokens"):
            signer_of(settings_for(jwt_secret=(), jwt_public_key_files=file), "users")
        with pytest.raises(Refusal, match="TOCSIN_JWT_SECRET_FOR"):
            signer_of(settings_for(jwt_secret_for="services"), "users")
        with pytest.raises(Refusal, match="TOCSIN_JWT_SECRET_FOR"):
            signer_of(settings_for(jwt_secret_for="users"), "users", "services")
        assert signer_of(settings_for(jwt_secret_for="services"), "services").secret == SECRET


async def statuses(api: Api, *tokens: str) -> list[int]:
    return [(await api.call("GET", "/notifications", token)).status_code for token in tokens]


async def test_secret_rotation_logs_no_user_out(url: str, catalogue: Catalogue) -> None:
    old, new = mint_user(OTHER, 4, HOUR), mint_user(SECRET, 4, HOUR)
    steps = [(OTHER, [200, 401]), (f"{SECRET},{OTHER}", [200, 200]), (SECRET, [401, 200])]
    for secrets, expected in steps:
        async with serving(url, catalogue, with_worker=False, jwt_secret=secrets) as api:
            await api.people(4)
            assert await statuses(api, old, new) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_key_file_rotation_logs_no_user_out(
    url: str, catalogue: Catalogue, tmp_path: Path, algorithm: str
) -> None:
    pairs = pair(algorithm, "old"), pair(algorithm, "new")
    old, new = (str(pair.file(tmp_path)) for pair in pairs)
    for files, expected in ((old, [200, 401]), (f"{new}, {old}", [200, 200]), (new, [401, 200])):
        async with serving(url, catalogue, with_worker=False, jwt_secret=(), jwt_public_key_files=files) as api:
            await api.people(4)
            assert await statuses(api, *(pair.sign() for pair in pairs)) == expected
