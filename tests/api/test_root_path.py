"""The root path prefixes every route."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.answers import UNKNOWN, codes_of, sealed
from tests.support.pages import fill, next_url
from tests.support.service import Api, serving
from tocsin.catalogue import Catalogue
from tocsin.settings import read_settings


class TestPrefix:
    @pytest.fixture
    async def below(self, url: str, catalogue: Catalogue) -> AsyncIterator[Api]:
        async with serving(url, catalogue, root_path="/notify") as api:
            yield api

    async def test_root_path_prefixes_every_route_and_url(self, below: Api) -> None:
        await fill(below, "/notify/notifications")
        page = await next_url(below, path="/notify/notifications")
        assert page.startswith(f"{below.http.base_url}/notify/notifications?per_page=1&page=2&cursor=")
        assert len((await below.as_user(1, "GET", page)).json()["data"]) == 1
        assert (await below.as_user(1, "PUT", "/notify/notifications/read")).status_code == 204
        assert (await below.as_user(1, "POST", "/notify/notifications/devices/a%2Fb")).status_code == 422
        found = await below.as_service("GET", f"/notify/events/{UNKNOWN}")
        assert codes_of(found) == (404, [("not_found", None)])
        event = {"type": "custom", "data": {"user": 1}, "params": {"body": "x"}, "notify": {"users": [1]}}
        assert (await below.as_service("POST", "/notify/events", json=event)).status_code == 202
        assert (await below.call("GET", "/notify/openapi.json")).json()["servers"] == [{"url": "/notify"}]
        shown = await below.call("GET", "/notify/docs")
        assert 'href="docs/swagger-ui.css"' in shown.text
        assert (await below.call("GET", "/notify/docs/swagger-ui.css")).status_code == 200

    async def test_only_probes_are_served_without_the_root_path(self, below: Api) -> None:
        for path in ("/notifications", "/events", "/docs", "/", "/notifynotifications", "/notify", "/Notify/healthz"):
            answer = await below.as_user(1, "GET", path)
            assert codes_of(answer) == (404, [("not_found", None)]), path
            assert sealed(answer)
        for path in ("/healthz", "/readyz", "/notify/healthz", "/notify/readyz"):
            assert (await below.call("GET", path)).status_code == 200

    @pytest.mark.parametrize(
        ("public", "prefix", "base"),
        [
            ("https://crm.example.com", "/notify", "https://crm.example.com/notify"),
            ("https://crm.example.com/notify/", "/notify", "https://crm.example.com/notify"),
            ("https://crm.example.com/a", "/notify", "https://crm.example.com/a/notify"),
            ("https://crm.example.com/a/notify", "/notify", "https://crm.example.com/a/notify"),
            ("https://notify", "/notify", "https://notify/notify"),
            ("https://crm.example.com/a/", "", "https://crm.example.com/a"),
        ],
    )
    async def test_public_url_contains_the_root_path_once(self, public: str, prefix: str, base: str) -> None:
        settings = read_settings({"TOCSIN_PUBLIC_URL": public, "TOCSIN_ROOT_PATH": prefix}, Path("/nonexistent"))
        assert settings.base_url == base
