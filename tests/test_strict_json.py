import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cost import cost
from tocsin.errors import Malformed
from tocsin.strict_json import HUGE, MAX_DEPTH, parse, parse_object

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(1 - 10**40, 10**41 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=60,
)


@given(VALUES, st.booleans())
def test_json_output_parses_back(value: Any, ascii_: bool) -> None:  # noqa: FBT001 - hypothesis decides
    read = parse(json.dumps(value, ensure_ascii=ascii_).encode())
    assert repr(read) == repr(value)


@given(st.binary(max_size=200) | st.text('[]{}"\\u0d8ce,:1-.N \n', max_size=40).map(str.encode))
def test_strict_json_agrees_with_json_or_is_malformed(body: bytes) -> None:
    try:
        value = parse(body)
    except Malformed:
        return
    assert value == json.loads(body.decode())


@given(st.lists(st.sampled_from([b'{"a":%s}', b"[%s]", b'{"b":1,"c":[%s]}']), max_size=15))
def test_duplicate_key_is_detected_at_any_depth(wrappings: list[bytes]) -> None:
    body = b'{"a":1,"x":[],"\\u0061":2}'
    for wrapping in wrappings:
        body = wrapping % body
    with pytest.raises(Malformed, match='the key "a" twice'):
        parse(body)


def test_same_key_in_two_objects_is_accepted() -> None:
    assert parse(b'[{"a":{"a":1}},{"a":2}]') == [{"a": {"a": 1}}, {"a": 2}]


@given(st.lists(st.booleans(), min_size=MAX_DEPTH, max_size=MAX_DEPTH), st.integers(0, 3))
def test_32_levels_are_accepted_and_33_are_rejected(arrays: list[bool], siblings: int) -> None:
    body = b"7"
    for array in arrays:
        more = b"[]," * siblings if array else b""
        body = b"[%s%s]" % (more if body != b"7" else b"", body) if array else b'{"[{":%s}' % body
    parse(body)
    for deeper in (b"[%s]" % body, b'{"a":%s}' % body):
        with pytest.raises(Malformed, match="more than 32 levels"):
            parse(deeper)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_depth_is_counted_exactly(opening: bytes, closing: bytes) -> None:
    parse(opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH)
    with pytest.raises(Malformed, match="more than 32 levels"):
        parse(opening * (MAX_DEPTH + 1) + b"1" + closing * (MAX_DEPTH + 1))


@pytest.mark.parametrize("innermost", [b"[]", b"{}"])
def test_empty_array_or_object_counts_as_a_level(innermost: bytes) -> None:
    around = MAX_DEPTH - 1
    parse(b"[" * around + innermost + b"]" * around)
    with pytest.raises(Malformed, match="more than 32 levels"):
        parse(b"[" * MAX_DEPTH + innermost + b"]" * MAX_DEPTH)


def test_sibling_objects_do_not_add_depth() -> None:
    assert len(parse(b"[" + b'{"a":[]},' * 10_000 + b"{}]")) == 10_001


def test_brackets_in_strings_do_not_add_depth() -> None:
    text = '["[{' * 100 + "\\"
    assert parse(json.dumps([text, text]).encode()) == [text, text]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100,
        b"[" * 100 + b"]" * 100,
        b"[" * 500_000,
        b"[" * 500_000 + b"]" * 500_000,
        b'{"a":' * 200_000,
        b'{"a":[' * 150_000,
        b'["a",' * 200_000,
        b'"' + b'\\"' * 500_000 + b"[" * 40,
        b'"a" ' * 200_000 + b"[" * 40,
        b"]" * 500_000 + b"[" * 500_000,
        b"[}" * 40,
    ],
    ids=lambda body: f"{body[:8]!r} of {len(body)}",
)
def test_extreme_nesting_is_rejected_quickly(body: bytes) -> None:
    def refused() -> None:
        with pytest.raises(Malformed):
            parse(body)

    flat = b"[" + b'"0123456789",' * (len(body) // 13) + b"0]"
    assert cost(refused) < 20 * cost(lambda: parse(flat)) + 0.01


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"nul",
        b"{",
        b"[1,]",
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":1} x',
        b"{}{}",
        b"01",
        b"+1",
        b".5",
        b"1.",
        b"0x1",
        b"[1 2]",
        b'"a\nb"',
        b'"a\0b"',
        b'"\\x41"',
        b'"\\u00g0"',
        b'"open',
        b"// no\n1",
        "\u00a01".encode(),
        "٤".encode(),
        b'{"x": 1, /* */ "y": 2}',
    ],
)
def test_invalid_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match=r"^The body is not valid JSON: .* at line \d, column \d+\.$"):
        parse(body)


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_invalid_numbers_are_malformed(name: str) -> None:
    with pytest.raises(Malformed, match=f"contains {name}"):
        parse(f'{{"a":[1,{name}]}}'.encode())


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400 + ".0", "1e" + "9" * 5000])
def test_float_out_of_range_is_malformed(number: str) -> None:
    with pytest.raises(Malformed, match="too large"):
        parse(number.encode())


@pytest.mark.parametrize("digits", [42, 4300, 4301, 1_000_000])
def test_integer_of_any_length_is_parsed_quickly(digits: int) -> None:
    assert parse(b"9" * digits) == HUGE
    assert parse(b"-" + b"9" * digits) == -HUGE
    assert type(parse(b"1" * digits)) is int
    text = b'"' + b"9" * digits + b'"'
    assert cost(lambda: parse(b"9" * digits)) < 50 * cost(lambda: parse(text)) + 0.01


def test_integers_up_to_41_digits_are_exact() -> None:
    assert parse(b"9" * 41) == 10**41 - 1 < HUGE
    assert parse(b"-" + b"9" * 40) == 1 - 10**40 > -HUGE


def test_booleans_and_floats_keep_their_types() -> None:
    assert [type(value) for value in parse(b"[true, 1, 1.0, 1e2, null]")] == [bool, int, float, float, type(None)]


@pytest.mark.parametrize("body", [b'"\\u0000"', b'{"a":["x\\u0000y"]}', b'{"\\u0000":1}', b'{"a":{"b\\u0000":[]}}'])
def test_nul_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match="NUL"):
        parse(body)


@pytest.mark.parametrize(
    "body",
    [
        b'"\\ud800"',
        b'"\\uDFFF"',
        b'"\\udc00\\ud800"',
        b'"\\ud83d\\ud83d\\ude00"',
        b'{"\\udabc":1}',
        b'[{"a":["\\ud83d x"]}]',
        b'"\\ud83d\\\\ude00"',
    ],
)
def test_lone_surrogate_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match="surrogate"):
        parse(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"\\\\u0000"', "\\u0000"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'"\\u0001\\u00e6"', "\x01æ"),
        (b'{"\\uD83D\\uDE00":"\\\\\\u0041"}', {"😀": "\\A"}),
    ],
)
def test_unusual_but_valid_escapes_are_accepted(body: bytes, value: Any) -> None:
    assert parse(body) == value


@pytest.mark.parametrize(
    "body",
    [
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        '{"a": "æ"}'.encode("latin-1"),
        '{"a": 1}'.encode("utf-16"),
    ],
)
def test_invalid_utf8_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match="not UTF-8"):
        parse(body)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-32-le"])
def test_byte_order_mark_and_other_encodings_are_rejected(encoding: str) -> None:
    with pytest.raises(Malformed):
        parse('{"a": 1}'.encode(encoding))


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null", b"true"])
def test_parse_object_requires_an_object(body: bytes) -> None:
    with pytest.raises(Malformed, match="must be a JSON object"):
        parse_object(body)


def test_parse_object_keeps_the_key_order() -> None:
    assert list(parse_object(b' {"b": 1, "a": 2}\n')) == ["b", "a"]


def test_error_message_is_ascii_for_any_key() -> None:
    with pytest.raises(Malformed) as caught:
        parse(b'{"\\ud800":1,"\\ud800":2}')
    assert str(caught.value).isascii()


def test_body_full_of_ids_is_parsed() -> None:
    ids = list(range(1_000, 160_000))
    body = json.dumps({"ids": ids}, separators=(",", ":")).encode()
    assert 1_000_000 < len(body) < 2**20
    assert parse(body) == {"ids": ids}
