"""Property tests: no bytes make a parser of outside input fail, and what it accepts is as it promises."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fields import put
from tests.support.naughty import STRINGS
from tests.support.parsers import PARSERS
from tests.support.properties import at_most

ODD = [
    b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\u0000", b"\\ud800", b"1e999", b"-0", b"9" * 50, b"NaN",
    b"[" * 40, b'{"a":' * 40, b'"', b"\\", b"%00", b"\r\n", b"null", b"true", b".", b"-", b":", b"2030-02-30", b"24:00",
]  # fmt: skip
"""Pieces to insert."""

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2**31 - 1, 2**31, 2**53, 10**40, 0.5, -1.5, 1e308])
    | st.text(max_size=20)
    | st.sampled_from([text for text in STRINGS.values() if len(text) < 3_000])
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=8), scalars, max_size=3)


def edited(draw: st.DrawFn, data: bytes) -> bytes:
    """Replace a piece of a sample by an odd one, by another piece of it, or by any bytes."""
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 8)))
    other = draw(st.integers(0, len(data)))
    piece = draw(st.sampled_from(ODD) | st.just(data[other : other + 8]) | st.binary(max_size=4))
    return data[:start] + piece + data[end:]


def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Put any value in a place of a JSON sample, and that under another name, too; edit a sample that is not JSON."""
    try:
        value = json.loads(data)
    except ValueError:
        return edited(draw, data)
    path = draw(st.sampled_from(_places(value)))
    if draw(st.booleans()) and path:
        path = (*path[:-1], draw(st.text(max_size=5)) if isinstance(path[-1], str) else draw(st.integers(0, 5)))
    return json.dumps(put(value, path, draw(values))).encode()


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, each in inner for place in _places(each, (*path, name)))]


@st.composite
def inputs(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(1, 3))):
        data = draw(st.sampled_from([edited, changed]))(draw, data)
    return data


@pytest.mark.parametrize("name", PARSERS)
def test_parser_accepts_its_samples(name: str) -> None:
    for sample in PARSERS[name].samples:
        PARSERS[name].check(sample)


@pytest.mark.parametrize("name", PARSERS)
@at_most(150, soak=20_000)
@given(data=st.data())
def test_parser_handles_changed_samples(name: str, data: st.DataObject) -> None:
    PARSERS[name].check(data.draw(inputs(list(PARSERS[name].samples))))


@pytest.mark.parametrize("name", PARSERS)
@at_most(100, soak=5_000)
@given(data=st.binary(max_size=200))
def test_parser_handles_any_bytes(name: str, data: bytes) -> None:
    PARSERS[name].check(data)
