"""JWKS: when keys are fetched, how often, and what happens if the issuer fails."""

import asyncio
import gzip
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

import tocsin.auth.jwks
from tests.support.clock import Clock
from tests.support.issuer import (
    ALGORITHMS,
    Answer,
    Site,
    certificate,
    dripping,
    endless,
    endless_headers,
    hanging,
    hanging_up,
    jwks,
    pair,
    responding,
)
from tests.support.service import HOUR, SECRET, serving
from tests.support.tokens import part, signed
from tests.support.waiting import LONGEST_WAIT, bounded, reaches, until
from tocsin.auth.claims import Expected, UserCaller
from tocsin.auth.jwks import FETCH_INTERVAL, STALE, Jwks
from tocsin.auth.keys import ALL_SPEAKERS, of_pem
from tocsin.auth.minting import mint_user
from tocsin.auth.tokens import Verifier
from tocsin.catalogue import Catalogue
from tocsin.cli import doctor
from tocsin.errors import Unauthenticated, Unavailable
from tocsin.http_client.fetch import FetchError, fetch

OLD, NEW = pair("RS256", "old"), pair("ES256", "new")
GOOD = responding(jwks(OLD))
QUICK = 0.3
"""Timeout of JWKS fetches in these tests, in seconds."""

BAD: dict[str, Answer] = {
    "hangs": hanging,
    "drips": dripping,
    "is endless": endless,
    "has endless headers": endless_headers,
    "hangs up": hanging_up,
    "is large": responding(jwks(OLD) + b" " * 256 * 1024),
    "says more than it has": responding(jwks(OLD)[:-9], "200 OK", "Content-Length: 999999"),
    "is HTML": responding(b"<!doctype html><title>Log in</title>", "200 OK", "Content-Type: text/html"),
    "is empty": responding(b""),
    "is broken JSON": responding(jwks(OLD)[:-1]),
    "is packed": responding(gzip.compress(jwks(OLD)), "200 OK", "Content-Encoding: gzip"),
    "is an empty set": responding(b'{"keys":[]}'),
    "has secrets alone": responding(b'{"keys":[{"kty":"oct","k":"AAAA","kid":"old"}]}'),
    "is a 500": responding(jwks(OLD), "500 Internal Server Error"),
    "is a 404": responding(jwks(OLD), "404 Not Found"),
    "is a 204": responding(b"", "204 No Content"),
}


@pytest.fixture
def clock() -> Clock:
    return Clock(1000)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tocsin.auth.jwks, "FETCH_TIMEOUT", QUICK)


async def settled(keys: Jwks) -> None:
    """Wait for a fetch in the background."""
    async with bounded():
        while keys._fetching and not keys._fetching.done():  # noqa: SLF001 - no public interface shows it
            await asyncio.sleep(0.005)


class TestFetching:
    async def test_fetch_returns_the_response_body(self) -> None:
        async with Site(responding(b"x" * 1000)) as site:
            assert await fetch(site.url, seconds=LONGEST_WAIT, limit=1000) == b"x" * 1000

    @pytest.mark.parametrize("name", BAD)
    async def test_fetch_is_bounded_in_time_and_size(self, name: str) -> None:
        async with Site(BAD[name]) as site:
            try:
                async with bounded():
                    assert len(await fetch(site.url, seconds=QUICK, limit=1000)) <= 1000
            except FetchError as error:
                assert str(error).endswith(".")  # noqa: PT017 - either may happen

    async def test_fetch_follows_no_redirects(self) -> None:
        async with Site(GOOD) as other:
            for status in ("301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
                async with Site(responding(jwks(OLD), status, f"Location: {other.url}")) as site:
                    with pytest.raises(FetchError, match=f"status {status[:3]}"):
                        await fetch(site.url, seconds=LONGEST_WAIT, limit=10_000)
            assert other.asked == 0

    async def test_fetch_uses_no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Site(GOOD) as site, Site(GOOD) as proxy:
            for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            assert await fetch(site.url, seconds=LONGEST_WAIT, limit=10_000) == jwks(OLD)
            assert (site.asked, proxy.asked) == (1, 0)

    async def test_fetch_trusts_system_certificates_and_ssl_cert_file(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        file, key = tmp_path / "site.pem", tmp_path / "key.pem"
        file.write_bytes(certificate(NEW, "localhost"))
        key.write_bytes(NEW.private_pem)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(file, key)
        async with Site(GOOD, tls=tls) as site:
            with pytest.raises(FetchError, match="certificate"):
                await fetch(site.url, seconds=LONGEST_WAIT, limit=10_000)
            monkeypatch.setenv("SSL_CERT_FILE", str(file))
            assert await fetch(site.url, seconds=LONGEST_WAIT, limit=10_000) == jwks(OLD)
            with pytest.raises(FetchError, match=r"(?i)name"):
                await fetch(site.url.replace("localhost", "127.0.0.1"), seconds=LONGEST_WAIT, limit=10_000)

    async def test_fetch_accepts_only_http_and_https_urls(self, tmp_path: Path) -> None:
        (tmp_path / "jwks").write_bytes(jwks(OLD))
        for url in (
            f"file://{tmp_path}/jwks",
            "ftp://127.0.0.1:1/jwks",
            "gopher://127.0.0.1:1/",
            "dict://127.0.0.1:1/",
        ):
            with pytest.raises(FetchError, match=r"disabled|not supported"):
                await fetch(url, seconds=LONGEST_WAIT, limit=10_000)

    async def test_fetch_does_not_block_the_event_loop(self) -> None:
        async with Site(hanging) as site:
            fetching = asyncio.create_task(fetch(site.url, seconds=LONGEST_WAIT, limit=10))
            await until(lambda: site.asked)
            assert not fetching.done()
            fetching.cancel()
            with pytest.raises(FetchError, match=r"within 0.3 s"):
                await fetch(site.url, seconds=QUICK, limit=10)

    def test_process_exit_does_not_wait_for_a_fetch(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                asyncio.run(asyncio.wait_for(fetch(url, seconds=600, limit=10), 0.1))
            assert time.monotonic() - began < 60


class TestJwks:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_jwks_is_fetched_when_a_token_needs_it(self, clock: Clock, algorithm: str) -> None:
        async with Site(responding(jwks(*(pair(each, each) for each in ALGORITHMS)))) as site:
            verifier = Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock))
            for kid in (algorithm, None):
                token = pair(algorithm, algorithm).sign({"kid": kid})
                await verifier.prepare(token)
                assert isinstance(verifier.verify(token), UserCaller)
            assert site.asked == 1

    @pytest.mark.parametrize("kid", ["old", None])
    async def test_token_of_a_known_key_causes_no_jwks_fetch(self, clock: Clock, kid: str | None) -> None:
        async with Site(GOOD) as site:
            keys = Jwks(site.url, ALL_SPEAKERS, clock)
            verifier = Verifier([], jwks=keys)
            for minute in range(3):
                await verifier.prepare(OLD.sign({"kid": kid}, sub=minute + 1))
                await settled(keys)
                assert site.asked == 1
                clock.now += FETCH_INTERVAL

    @pytest.mark.parametrize("kid", ["new", None])
    async def test_token_of_an_unknown_key_causes_a_jwks_fetch_after_a_minute(
        self, clock: Clock, kid: str | None
    ) -> None:
        newer = pair("RS256", "newer")
        async with Site(GOOD) as site:
            verifier = Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock))
            await verifier.prepare(OLD.sign())
            site.answer = responding(jwks(OLD, NEW, newer))
            clock.now += FETCH_INTERVAL
            token = NEW.sign({"kid": kid}) if kid is None else newer.sign()
            await verifier.prepare(token)
            assert isinstance(verifier.verify(token), UserCaller)
            assert site.asked == 2

    async def test_key_of_another_kind_with_a_known_key_id_is_fetched(self, clock: Clock) -> None:
        """Keys that replace each other may have one id (RFC 7517, section 4.5)."""
        async with Site(GOOD) as site:
            verifier = Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock))
            await verifier.prepare(OLD.sign())
            same = pair("ES256", OLD.kid)
            with pytest.raises(Unavailable, match="key is unknown"):
                await verifier.prepare(same.sign())
            site.answer = responding(jwks(OLD, same))
            clock.now += FETCH_INTERVAL
            for token in (same.sign(), OLD.sign()):
                await verifier.prepare(token)
                assert isinstance(verifier.verify(token), UserCaller)
            assert site.asked == 2

    async def test_jwks_is_not_fetched_twice_at_once(self, clock: Clock) -> None:
        async with Site(hanging) as site:
            keys = Jwks(site.url, ALL_SPEAKERS, clock)
            keys.freshen()
            clock.now += FETCH_INTERVAL
            first = keys._fetching  # noqa: SLF001 - no public interface shows it
            keys.freshen()
            assert keys._fetching is first  # noqa: SLF001 - as above
            await keys.close()

    async def test_closing_ends_a_jwks_fetch(self, clock: Clock) -> None:
        async with Site(hanging) as site:
            keys = Jwks(site.url, ALL_SPEAKERS, clock)
            await keys.close()
            keys.freshen()
            fetching = keys._fetching  # noqa: SLF001 - no public interface shows it
            assert fetching is not None
            await Verifier([], jwks=keys).close()
            assert fetching.cancelled()

    async def test_jwks_that_cannot_be_fetched_for_days_is_still_asked_for(self, clock: Clock) -> None:
        async with Site(responding(b"", "503 Service Unavailable")) as site:
            keys = Jwks(site.url, ALL_SPEAKERS, clock)
            keys._failures = 5000  # noqa: SLF001 - as many fetches would take long
            verifier = Verifier([], jwks=keys)
            with pytest.raises(Unavailable) as caught:
                await verifier.prepare(OLD.sign())
            assert caught.value.headers == {"Retry-After": "60"}
            site.answer = GOOD
            clock.now += FETCH_INTERVAL
            await verifier.prepare(OLD.sign())
            assert isinstance(verifier.verify(OLD.sign()), UserCaller)

    async def test_retry_after_is_positive_if_a_failed_jwks_fetch_took_long(self, clock: Clock) -> None:
        async def slow(writer: asyncio.StreamWriter) -> None:
            clock.now += 5
            await responding(b"", "503 Service Unavailable")(writer)

        async with Site(slow) as site:
            with pytest.raises(Unavailable) as caught:
                await Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock)).prepare(OLD.sign())
            assert caught.value.headers == {"Retry-After": "1"}

    async def test_unknown_key_ids_cause_at_most_one_jwks_fetch_a_minute(self, clock: Clock) -> None:
        async with Site(GOOD) as site:
            verifier = Verifier([SECRET], jwks=Jwks(site.url, ALL_SPEAKERS, clock))

            async def present(number: int) -> str:
                """Return the error for a token whose key the issuer lacks."""
                token = NEW.sign({"kid": f"unknown {number}"})
                try:
                    await verifier.prepare(token)
                except Unavailable as refusal:
                    return refusal.headers["Retry-After"]
                with pytest.raises(Unauthenticated, match="signature"):
                    verifier.verify(token)
                return "refused"

            for minute in range(1, 4):
                for again in ("refused", "41", "21"):
                    assert set(await asyncio.gather(*map(present, range(50)))) == {again}
                    clock.now += FETCH_INTERVAL / 3 - 0.1
                assert site.asked == minute
                clock.now += 0.3

    async def test_unknown_key_id_does_not_block_a_rotated_key(self, clock: Clock) -> None:
        async with Site(GOOD) as site:
            verifier = Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock))
            token = NEW.sign()
            await verifier.prepare(OLD.sign({"kid": "a stranger's"}))
            site.answer = responding(jwks(OLD, NEW))
            clock.now += 0.5
            with pytest.raises(Unavailable, match="key is unknown") as caught:
                await verifier.prepare(token)
            wait = int(caught.value.headers["Retry-After"])
            assert wait == 60
            clock.now += wait
            await asyncio.gather(verifier.prepare(OLD.sign({"kid": "a stranger's"})), verifier.prepare(token))
            assert isinstance(verifier.verify(token), UserCaller)
            assert site.asked == 2

    @pytest.mark.parametrize("only_published", [True, False])
    async def test_token_with_invalid_claims_gets_no_retry_after(self, clock: Clock, *, only_published: bool) -> None:
        async with Site(GOOD) as site:
            expected = Expected("us", "tocsin", only_published=only_published)
            verifier = Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock), expected=expected)
            good: dict[str, Any] = {"iss": "us", "aud": "tocsin"}
            await verifier.prepare(NEW.sign(**good))
            with pytest.raises(Unavailable):
                await verifier.prepare(NEW.sign(**good))
            for bad in ({"exp": 1}, {"iss": "them"}, {"aud": "crm"}, {"sub": "x"}, {"nbf": 10**10}, {"iat": "now"}):
                token = NEW.sign(**{**good, **bad})
                await verifier.prepare(token)
                with pytest.raises(Unauthenticated):
                    verifier.verify(token)
            header, _, signature = NEW.sign(**good).split(".")
            for payload in ("AAAAA", part("sub=4"), part([good])):
                await verifier.prepare(f"{header}.{payload}.{signature}")
            assert site.asked == 1

    async def test_jwks_keys_without_kid_verify_tokens_with_kid(self, clock: Clock) -> None:
        nameless = json.dumps({"keys": [{name: value for name, value in OLD.jwk().items() if name != "kid"}]})
        async with Site(responding(nameless.encode())) as site:
            verifier = Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock))
            for _ in range(3):
                await verifier.prepare(OLD.sign())
                assert isinstance(verifier.verify(OLD.sign()), UserCaller)
                clock.now += 1
            assert site.asked == 1

    async def test_concurrent_tokens_share_one_jwks_fetch(self, clock: Clock) -> None:
        async with Site(GOOD) as site:
            verifier = Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock))
            tokens = [OLD.sign(sub=id_) for id_ in range(1, 51)]
            await asyncio.gather(*map(verifier.prepare, tokens))
            assert [verifier.verify(token).label for token in tokens] == [f"user {id_}" for id_ in range(1, 51)]
            assert site.asked == 1

    async def test_cancelled_waiter_does_not_cancel_the_jwks_fetch(self, clock: Clock) -> None:
        async with Site(GOOD) as site:
            keys = Jwks(site.url, ALL_SPEAKERS, clock)
            impatient = asyncio.create_task(keys.refresh_for("old", "RS256"))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(keys.refresh_for("old", "RS256"))
            await asyncio.sleep(0)
            impatient.cancel()
            await waiting
            assert impatient.cancelled()
            assert len(keys.keys) == 1

    @pytest.mark.usefixtures("hasty")
    @pytest.mark.parametrize("name", BAD)
    async def test_unusable_jwks_response_keeps_the_previous_keys(self, clock: Clock, name: str) -> None:
        async with Site(GOOD) as site:
            keys = Jwks(site.url, ALL_SPEAKERS, clock)
            verifier = Verifier([], jwks=keys)
            await verifier.prepare(OLD.sign())
            site.answer = BAD[name]
            for seconds in (FETCH_INTERVAL, STALE, STALE):
                clock.now += seconds
                with pytest.raises(Unavailable, match="issuer's keys cannot be fetched") as caught:
                    await verifier.prepare(NEW.sign())
                assert caught.value.headers == {"Retry-After": "60"}
                await verifier.prepare(OLD.sign())
                assert isinstance(verifier.verify(OLD.sign()), UserCaller)
            assert site.asked == 4
            clock.now += FETCH_INTERVAL
            site.answer = responding(jwks(NEW))
            await verifier.prepare(NEW.sign())
            assert isinstance(verifier.verify(NEW.sign()), UserCaller)

    async def test_jwks_redirect_publishes_no_keys(self, clock: Clock) -> None:
        async with Site(GOOD) as other, Site(responding(b"", "302 Found", f"Location: {other.url}")) as site:
            with pytest.raises(Unavailable):
                await Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock)).prepare(OLD.sign())
            assert other.asked == 0

    async def test_jwks_fetch_at_start_retries_with_backoff_up_to_a_minute(self, clock: Clock) -> None:
        async with Site(responding(b"", "503 Service Unavailable")) as site:
            verifier = Verifier([], jwks=Jwks(site.url, ALL_SPEAKERS, clock))
            for asked, wait in enumerate((1, 2, 4, 8, 16, 32, 60, 60), 1):
                for passed in (0, wait - 0.5):
                    clock.now += passed
                    with pytest.raises(Unavailable, match="cannot be fetched") as caught:
                        await verifier.prepare(OLD.sign())
                    assert caught.value.headers == {"Retry-After": str(1 if passed else wait)}
                    assert site.asked == asked
                clock.now += 0.5
            site.answer = GOOD
            await verifier.prepare(OLD.sign())
            assert isinstance(verifier.verify(OLD.sign()), UserCaller)

    async def test_withdrawn_jwks_key_is_dropped_after_ten_minutes(self, clock: Clock) -> None:
        async with Site(responding(jwks(OLD, NEW))) as site:
            keys = Jwks(site.url, ALL_SPEAKERS, clock)
            verifier = Verifier([], jwks=keys)
            old, new = OLD.sign(), NEW.sign()
            await verifier.prepare(old)
            kept = verifier.verify(old)
            site.answer = responding(jwks(NEW))
            clock.now += STALE - 1
            await verifier.prepare(old)
            await settled(keys)
            assert (verifier.verify(old), site.asked) == (kept, 1)
            clock.now += 1
            await verifier.prepare(old)
            assert verifier.verify(old) is kept  # while it is fetched
            await settled(keys)
            with pytest.raises(Unauthenticated):
                verifier.verify(old)
            assert verifier.verify(new)
            assert site.asked == 2

    async def test_unchanged_jwks_keeps_the_token_cache(self, clock: Clock) -> None:
        async with Site(GOOD) as site:
            keys = Jwks(site.url, ALL_SPEAKERS, clock)
            verifier = Verifier([], jwks=keys)
            token = OLD.sign()
            await verifier.prepare(token)
            caller = verifier.verify(token)
            clock.now += STALE
            await verifier.prepare(token)
            await settled(keys)
            assert site.asked == 2
            assert verifier.verify(token) is caller

    async def test_tokens_of_other_keys_do_not_wait_for_jwks(
        self, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Site(hanging) as site:
            keys = Jwks(site.url, ALL_SPEAKERS, clock)
            verifier = Verifier([SECRET, of_pem(OLD.file(tmp_path), ALL_SPEAKERS)], jwks=keys)
            header, _, rest = OLD.sign({"kid": None}).partition(".")
            others = ["", "x", "a.b.c", "A" * 100_000, f"{header}.{header}.AAAA.{rest}"]
            others += [signed({"alg": alg, "kid": "x"}, {}) for alg in ("HS256", "none", "ES512", ["RS256"], None)]
            others += [signed({"alg": "RS256", "kid": 1}, {}), signed({"alg": "RS256", "kid": ["x"]}, {})]
            monkeypatch.setattr(tocsin.auth.jwks, "FETCH_TIMEOUT", 600.0)
            async with bounded():
                for token in (mint_user(SECRET, 4, HOUR), OLD.sign(), OLD.sign({"kid": None}), *others):
                    await verifier.prepare(token)
            await keys.close()

    @pytest.mark.parametrize(("whose", "expected"), [("users", [True, False]), ("services", [False, True])])
    async def test_jwks_keys_verify_only_their_kind_of_caller(
        self, clock: Clock, whose: Any, expected: list[bool]
    ) -> None:
        async with Site(GOOD) as site:
            verifier = Verifier([], jwks=Jwks(site.url, frozenset({whose}), clock))
            for token, good in zip((OLD.sign(), OLD.sign(sub="crm", scope="operations")), expected, strict=True):
                await verifier.prepare(token)
                if good:
                    assert verifier.verify(token)
                else:
                    with pytest.raises(Unauthenticated, match="is not for"):
                        verifier.verify(token)


class TestService:
    async def test_jwks_rotation_logs_no_user_out(
        self, url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tocsin.auth.jwks, "FETCH_INTERVAL", 0.0)
        old, new = OLD.sign(), NEW.sign()
        async with (
            Site(GOOD) as site,
            serving(url, catalogue, with_worker=False, jwt_secret=(), jwt_jwks_url=site.url) as api,
        ):
            await api.people(4)

            async def statuses() -> list[int]:
                return [(await api.call("GET", "/notifications", token)).status_code for token in (old, new)]

            assert await statuses() == [200, 401]
            site.answer = responding(jwks(NEW, OLD))
            assert await statuses() == [200, 200]
            site.answer = responding(jwks(NEW))
            monkeypatch.setattr(tocsin.auth.jwks, "STALE", 0.0)
            await reaches(statuses, [401, 200])

    @pytest.mark.usefixtures("hasty")
    async def test_unreachable_issuer_at_start_delays_only_its_own_tokens(
        self, url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Site(hanging) as site, serving(url, catalogue, jwt_jwks_url=site.url, root_path="/notify") as api:
            await api.people(4)
            path = "/notify/notifications"
            assert (await api.call("GET", "/healthz")).status_code == 200
            assert (await api.as_user(4, "GET", path)).status_code == 200
            assert (await api.call("GET", path)).status_code == 401
            away = await api.call("GET", path, OLD.sign())
            assert away.status_code == 503
            assert away.json()["errors"][0]["code"] == "unavailable"
            assert 1 <= int(away.headers["retry-after"]) <= 60
            assert away.headers["x-request-id"]
            assert away.headers["cache-control"] == "no-store"
            twice = [("Authorization", f"Bearer {OLD.sign()}")] * 2
            assert (await api.http.get(path, headers=twice)).status_code == 401
            site.answer = GOOD
            monkeypatch.setattr(tocsin.auth.jwks, "FETCH_TIMEOUT", LONGEST_WAIT)
            monkeypatch.setattr(tocsin.auth.jwks, "FETCH_INTERVAL", 0.0)
            assert (await api.call("GET", path, OLD.sign())).status_code == 200
            assert (await api.call("GET", path, OLD.sign({"kid": "x"}))).status_code == 401

    async def test_jwks_is_loaded_before_the_first_request(self, url: str, catalogue: Catalogue) -> None:
        async with Site(GOOD) as site, serving(url, catalogue, with_worker=False, jwt_jwks_url=site.url):
            await until(lambda: site.asked)


class TestDoctor:
    @pytest.fixture(autouse=True)
    def _alone(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TOCSIN_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("TOCSIN_PORT", "0")

    async def found(self) -> dict[str, str]:
        return {finding.what: str(finding) for finding in await doctor.examine()}

    async def test_doctor_reports_the_keys_that_verify_tokens(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        async with Site(GOOD) as site:
            monkeypatch.setenv("TOCSIN_JWT_SECRET", SECRET)
            monkeypatch.setenv("TOCSIN_JWT_SECRET_FOR", "services")
            monkeypatch.setenv("TOCSIN_JWT_PUBLIC_KEY_FILES", f"{OLD.file(tmp_path)},{NEW.file(tmp_path)}")
            monkeypatch.setenv("TOCSIN_JWT_JWKS_URL", site.url)
            found = await self.found()
            assert found["keys of tokens"] == (
                "ok   keys of tokens: tokens are verified by 1 secret (services) and 2 public keys in files (both)"
                " and a JWKS (both)"
            )
            assert found["JWKS"] == f"ok   JWKS: 1 key at {site.url} can verify tokens"

    @pytest.mark.parametrize("name", BAD)
    async def test_doctor_reports_unusable_jwks(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr("tocsin.cli.doctor.configuration.FETCH_TIMEOUT", QUICK)
        async with Site(BAD[name]) as site:
            monkeypatch.setenv("TOCSIN_JWT_JWKS_URL", site.url)
            said = (await self.found())["JWKS"]
            assert said.startswith("FAIL")
            assert said.endswith("; make sure that it answers, or correct TOCSIN_JWT_JWKS_URL")

    async def test_doctor_reports_unusable_key_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TOCSIN_JWT_PUBLIC_KEY_FILES", str(tmp_path / "key.pem"))
        said = (await self.found())["keys of tokens"]
        assert said.startswith(f"FAIL keys of tokens: The key file {tmp_path / 'key.pem'} cannot be read")
        assert "; put a public key" in said
