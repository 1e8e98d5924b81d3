"""Subjects that are settled, and what is left of those who are erased."""

import asyncio
from typing import Any

import pytest

from tests.support.service import Api

NAMES = ("Zebulon", "Quist", "Contract with Zebulon", "I want my money back")


async def resolve(api: Api, about: str, how: str = "read", users: list[int] | None = None, **more: Any) -> None:
    body = {"about": about, "as": how, **({} if users is None else {"users": users})}
    answer = await api.as_service("POST", "/events/resolve", json=body, **more)
    assert (answer.status_code, answer.json()) == (202, {"queued": True}), answer.text


async def settled(api: Api) -> None:
    for _ in range(400):
        if not await api.app_state.database.value("select count(*) from resolutions"):
            return
        await asyncio.sleep(0.02)
    pytest.fail("it was not settled")


def traces(tables: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, table) for table, text in tables.items() for name in NAMES if name in text]
