"""Take the screenshots of README.md and docs/ from the demo, in both colour schemes: `make screenshots`."""

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

ASSETS = Path(__file__).parent / "assets"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
LABELS = ("High five: badge", "New lead", "Mention")
"""The buttons of the demo that are pressed before the picture is taken."""

TO_WEBP = """async (png) => {
  const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").drawImage(image, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/webp", quality: 0.82 });
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""


@contextmanager
def demo() -> Iterator[str]:
    """Run the demo in a folder of its own, and yield its address."""
    folder = Path(tempfile.mkdtemp(prefix="tocsin-", dir="/tmp"))  # the path of a socket must be short
    folder.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    environment = {**own, "TOCSIN_DATA_DIR": str(folder / "data"), "TOCSIN_PORT": "0"}
    command = [sys.executable, "-m", "tocsin", "demo"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = next(filter(None, (re.search(r"http://[\d.:]+", line) for line in process.stdout or ())))
            yield found[0]
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(folder)


def save(page: Page, name: str) -> None:
    """Save what the page shows as WebP."""
    png = base64.b64encode(page.screenshot(animations="disabled")).decode()
    blank = page.context.new_page()
    webp = base64.b64decode(blank.evaluate(TO_WEBP, png))
    blank.close()
    (ASSETS / f"{name}.webp").write_bytes(webp)
    sys.stdout.write(f"{name}.webp: {len(webp) // 1024} kB\n")


def take(browser: Browser, url: str, scheme: Literal["light", "dark"]) -> None:
    """Take the pictures of one colour scheme."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(url)
    page.locator("tocsin-inbox").get_by_role("tab").first.wait_for()
    for label in LABELS:
        page.locator("#kinds").get_by_role("button", name=label, exact=True).first.click()
        page.locator("#said").get_by_text(label).first.wait_for()
    page.locator("#iphone .banners li").first.wait_for()
    page.wait_for_timeout(9_000)  # the toasts leave
    page.evaluate("scrollTo(0, 0)")
    save(page, f"demo-{scheme}")
    console = context.new_page()
    console.goto(f"{url}/{page.locator('#console').get_attribute('href')}")
    console.get_by_text("apns/default").first.wait_for()
    console.wait_for_timeout(11_000)  # two rounds of metrics, for the charts
    save(console, f"console-{scheme}")
    context.close()


def main() -> None:
    """Take all pictures."""
    with sync_playwright() as playwright, demo() as url:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in SCHEMES:
            take(browser, url, scheme)
        browser.close()


if __name__ == "__main__":
    main()
