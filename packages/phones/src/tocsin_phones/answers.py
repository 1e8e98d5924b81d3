"""Programmed answers: what the next pushes get instead of success."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from tocsin_phones.exchange import Fate, Rejection, Reply
from tocsin_phones.strict_json import MalformedJson

PROVIDERS = ("apns", "apns-sandbox", "fcm", "oauth", "browser")
BODIES = {"huge": b"x" * (4 << 20), "empty": b"", "not json": b"<html>Bad gateway</html>"}
FATES = tuple(fate for fate in get_args(Fate) if fate != "answered")
DEFAULT_STATUS = 503
FIRST_FAILURE = 300
"""The lowest status that is not a success."""

_MAX_DELAY_MS = 3_600_000
_FIELDS = {
    "provider", "token", "status", "reason", "answer", "headers", "after_ms", "times", "timestamp", "shown", "every",
}  # fmt: skip


@dataclass(slots=True)
class Demand:
    """What the next pushes of a provider get, to one token or to all, so many `times` or until it is withdrawn.

    Of the pushes that it is for, each `every`th gets it; the others are answered as if it was not there.
    Without `answer`, and with a `status` of success or none, they succeed, late.
    `shown`: the phone shows the push in spite of the answer.
    """

    provider: str
    token: str | None = None
    status: int | None = None
    reason: str = ""
    answer: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    after: float = 0.0
    times: int | None = None
    timestamp: int | None = None
    shown: bool = False
    every: int = 1
    seen: int = 0

    @property
    def fails(self) -> bool:
        """Whether the push does not succeed."""
        return bool(self.answer) or (self.status or 0) >= FIRST_FAILURE

    def is_for(self, provider: str, token: str) -> bool:
        """Return whether a push gets this answer, and count the push if it matches."""
        if provider != self.provider or self.token not in (None, token):
            return False
        self.seen += 1
        return self.seen % self.every == 0

    def reply(self, refusal: Callable[[Rejection], Reply]) -> Reply:
        """Return the reply to a push; `refusal` makes one with the status and reason, in the format of the provider."""
        refused = Rejection(self.status or DEFAULT_STATUS, self.reason)
        if self.timestamp is not None:
            refused.more["timestamp"] = self.timestamp
        worded = refusal(refused)
        headers = worded.headers + self.headers
        if self.answer in BODIES:
            return Reply(refused.status, self.headers, BODIES[self.answer], after=self.after)
        if self.answer == "goaway":
            return Reply(0, body=worded.body if self.reason else b"", fate="goaway", after=self.after)
        return Reply(worded.status, headers, worded.body, _fate(self.answer), self.after)


@dataclass(slots=True)
class Demands:
    """All programmed answers, the oldest first, without those that are used up."""

    waiting: list[Demand] = field(default_factory=list)

    def next_for(self, provider: str, token: str) -> Demand | None:
        """Return the answer for a push, and count it."""
        for demand in self.waiting:
            if demand.is_for(provider, token):
                if demand.times is not None:
                    demand.times -= 1
                    if not demand.times:
                        self.waiting.remove(demand)
                return demand
        return None


def demand_of(value: Mapping[str, Any]) -> Demand:
    """Parse a programmed answer. Raises `MalformedJson` with one sentence."""
    if unknown := set(value) - _FIELDS:
        raise MalformedJson(f"Unknown field {min(unknown)!r}: use {', '.join(sorted(_FIELDS))}.")
    status, reason = _whole(value, "status", 200, 599), _string(value, "reason")
    answer = _one_of(value, "answer", ("", *FATES, *BODIES))
    if reason and status is None and not answer:
        raise MalformedJson("A `reason` needs a `status`.")
    return Demand(
        _one_of(value, "provider", PROVIDERS),
        _string(value, "token") or None,
        status,
        reason,
        answer,
        _headers(value.get("headers", {})),
        (_whole(value, "after_ms", 0, _MAX_DELAY_MS) or 0) / 1000,
        _whole(value, "times", 1, math.inf),
        _whole(value, "timestamp", 0, math.inf),
        _flag(value, "shown"),
        _whole(value, "every", 1, math.inf) or 1,
    )


def _fate(answer: str) -> Fate:
    for fate in get_args(Fate):
        if fate == answer:
            found: Fate = fate
            return found
    return "answered"


def _string(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name, "")
    if not isinstance(text, str):
        raise MalformedJson(f"`{name}` must be a string.")
    return text


def _one_of(value: Mapping[str, Any], name: str, words: tuple[str, ...]) -> str:
    word = _string(value, name)
    if word not in words:
        raise MalformedJson(f"`{name}` must be one of {', '.join(filter(None, words))}.")
    return word


def _flag(value: Mapping[str, Any], name: str) -> bool:
    flag = value.get(name, False)
    if not isinstance(flag, bool):
        raise MalformedJson(f"`{name}` must be true or false.")
    return flag


def _whole(value: Mapping[str, Any], name: str, least: int, most: float) -> int | None:
    number = value.get(name)
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise MalformedJson(f"`{name}` must be a whole number" + (f", {least} to {most}." if most < math.inf else "."))
    return number


def _headers(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise MalformedJson("`headers` must be an object of strings.")
    if any(not (name + text).isprintable() or not name for name, text in value.items()):
        raise MalformedJson("`headers` has an invalid name or value.")
    return tuple((name.lower(), text) for name, text in value.items())
