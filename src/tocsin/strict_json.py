"""Strict parsing of JSON from clients: rejects what parsers interpret differently and what PostgreSQL cannot store."""

import json
import math
import re
from typing import Any

from tocsin.errors import Malformed

MAX_DEPTH = 32
"""Maximum levels of nesting."""

MAX_INTEGER_LENGTH = 41
"""Maximum characters of an integer that is parsed exactly, including its sign."""

MAX_VALUES_PER_MIB = 250_000
"""Maximum values of a body per MiB, rounded up: as many as ids of three digits fit into it. An array counts as two
values and an object as five, because of their memory."""

HUGE: int = 10**MAX_INTEGER_LENGTH
"""The value of longer integers, with their sign: outside the range of every field."""

_SHOWN_OF_A_KEY = 40
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_PIECE = re.compile(rb'(?:[^"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?){1,1000}+', re.DOTALL)
"""Matches up to a thousand strings and the text between them."""

_TOO_DEEP = f"The body has more than {MAX_DEPTH} levels."
_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def parse(body: bytes) -> Any:
    """Parse a JSON value.

    Raises `Malformed` if `body` is not JSON in UTF-8 without a byte order mark, or contains NaN, an infinity, a number
    that exceeds a double, a duplicate key in an object, NUL, a lone surrogate, too many values or too many levels.
    """
    _refuse_many(body)
    try:
        value = _decoder.decode(body.decode())
    except UnicodeDecodeError as error:
        raise Malformed(f"The body is not UTF-8: byte {error.start} is invalid.") from None
    except json.JSONDecodeError as error:
        raise Malformed(_in_words(error)) from None
    except RecursionError:
        raise Malformed(_TOO_DEEP) from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _refuse_deep(value)
    if _SUSPECT.search(body):
        _refuse_unstorable(value)
    return value


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises `Malformed` like `parse`, and if the value is not an object."""
    value = parse(body)
    if not isinstance(value, dict):
        raise Malformed("The body must be a JSON object.")
    return value


def _refuse_many(body: bytes) -> None:
    most = MAX_VALUES_PER_MIB * -(-len(body) // 2**20)
    if len(body) <= most or _values_of(body) <= most or _values_of(_without_strings(body)) <= most:
        return
    raise Malformed(f"The body has more than {most} values.")


def _without_strings(body: bytes) -> bytes:
    """Return the body without its strings, in pieces: `re.sub` needs a hundred bytes of memory per string."""
    return b"".join(_STRING.sub(b"", piece[0]) for piece in _PIECE.finditer(body))


def _values_of(body: bytes) -> int:
    return body.count(b",") + 2 * body.count(b"[") + 5 * body.count(b"{")


def _refuse_deep(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if (kind := type(inner)) is dict or kind is list
        ]
        if not level:
            return
    raise Malformed(_TOO_DEEP)


def _refuse_unstorable(value: Any) -> None:
    if isinstance(value, str):
        if found := _UNSTORABLE.search(value):
            raise Malformed(
                "The body contains NUL in a string." if found[0] == "\0" else "The body contains a lone surrogate."
            )
    elif isinstance(value, dict):
        for key, inner in value.items():
            _refuse_unstorable(key)
            _refuse_unstorable(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_unstorable(inner)


def _in_words(error: json.JSONDecodeError) -> str:
    field_error = error.msg[0].lower() + error.msg[1:].removesuffix(" at")
    return f"The body is not valid JSON: {field_error} at line {error.lineno}, column {error.colno}."


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed(f"The body contains the key {_first_repeated(pairs)} twice in one object.")
    return found


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return json.dumps(key[:_SHOWN_OF_A_KEY])
        seen.add(key)
    raise AssertionError(pairs)


def _int_of(text: str) -> int:
    if len(text) <= MAX_INTEGER_LENGTH:
        return int(text)
    # Python rejects thousands of digits and takes quadratic time. Fields reject this value: it is out of their range.
    return -HUGE if text.startswith("-") else HUGE


def _float_of(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Malformed("The body contains a number that is too large.")
    return value


def _refuse_constant(name: str) -> None:
    raise Malformed(f"The body contains {name}, which is not JSON.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object_of, parse_int=_int_of, parse_float=_float_of, parse_constant=_refuse_constant
)
