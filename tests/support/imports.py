"""Lines of an import."""

import json
from typing import Any
from uuid import uuid4

import httpx

from tests.support.service import Api

NDJSON = {"Content-Type": "application/x-ndjson"}


CONTACT = "c2ccbb7e-d174-4894-ba5a-1828d0f09128"


def user(id_: int, **more: Any) -> dict[str, Any]:
    return {"user": {"id": id_, "first_name": f"First{id_}", "last_name": "Last", **more}}


def team(id_: int, *users: int, **more: Any) -> dict[str, Any]:
    return {"team": {"id": id_, "name": f"Team {id_}", "users": users, **more}}


def device(user_id: int, token: str = "ab" * 32, **more: Any) -> dict[str, Any]:
    return {"device": {"user_id": user_id, "token": token, **more}}


def notification(user_id: int, day: int = 1, *, read: bool = False, **more: Any) -> dict[str, Any]:
    when = f"2015-03-{day:02} 10:25:50"
    values = {
        "user_id": user_id,
        "id": str(uuid4()),
        "type": "task_assigned",
        "data": {"user": {"id": 4, "last": "K", "first": "B"}, "case": {"id": CONTACT}},
        "message": f"A task of {day} was assigned & done",
        "message_formatted": f"<p>A task of <strong>{day}</strong> was assigned &amp; done</p>",
        "read_at": "2015-04-01 08:00:00" if read else None,
        "created_at": when,
        **more,
    }
    return {"notification": values}


def text_of(lines: list[Any]) -> bytes:
    return b"\n".join(json.dumps(line).encode() for line in lines)


async def send(api: Api, lines: list[Any] | bytes, **more: Any) -> httpx.Response:
    content = lines if isinstance(lines, bytes) else text_of(lines)
    return await api.as_service("POST", "/directory/import", content=content, headers=NDJSON, **more)


async def import_lines(api: Api, *lines: Any, **more: Any) -> dict[str, int]:
    answer = await send(api, list(lines), **more)
    assert answer.status_code == 200, answer.text
    counts: dict[str, int] = answer.json()
    return counts
