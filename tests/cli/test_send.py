"""`tocsin send` posts an event to a running service."""

import asyncio
import json
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.commands import run
from tests.support.service import SECRET, Api
from tocsin.cli.send import EventSender, event_of
from tocsin.errors import Refusal
from tocsin.settings import read_settings

pytestmark = pytest.mark.processes


async def send(folder: Path, *arguments: str, given: str = "", **environment: str) -> tuple[int, str, str]:
    """Run the command, and return its status and what it wrote."""
    send = partial(run, "send", *arguments, cwd=folder, given=given, **{"TOCSIN_JWT_SECRET": SECRET, **environment})
    done = await asyncio.to_thread(send)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


async def test_send_message_reaches_users_and_teams(api: Api, tmp_path: Path) -> None:
    await api.people(1, 4)
    await api.team(7, 1)
    address = str(api.http.base_url)
    status, out, err = await send(
        tmp_path, "--user", "4", "--team", "7", "The <b>lift</b> is out", "--wait", TOCSIN_PUBLIC_URL=address
    )
    assert (status, err) == (0, "")
    id_, state = out.split()
    assert state == "delivered"
    for user in (1, 4):
        [found] = (await api.inbox(user))["data"]
        assert (found["id"], found["type"], found["message"]) == (id_, "custom", "The <b>lift</b> is out")


async def test_send_reads_event_from_file_or_stdin(api: Api, tmp_path: Path) -> None:
    await api.people(1)
    event = {"type": "custom", "notify": {"users": [1]}, "data": {"user": 1}, "params": {"body": "x"}}
    (tmp_path / "event.json").write_text(json.dumps(event))
    address = str(api.http.base_url)
    ids = []
    for file in ("event.json", "-"):
        status, out, _ = await send(tmp_path, "--file", file, "--url", address, "--wait", given=json.dumps(event))
        assert status == 0
        ids.append(str(UUID(out.split()[0])))
    assert await api.ids(1) == ids[::-1]


async def test_send_reports_errors_in_one_sentence(api: Api, tmp_path: Path) -> None:
    address = str(api.http.base_url)
    (tmp_path / "broken.json").write_text("{")
    cases = {
        ("--user", "99", "x", "--url", address): "notify.users.0",
        ("x", "--url", address): "--user or --team",
        ("x", "--user", "1", "--url", f"{address}/elsewhere"): "404",
        ("x", "--user", "1", "--url", "http://127.0.0.1:1"): "tocsin serve",
        ("x", "--user", "1", "--url", "file:///etc"): "is not the url",
        ("--user", "1"): "--file",
        ("x", "--file", "broken.json"): "--file",
        ("--file", "broken.json", "--url", address): "broken.json",
        ("--file", "missing.json"): "missing.json",
    }
    for arguments, expected in cases.items():
        status, out, err = await send(tmp_path, *arguments)
        assert (status, out) == (1, ""), arguments
        assert err.startswith("tocsin: ")
        assert expected in err, (arguments, err)
        assert err.count("\n") == 1


async def test_send_rejects_wrong_secret_without_printing_it(api: Api, tmp_path: Path) -> None:
    other = "another-secret-for-tests-0123456789abcdef"
    status, _, err = await send(tmp_path, "x", "--user", "1", "--url", str(api.http.base_url), TOCSIN_JWT_SECRET=other)
    assert status == 1
    assert "401" in err
    assert other not in err


async def test_send_does_not_follow_redirects_with_its_token(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(redirect, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        status, _, err = await send(
            tmp_path, "x", "--user", "1", "--url", f"http://127.0.0.1:{port}", http_proxy="http://127.0.0.1:1"
        )
    assert status == 1
    assert "302" in err
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"HOST": "0.0.0.0", "PORT": "9000", "ROOT_PATH": "/notify"}, "http://127.0.0.1:9000/notify"),  # noqa: S104 - a setting
        ({"HOST": "::"}, "http://[::1]:8080"),
        ({"PUBLIC_URL": "https://crm.example.com/", "ROOT_PATH": "/notify"}, "https://crm.example.com/notify"),
    ],
)
def test_send_uses_the_configured_address(given: dict[str, str], url: str) -> None:
    settings = read_settings({f"TOCSIN_{name}": value for name, value in given.items()}, Path("/nonexistent"))
    assert EventSender.of(settings, SECRET, None).url == url


def test_send_requires_url_if_the_port_is_0() -> None:
    with pytest.raises(Refusal, match="--url"):
        EventSender.of(read_settings({"TOCSIN_PORT": "0"}, Path("/nonexistent")), SECRET, None)


def test_send_message_posts_a_custom_notification() -> None:
    expected = {"type": "custom", "notify": {"users": [4], "teams": [7]}, "params": {"body": "x"}}
    assert event_of("x", [4], [7], None) == expected
