"""JSON as the push services parse it: UTF-8, no duplicate keys, no NaN."""

import json
from typing import Any


class MalformedJson(Exception):  # noqa: N818 - the name of the answer
    """A body is invalid; the message is one sentence."""


def parse(body: bytes) -> Any:
    """Return the value of a body; raises `MalformedJson`."""
    try:
        return json.loads(body.decode(), object_pairs_hook=_object_of, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise MalformedJson("The body is not valid JSON.") from None


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the object of a body; raises `MalformedJson`."""
    value = parse(body)
    if not isinstance(value, dict):
        raise MalformedJson("The body is not a JSON object.")
    return value


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(constant)
