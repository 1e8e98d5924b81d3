"""URLs behind reverse proxies: which forwarded headers are trusted."""

from typing import Any

from tests.support.pages import fill, listening, next_url
from tests.support.service import Api, serving
from tocsin.catalogue import Catalogue

FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "crm.example.com:8443"}


class TestProxies:
    async def test_urls_follow_forwarded_headers_of_trusted_proxy(self, url: str, catalogue: Catalogue) -> None:
        for trusted in ("127.0.0.1", "10.0.0.0/8, 127.0.0.0/8"):
            async with serving(url, catalogue, trusted_proxies=trusted) as api:
                await fill(api)
                found = await next_url(api, **FORWARDED)
                assert found.startswith("https://crm.example.com:8443/notifications?per_page=1&page=2")

    async def test_forwarded_headers_of_untrusted_proxies_are_ignored(self, url: str, catalogue: Catalogue) -> None:
        for proxies in ("", "10.0.0.0/8,::1"):
            more: dict[str, Any] = {"trusted_proxies": proxies} if proxies else {}
            async with serving(url, catalogue, **more) as api, listening(api) as port:
                await fill(api)
                place = f"http://127.0.0.1:{port}/notifications"
                assert (await next_url(api, path=place, **FORWARDED)).startswith(f"{place}?")

    async def test_malformed_forwarded_headers_are_ignored(self, url: str, catalogue: Catalogue) -> None:
        async with serving(url, catalogue, trusted_proxies="127.0.0.1") as api:
            await fill(api)
            own = f"{api.http.base_url}/notifications?"
            for host in ('a"b', "a/b", "a@b", "x y", "[", "[::1", "a:b", "", ",", "\\", "a?b=", "x" * 300, "a, b/c"):
                assert (await next_url(api, **{"X-Forwarded-Host": host})).startswith(own), host
            for scheme in ("javascript", "https, http", "", "HTTPS://", "\\"):
                assert (await next_url(api, **{"X-Forwarded-Proto": scheme})).startswith(own), scheme
            for client in ("x", "[", "[::1", "1.2.3.4:", "1.2.3.4:" + "9" * 5000, ",,,", "::ffff:1.2.3.4"):
                assert (await next_url(api, **{"X-Forwarded-For": client})).startswith(own), client
            last = await next_url(api, **{"X-Forwarded-Host": "evil.example.com, crm.example.com"})
            assert last.startswith("http://crm.example.com/notifications?")

    async def test_invalid_host_is_not_repeated_in_urls(self, api: Api) -> None:
        await fill(api)
        for host in ('a"b', "a/b", "a@b", "x y", "a?b"):
            assert (await next_url(api, Host=host)).startswith(f"{api.http.base_url}/notifications?"), host
