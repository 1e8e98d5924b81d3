"""Printed text cannot move the cursor, forge a line or change the text direction."""

import asyncio
from pathlib import Path

import pytest

from tests.support.commands import run
from tocsin import directory
from tocsin.cli.terminal import escaped
from tocsin.db.pool import Database
from tocsin.formats import User

HOSTILE = "X\x1b]0;pwn\x07\r\x9b2J\u202e\u2066\u200b\u061c\ufeff"


def test_control_and_bidi_characters_are_escaped() -> None:
    assert escaped(HOSTILE) == r"X\x1b]0;pwn\x07\r\x9b2J\u202e\u2066\u200b\u061c\ufeff"
    assert escaped("a\nb\tc") == r"a\nb\tc"
    assert escaped("a\nb\tc\x1b", lines=True) == "a\nb\tc\\x1b"
    assert escaped("lone \ud800") == r"lone \ud800"


def test_ordinary_text_is_unchanged() -> None:
    for text in ("Zoë Müller", "ليلى حداد", "👩‍👩‍👧", "می‌خواهم"):
        assert escaped(text) == text


@pytest.mark.processes
async def test_user_name_cannot_forge_a_line_of_output(url: str, database: Database, tmp_path: Path) -> None:
    hostile = {"first_name": HOSTILE, "last_name": "L\nuser 1, admin: active"}
    user = User(id=5, company_id=1, first_name="", last_name="").model_copy(update=hostile)
    await directory.put_user(database, user, None)
    done = await asyncio.to_thread(run, "explain", "--user", "5", cwd=tmp_path, TOCSIN_DATABASE_URL=url)
    assert done.returncode == 0
    assert done.stdout.startswith("user 5, X")
    assert "\\u200b" in done.stdout.splitlines()[0]
    assert not any(line.startswith("user 1") for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout
