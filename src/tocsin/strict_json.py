"""JSON from outside, read so that no two readers would read it differently, and so that PostgreSQL can store it."""

import json
import math
import re
from typing import Any

from tocsin.errors import Malformed

MAX_DEPTH = 32
"""Levels of nesting that a body may have."""

MAX_INTEGER_LENGTH = 41
"""Characters of the longest integer that is read exactly, its sign included."""

MAX_VALUES_PER_MIB = 250_000
"""Values of a body of up to 1 MiB, and for each MiB more: as many ids of three digits as fit. An array counts twice and
an object fivefold, as their memory does."""

HUGE: int = 10**MAX_INTEGER_LENGTH
"""What a longer integer is read as, or its negative: beyond every range that one could ask for."""

_SHOWN_OF_A_KEY = 40
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_PIECE = re.compile(rb'(?:[^"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?){1,1000}+', re.DOTALL)
"""Up to a thousand strings and what is between them."""

_TOO_DEEP = f"The body has more than {MAX_DEPTH} levels."
_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def parse(body: bytes) -> Any:
    """Read a JSON value.

    Raises `Malformed` where `body` is not JSON in UTF-8 without a byte order mark, or has NaN, an infinity, a number
    beyond a double, a key twice in one object, NUL, a lone surrogate, or more than `MAX_DEPTH` levels.
    """
    _refuse_many(body)
    try:
        value = _decoder.decode(body.decode())
    except UnicodeDecodeError as error:
        raise Malformed(f"The body is not UTF-8: byte {error.start} is wrong.") from None
    except json.JSONDecodeError as error:
        raise Malformed(_in_words(error)) from None
    except RecursionError:
        raise Malformed(_TOO_DEEP) from None
    _refuse_deep(value)
    if _SUSPECT.search(body):
        _refuse_unstorable(value)
    return value


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object. Raises `Malformed` as `parse` does, and where the value is not an object."""
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
    """Return a body without its strings; piece by piece, as each string costs `re.sub` a hundred bytes of memory."""
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
            raise Malformed("The body has NUL in a string." if found[0] == "\0" else "The body has a lone surrogate.")
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
        raise Malformed(f"The body has the key {_first_repeated(pairs)} twice in one object.")
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
    # Python refuses thousands of digits and takes quadratic time; a check of the range refuses these just as well.
    return -HUGE if text.startswith("-") else HUGE


def _float_of(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Malformed("The body has a number that is too large.")
    return value


def _refuse_constant(name: str) -> None:
    raise Malformed(f"The body has {name}, which is not JSON.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object_of, parse_int=_int_of, parse_float=_float_of, parse_constant=_refuse_constant
)
