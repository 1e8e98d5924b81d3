"""What all providers' answers have in common: JSON that may be anything, and a time to come back at."""

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
"""What becomes of a push, in the tables of the channels."""

MAX_RETRY_AFTER = 24 * 3600.0
"""Seconds of the longest pause that a provider can ask for."""

MIN_RETRY_AFTER = 1.0
"""Seconds of the shortest one: `Retry-After: 0` would be tried again without end."""

IN_BETWEEN = frozenset({407, 408, 421, 425, 451})
"""Statuses that say nothing of the push: a proxy, a gateway or the connection is at fault, so it is for later."""

_REDIRECT, _FAULT, _TROUBLE = 300, 400, 500
_MAX_REASON_LENGTH = 200
_SECONDS = re.compile(r"\d{1,12}", re.ASCII)


def way_of(answers: Mapping[tuple[int, str], Way], statuses: Mapping[int, Way], status: int, said: str) -> Way:
    """Look an answer up, first with what it said.

    Of the other statuses, a redirect, which is never followed, what stands between us and the service, and all from 500
    on are for later, and the rest is refused.
    """
    if known := answers.get((status, said)) or statuses.get(status):
        return known
    return "later" if _REDIRECT <= status < _FAULT or status in IN_BETWEEN or status >= _TROUBLE else "refused"


def settled(way: Way, why: str) -> Outcome:
    """Return the outcome of what is over; whatever else there is has more to tell, and is made elsewhere."""
    match way:
        case "delivered":
            return Delivered()
        case "stopped":
            return Stopped(why)
        case _:
            return Refused(why, doubtful=way == "doubtful")


def object_of(answer: Answer) -> Mapping[str, Any]:
    """Return the JSON object that an answer has; an empty one where it is empty, cut off or anything else."""
    try:
        return parse_object(answer.body)
    except Malformed:
        return {}


def text_of(value: object) -> str:
    """Return a text of a provider for people to read: one line, not too long; none where it is no text."""
    if not isinstance(value, str):
        return ""
    return "".join(sign if sign.isprintable() else " " for sign in value[:_MAX_REASON_LENGTH]).strip()


def reason_of(answer: Answer, said: str = "") -> str:
    """Return why a push failed: what the provider said, or that nothing came back, or the bare status."""
    if answer.status == 0:
        return f"no answer: {text_of(answer.error)}" if answer.error else "no answer"
    return f"{answer.status} {said}" if said else f"{answer.status}"


def pause_of(answer: Answer) -> float | None:
    """Return the seconds that a provider asked for by `Retry-After` (seconds, or a date of HTTP); None: it did not."""
    asked = _retry_after(answer)
    return None if asked is None else min(max(asked, MIN_RETRY_AFTER), MAX_RETRY_AFTER)


def lane_later(answer: Answer, why: str, at_least: float) -> Later:
    """Return the outcome where a whole lane has to wait, for as long as the provider asked for or at least so long."""
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
