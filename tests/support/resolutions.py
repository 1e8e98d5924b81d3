"""Resolutions, and traces of erased contacts."""

from typing import Any

from tests.support.service import Api
from tests.support.waiting import reaches

NAMES = ("Zebulon", "Quist", "Contract with Zebulon", "I want my money back")


async def resolve(api: Api, about: str, how: str = "read", users: list[int] | None = None, **more: Any) -> None:
    body = {"about": about, "as": how, **({} if users is None else {"users": users})}
    answer = await api.as_service("POST", "/events/resolve", json=body, **more)
    assert (answer.status_code, answer.json()) == (202, {"queued": True}), answer.text


async def settled(api: Api) -> None:
    await reaches(lambda: api.app_state.database.value("select count(*) from resolutions"), 0)


def traces(tables: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, table) for table, text in tables.items() for name in NAMES if name in text]
