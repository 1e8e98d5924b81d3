"""Deliveries and devices as rows, and what is recorded of them."""

from typing import Any
from uuid import UUID, uuid4

from tocsin.db.connections import Connection
from tocsin.push.deliveries import DeliveryKey

LANE, ORIGIN = "web/default", "https://push.example.com"
WORKER = uuid4()


async def insert(dba: Connection, table: str, **columns: Any) -> None:
    places = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    await dba.execute(f"insert into {table} ({', '.join(columns)}) values ({places})", *columns.values())


async def device(dba: Connection, number: int, token: str = "", **columns: Any) -> UUID:
    """Insert a browser of user 1, and return its id."""
    row = {"id": UUID(int=number), "token": token or f"{ORIGIN}/{number}", "user_id": 1, **columns}
    await insert(dba, "devices", type="Web", provider="web", environment="production", app="default", **row)
    return UUID(int=number)


async def delivery(dba: Connection, event: int, device_id: UUID, **columns: Any) -> DeliveryKey:
    """Insert a delivery, leased by `WORKER` unless `columns` say otherwise."""
    row = {"event_id": UUID(int=event), "device_id": device_id, "lane": LANE, "worker_id": WORKER, **columns}
    await insert(dba, "deliveries", user_id=1, is_bulk=False, type="Web", token_ending="ending", **row)
    return DeliveryKey(UUID(int=event), device_id)


async def states(dba: Connection, *columns: str) -> dict[DeliveryKey, tuple[Any, ...]]:
    rows = await dba.fetch(f"select event_id, device_id, {', '.join(columns)} from deliveries")
    return {DeliveryKey(row[0], row[1]): tuple(row)[2:] for row in rows}
