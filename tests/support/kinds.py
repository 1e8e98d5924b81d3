"""Custom kinds as operators write them."""

from pathlib import Path

UUID = "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88"


OURS = """
[shapes.order]
fields = { id = "uuid", number = "integer", state = "string", schema = "string", model_copy = "text or null" }
spoken = "no. {number}"
coded = { state = "readable" }
subjects = { id = "order" }

[labels.order.state]
on_its_way = "on its way"

[order_moved]
title = "Order"
says = "**{user}** says: {order} is **{order.state}**, {days} days late"
data = { user = "user", order = "order", days = "integer" }
thread = "order"
group = "orders"
link = "https://shop.example.com/{order.id}"
"""


ORDER = {"id": UUID, "number": 7, "state": "on_its_way", "schema": "s", "model_copy": None}


def folder_of(path: Path, **files: str) -> Path:
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / f"{name.replace('_', '-')}.toml").write_text(text, encoding="utf-8")
    return path
