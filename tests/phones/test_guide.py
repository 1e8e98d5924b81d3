"""The guide to the stand-ins: its calls are accepted, and its Python example runs."""

import asyncio
import os
import re
import textwrap
from pathlib import Path
from typing import Any

from tocsin_phones import Phones

PAGE = (Path(__file__).parents[2] / "docs/guides/fake-phones.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


async def test_guide_calls_change_the_stand_in_responses(phones: Phones) -> None:
    _, calls = blocks("sh")
    running = await asyncio.create_subprocess_exec(
        "sh",
        "-e",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PHONES_URL": phones.control_url},
    )
    commands = calls.replace("curl ", "curl --silent --show-error --fail-with-body ")
    out, err = await running.communicate(commands.encode())
    assert running.returncode == 0, (out + err).decode()


async def test_guide_python_example_runs(tmp_path: Path) -> None:
    [example] = blocks("python")
    lines = [line for line in example.splitlines() if "assert phones.screen(token)" not in line]
    code = "\n".join(lines).replace("async with", "async def example(folder):\n  async with", 1)
    head, body = code.split("async def example(folder):\n")
    body = textwrap.indent(f"{body}\n    return variables, subscription", "  ")
    names: dict[str, Any] = {}
    exec(f"{head}\nasync def example(folder):\n{body}", names)  # noqa: S102 - the page's code is what is tested
    variables, subscription = await names["example"](tmp_path)
    assert variables["TOCSIN_APNS_URL"].startswith("https://127.0.0.1:")
    assert set(subscription["keys"]) == {"p256dh", "auth"}
