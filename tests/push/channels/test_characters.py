"""Truncated text ends with a whole grapheme cluster."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.push.channels.characters import FARTHEST, cut

CHARACTERS = {
    "a flag": "\U0001f1e9\U0001f1f0",
    "a flag made of tags": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "a family": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "a skin tone": "\U0001f44d\U0001f3fd",
    "a keycap": "1\ufe0f\u20e3",
    "a heart": "\u2764\ufe0f",
    "an accent": "e\u0301",
    "two accents": "a\u0323\u0302",
    "a vowel of Devanagari": "\u0915\u093f",
    "Hangul in parts": "\u1112\u1161\u11ab",
    "Hangul and a part": "\ud558\u11ab",
    "a line break": "\r\n",
}


@pytest.mark.parametrize("character", CHARACTERS.values(), ids=CHARACTERS)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_truncation_keeps_or_drops_whole_grapheme_clusters(character: str, count: int) -> None:
    text = "x" + character * count + "y"
    whole = {text[: 1 + number * len(character)] for number in range(count + 1)} | {"", text}
    for length in range(len(text) + 1):
        found = cut(text, length)
        assert found in whole
        assert len(found) <= length < len(found) + len(character) + 1


@given(st.text(), st.integers(0, 50))
def test_truncated_text_is_a_prefix_within_the_limit(text: str, length: int) -> None:
    found = cut(text, length)
    assert text.startswith(found)
    assert len(found) <= length
    assert len(found) <= len(cut(text, length + 1))


@given(st.text(st.characters(codec="ascii", exclude_characters="\r\n")), st.integers(0, 50))
def test_plain_text_is_truncated_at_the_limit(text: str, length: int) -> None:
    assert cut(text, length) == text[:length]


def test_endless_combining_marks_are_truncated() -> None:
    text = "a" + "\u0301" * 1000
    assert unicodedata.combining(text[1])
    assert len(cut(text, 500)) == 500
    assert cut(text, FARTHEST) == ""
