"""Accessibility by the rules of WCAG 2.2 AA."""

import json
from importlib.resources import files

from playwright.async_api import Page

AXE = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


SETTLE = """() => Promise.all(document.getAnimations()
    .filter((each) => each.effect.getComputedTiming().endTime < Infinity)
    .map((each) => each.finished.catch(() => null)))"""


async def barriers_of(page: Page) -> list[str]:
    """Return the findings of axe as text. What fades in is judged when it is there."""
    await page.evaluate(SETTLE)
    await page.evaluate(AXE)
    found = await page.evaluate("(rules) => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", RULES)
    return [
        f"{violation['id']}: {json.dumps([node['html'][:200] for node in violation['nodes'][:3]])}"
        for violation in found["violations"]
    ]
