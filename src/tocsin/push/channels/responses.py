"""What the answers of all providers have in common: JSON errors and `Retry-After`."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from tocsin.errors import Malformed
from tocsin.http_client.messages import Answer
from tocsin.push.channels import Delivered, Later, Outcome, Refused, Stopped
from tocsin.strict_json import parse_object

Way = Literal[
    "delivered", "gone", "later", "lane later", "refused", "doubtful", "stopped", "unauthorised", "another token"
]
"""What an answer means, in the tables of the channels."""

MAX_RETRY_AFTER = 24 * 3600.0
"""Maximum seconds that a provider can ask to wait."""

MIN_RETRY_AFTER = 1.0
"""Minimum seconds: `Retry-After: 0` would be retried in a loop."""

IN_BETWEEN = frozenset({407, 408, 421, 425, 451})
"""Statuses of proxies, gateways or the connection, independent of the push. They are retried."""

_REDIRECT, _FAULT, _TROUBLE = 300, 400, 500
_MAX_REASON_LENGTH = 200
_SECONDS = re.compile(r"\d{1,12}", re.ASCII)


def way_of(answers: Mapping[tuple[int, str], Way], statuses: Mapping[int, Way], status: int, said: str) -> Way:
    """Return what an answer means, by status and reason, else by status.

    Of the other statuses, redirects, which are never followed, statuses of proxies and all from 500 on are retried; the
    rest is refused.
    """
    if known := answers.get((status, said)) or statuses.get(status):
        return known
    return "later" if _REDIRECT <= status < _FAULT or status in IN_BETWEEN or status >= _TROUBLE else "refused"


def settled(way: Way, why: str) -> Outcome:
    """Return the outcome of `delivered`, `stopped`, `refused` and `doubtful`."""
    match way:
        case "delivered":
            return Delivered()
        case "stopped":
            return Stopped(why)
        case _:
            return Refused(why, doubtful=way == "doubtful")


def object_of(answer: Answer) -> Mapping[str, Any]:
    """Return the JSON object in an answer; an empty one if there is none."""
    try:
        return parse_object(answer.body)
    except Malformed:
        return {}


def text_of(value: object) -> str:
    """Return a text of a provider as one printable line of limited length; empty if it is not a string."""
    if not isinstance(value, str):
        return ""
    return "".join(sign if sign.isprintable() else " " for sign in value[:_MAX_REASON_LENGTH]).strip()


def reason_of(answer: Answer, said: str = "") -> str:
    """Return why a push failed: the status with the provider's reason, or that no answer came."""
    if answer.status == 0:
        return f"no answer: {text_of(answer.error)}" if answer.error else "no answer"
    return f"{answer.status} {said}" if said else f"{answer.status}"


def pause_of(answer: Answer) -> float | None:
    """Return the seconds of `Retry-After` (a number, or an HTTP date), within bounds; None if there is none."""
    asked = _retry_after(answer)
    return None if asked is None else min(max(asked, MIN_RETRY_AFTER), MAX_RETRY_AFTER)


def lane_later(answer: Answer, why: str, at_least: float) -> Later:
    """Return the outcome of an answer after which the whole lane waits, at least `at_least` seconds."""
    asked = pause_of(answer)
    return Later(why, asked, lane=max(asked or 0.0, at_least))


def _retry_after(answer: Answer) -> float | None:
    value = answer.headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
