"""The web inbox in Chromium: size, time to the first list, and scrolling through 2,000 rows."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import uvloop
from playwright.async_api import Browser, Page, async_playwright

from bench import fill
from bench.measure import Claim, medians, options, show
from bench.service import Client, Service, clients, database, service
from tocsin.auth.keys import own_secret
from tocsin.auth.minting import mint_user

ROWS = 2_000
STEP = 400
"""Pixels per frame while scrolling: about six rows."""

_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

_WATCH = """
window.tasks = [];
new PerformanceObserver((seen) => tasks.push(...seen.getEntries().map(({ duration }) => duration)))
  .observe({ type: "longtask" });
document.body.replaceChildren();
"""

_EMBED = """
async ([token]) => {
  await import("/inbox.js");
  const inbox = document.createElement("tocsin-inbox");
  Object.assign(inbox, { src: location.origin, token, mode: "page" });
  document.body.append(inbox);
  const at = await new Promise((resolve) => {
    const seen = new MutationObserver(() => {
      if (!inbox.shadowRoot.querySelector(".row")) return;
      seen.disconnect();
      requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
    });
    seen.observe(inbox.shadowRoot, { childList: true, subtree: true });
  });
  const asked = performance.getEntriesByType("resource").filter(({ name }) => name.includes("/notifications?"));
  await new Promise((resolve) => setTimeout(resolve, 500));
  tasks.length = 0;
  return at - asked[0].responseEnd;
}
"""

_BARE = """
async ([token, rows]) => {
  const headers = { Authorization: `Bearer ${token}` };
  const pages = Array.from({ length: rows / 100 }, (_, at) => `/notifications?per_page=100&page=${at + 1}`);
  const found = await Promise.all(pages.map(async (url) => (await fetch(url, { headers })).json()));
  await new Promise((resolve) => setTimeout(resolve, 200));
  tasks.length = 0;
  const list = document.createElement("ul");
  for (const note of found.flatMap(({ data }) => data)) {
    const row = document.createElement("li");
    const time = document.createElement("time");
    time.textContent = note.created_at;
    row.append(note.message, time);
    list.append(row);
  }
  document.body.append(list);
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(() => resolve(0), 200)));
}
"""

_SCROLL = """
async ([rows, step]) => {
  const box = document.scrollingElement;
  const root = document.querySelector("tocsin-inbox")?.shadowRoot ?? document;
  const count = () => root.querySelectorAll("li").length;
  let [frame, before] = [0, performance.now()];
  for (let still = 0; still < 300; still += 1) {
    const now = await new Promise(requestAnimationFrame);
    frame = Math.max(frame, now - before);
    before = now;
    const top = box.scrollTop;
    box.scrollBy(0, step);
    if (box.scrollTop !== top) still = 0;
    else if (count() === rows) break;
    else root.querySelector("[part=more]:not([hidden])")?.click();
  }
  await new Promise((resolve) => setTimeout(resolve, 200));
  return { rows: count(), task: Math.max(0, ...tasks), frame };
}
"""


async def main() -> None:
    """Measure and print."""
    rounds, _ = options(__doc__, rounds=5, seconds=1)
    async with service() as running, _chromium() as browser, clients(running, 1) as [client]:
        token = await _filled(running)

        async def one_round() -> dict[str, float]:
            async with _page(browser, running) as page:
                first = await page.evaluate(_EMBED, [token])
                inbox = await _scrolled(page)
            async with _page(browser, running) as page:
                await page.evaluate(_BARE, [token, ROWS])
                bare = await _scrolled(page)
            return {
                "first": first,
                "task": inbox["task"],
                "frame": inbox["frame"],
                "bare task": bare["task"],
                "bare frame": bare["frame"],
            }

        size = await _size(client, running)
        found = await medians(rounds, one_round)
    show(
        Claim("/inbox.js as it is served, packed", size, "B", at_most=22_000),
        Claim("from the list's answer to the list on screen", found["first"], "ms", at_most=50),
        Claim(f"longest task over 50 ms while {ROWS:,} rows are scrolled", found["task"], "ms", at_most=50),
        Claim("the same of a bare list, made in one go", found["bare task"], "ms"),
        Claim("longest frame while they are scrolled", found["frame"], "ms"),
        Claim("the same of the bare list", found["bare frame"], "ms"),
    )


async def _filled(running: Service) -> str:
    """Fill an inbox and return the token of its owner."""
    async with database(running) as connection:
        owners = await fill.users(connection, 1)
        await fill.history(connection, owners, ROWS)
    return mint_user(own_secret(running.data_dir), owners[0], timedelta(hours=1))


async def _size(client: Client, running: Service) -> int:
    """Return the transferred bytes of the component, without the response headers."""
    request = f"GET /inbox.js HTTP/1.1\r\nHost: {running.host}\r\nAccept-Encoding: gzip\r\n\r\n"
    packed = await client.ask(request.encode())
    if b"content-encoding: gzip" not in client.head.lower():
        raise RuntimeError(f"not packed: {client.head.decode()}")
    return len(packed)


@asynccontextmanager
async def _chromium() -> AsyncIterator[Browser]:
    """Start Debian's Chromium without requests to other hosts."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_QUIET)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def _page(browser: Browser, running: Service) -> AsyncIterator[Page]:
    """Open an empty page of the service's own origin, in a new profile."""
    context = await browser.new_context(viewport={"width": 900, "height": 760})
    try:
        page = await context.new_page()
        await page.goto(f"http://{running.host}:{running.port}/readyz")
        await page.evaluate(f"() => {{ {_WATCH} }}")
        yield page
    finally:
        await context.close()


async def _scrolled(page: Page) -> dict[str, Any]:
    seen: dict[str, Any] = await page.evaluate(_SCROLL, [ROWS, STEP])
    if seen["rows"] != ROWS:
        raise RuntimeError(f"only {seen['rows']} rows came")
    return seen


if __name__ == "__main__":
    uvloop.run(main())
