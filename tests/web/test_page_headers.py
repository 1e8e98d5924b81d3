"""Security headers of the pages of the service, and that the pages work under their own policies."""

import pytest
from playwright.async_api import Browser, expect

from tests.support.answers import assert_page_headers
from tests.support.service import Api

WATCH = "document.addEventListener('securitypolicyviolation', e => (window.refused ??= []).push(e.violatedDirective))"


@pytest.mark.parametrize("path", ["/console", "/docs"])
async def test_page_has_security_headers(api: Api, path: str) -> None:
    answer = await api.call("GET", path)
    assert answer.status_code == 200
    assert_page_headers(answer)


async def test_page_has_security_headers_when_it_is_revalidated(api: Api) -> None:
    tag = (await api.call("GET", "/console")).headers["etag"]
    again = await api.call("GET", "/console", headers={"If-None-Match": tag})
    assert again.status_code == 304
    assert_page_headers(again)


async def test_service_leaves_strict_transport_security_to_the_proxy(api: Api) -> None:
    for path in ("/console", "/docs", "/healthz", "/inbox.js"):
        assert "strict-transport-security" not in (await api.call("GET", path)).headers, path


async def test_web_inbox_file_may_be_embedded_and_sets_no_page_policy(api: Api) -> None:
    headers = (await api.call("GET", "/inbox.js")).headers
    assert headers["cross-origin-resource-policy"] == "cross-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert not {"content-security-policy", "x-frame-options"} & set(headers)


async def test_api_reference_page_works_under_its_policy(api: Api, chromium: Browser) -> None:
    context = await chromium.new_context()
    page = await context.new_page()
    await page.add_init_script(WATCH)
    await page.goto(f"{api.http.base_url}/docs")
    operation = page.locator(".opblock", has_text="/healthz").first
    await operation.locator(".opblock-summary-control").click()
    await operation.get_by_role("button", name="Try it out").click()
    await operation.get_by_role("button", name="Execute").click()
    await expect(operation.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    assert await page.evaluate("window.refused ?? []") == []
    await context.close()


async def test_page_cannot_be_framed(api: Api, chromium: Browser) -> None:
    context = await chromium.new_context()
    page = await context.new_page()
    await page.goto(f"{api.http.base_url}/healthz")
    for path in ("/console", "/docs"):
        async with page.expect_event("console", lambda message: "frame-ancestors" in message.text):
            await page.evaluate(
                "path => { const f = document.createElement('iframe'); f.src = path; document.body.append(f) }", path
            )
    await context.close()
