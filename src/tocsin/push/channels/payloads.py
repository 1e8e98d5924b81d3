"""What a push says, within its provider's limit: the body is cut first, then the data goes, then ids to clear."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import UUID

from tocsin.notifications import to_json
from tocsin.push.channels import Push, Shown
from tocsin.push.channels.characters import cut

ELLIPSIS = "…"
"""Stands where a body was cut."""

MAX_BYTES = 4096
"""Bytes of the largest payload of a phone."""

LEVELS = {"quiet": "passive", "normal": "active", "urgent": "time-sensitive"}
"""How an iPhone interrupts, by preset."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a push may have to be shortened; `data` is JSON."""

    body: str
    data: str
    clear: tuple[UUID, ...] | Literal["all"]


def fitted(push: Push, build: Callable[[Parts], str], limit: int) -> bytes | None:
    """Return what `build` makes of a push's parts, shortened until it has at most `limit` bytes.

    Nothing a stranger wrote may stop a push, so the words go before what is to be done. None: even so it is too long.
    """

    def made(parts: Parts) -> bytes:
        return build(parts).encode()

    for parts in _ever_less(push):
        whole = made(parts)
        if len(whole) <= limit:
            return whole
        if parts.body and len(made(_cut(parts, 0))) <= limit:
            fits = bisect_right(range(len(parts.body)), limit, key=lambda length: len(made(_cut(parts, length))))
            return made(_cut(parts, fits - 1))
    return None


def words_of(shown: Shown) -> str:
    """Return the body as phones show it."""
    return shown.body.replace(" <br> ", "\n")


def apple(push: Push, parts: Parts) -> dict[str, Any]:
    """Return the `aps` block."""
    shown = push.shown
    if shown is None:
        return {"badge": push.badge, "content-available": 1}
    aps: dict[str, Any] = {"alert": {"title": shown.title, "body": parts.body}, "badge": push.badge}
    if shown.preset != "quiet":
        aps["sound"] = "default"
    if shown.thread:
        aps["thread-id"] = shown.thread
    if shown.category:
        aps["category"] = shown.category
    aps["interruption-level"] = LEVELS[shown.preset]
    if shown.mutable:
        aps["mutable-content"] = 1
    return aps


def notification(push: Push, shown: Shown, data: str) -> str:
    """Return the notification that a push is about, as JSON, around data that is JSON already."""
    link = to_json(shown.link or None)
    return f'{{"id":"{push.id}","type":{to_json(shown.type)},"data":{data},"link":{link}}}'


def ids(clear: tuple[UUID, ...] | Literal["all"]) -> list[str] | str:
    """Return what is to be cleared as JSON has it."""
    return clear if clear == "all" else [str(id_) for id_ in clear]


def _ever_less(push: Push) -> Iterator[Parts]:
    """Yield all that a push has, and less from one to the next; the oldest ids are taken to stand first."""
    body, data = (words_of(push.shown), push.shown.data) if push.shown else ("", "{}")
    parts = Parts(body, data, push.clear)
    yield parts
    if data != "{}":
        parts = replace(parts, data="{}")
        yield parts
    while parts.clear and parts.clear != "all":
        parts = replace(parts, clear=parts.clear[len(parts.clear) // 2 + 1 :])
        yield parts


def _cut(parts: Parts, length: int) -> Parts:
    """Return the parts with so many characters of the body, and no part of one that is gone."""
    return replace(parts, body=cut(parts.body, length) + ELLIPSIS)
