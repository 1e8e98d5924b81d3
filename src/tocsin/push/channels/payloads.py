"""Payloads within the limit of the provider: the body is cut first, then data goes, then title and link, then ids."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple
from uuid import UUID

from tocsin.notifications import to_json
from tocsin.push.channels import Push, Shown
from tocsin.push.channels.characters import cut

ELLIPSIS = "…"
"""The end of a body or title that was cut."""

MAX_TITLE_LENGTH = 200
"""Maximum characters of a title, and bytes of a thread or a link beside it, in a push that is too long otherwise."""

MAX_BYTES = 4096
"""Maximum bytes of the payload for a phone."""

LEVELS = {"quiet": "passive", "normal": "active", "urgent": "time-sensitive"}
"""The interruption level on an iPhone, by preset."""


class Parts(NamedTuple):
    """The parts of a push that can be shortened. `data` is JSON; the ids to clear begin with the latest."""

    body: str
    data: str
    clear: tuple[UUID, ...] | Literal["all"]


def fitted(push: Push, build: Callable[[Push, Parts], str], limit: int) -> bytes | None:
    """Return the payload that `build` makes, shortened until it has at most `limit` bytes; None if that is impossible.

    Text from outside must not prevent a push, so text is left out before ids.
    """

    def made(parts: Parts) -> bytes:
        return build(push, parts).encode()

    def longest(shortened: Callable[[int], Parts], length: int) -> bytes | None:
        """Return the payload with as many of `length` characters or ids as fit; None if it is too long without any."""
        fits = bisect_right(range(length), limit, key=lambda length: len(made(shortened(length))))
        return made(shortened(fits - 1)) if fits else None

    whole = Parts(*((words_of(push.shown), push.shown.data) if push.shown else ("", "{}")), push.clear)
    for parts in (whole, whole._replace(data="{}")):
        if len(content := made(parts)) <= limit:
            return content
        if parts.body and (cut_content := longest(partial(_cut, parts), len(parts.body))):
            return cut_content
    if push.shown and (shorter := _shorter(push.shown)) != push.shown:
        return fitted(replace(push, shown=shorter), build, limit)
    wordless, clear = (_cut(whole, 0) if whole.body else whole), whole.clear
    if clear == "all":
        return None
    return longest(lambda length: wordless._replace(data="{}", clear=clear[:length]), len(clear))


def words_of(shown: Shown) -> str:
    """Return the body of a push for phones."""
    return shown.body.replace(" <br> ", "\n")


def apple(push: Push, parts: Parts) -> dict[str, Any]:
    """Return the object `aps` for APNs."""
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
    """Return the JSON of the notification in a push; `data` is JSON."""
    link = to_json(shown.link) if shown.link else "null"
    return f'{{"id":"{push.id}","type":{to_json(shown.type)},"data":{data},"link":{link}}}'


def ids(clear: tuple[UUID, ...] | Literal["all"]) -> list[str] | str:
    """Return the ids to clear as strings, or "all"."""
    return clear if clear == "all" else [str(id_) for id_ in clear]


def _shorter(shown: Shown) -> Shown:
    """Return what a push shows with a title that is cut, or else without a long link and thread."""
    if len(shown.title) > MAX_TITLE_LENGTH:
        return replace(shown, title=cut(shown.title, MAX_TITLE_LENGTH - len(ELLIPSIS)) + ELLIPSIS)
    link, thread = (text if len(text.encode()) <= MAX_TITLE_LENGTH else "" for text in (shown.link, shown.thread))
    return replace(shown, link=link, thread=thread)


def _cut(parts: Parts, length: int) -> Parts:
    """Return the parts with `length` characters of the body, cut between grapheme clusters."""
    return parts._replace(body=cut(parts.body, length) + ELLIPSIS)
