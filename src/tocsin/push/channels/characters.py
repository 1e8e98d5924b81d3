"""Cutting text between grapheme clusters (Unicode's annex 29, simplified).

A flag, a family, a keycap, a letter with its accents or a syllable of Hangul has several code points and is one
cluster.
"""

import unicodedata

FARTHEST = 64
"""Maximum code points to look back for a boundary; no real cluster is longer."""

_JOINER, _NON_JOINER = "\u200d", "\u200c"


def cut(text: str, length: int) -> str:
    """Return the beginning of a text, at most `length` code points, without a part of a cluster at its end."""
    if length >= len(text):
        return text
    for end in range(length, max(length - FARTHEST, 0), -1):
        if not _goes_on(text, end):
            return text[:end]
    return text[: 0 if length <= FARTHEST else length]


def _goes_on(text: str, at: int) -> bool:
    """Return whether the code point at a position belongs to the cluster of the one before it."""
    before, after = text[at - 1], text[at]
    if before.isascii() and after.isascii():
        return before == "\r" and after == "\n"
    if before == _JOINER or _extends(after):
        return True
    if _is_flag(after):
        return _flags_before(text, at) % 2 == 1
    return (_hangul(before), _hangul(after)) in _SYLLABLES


def _extends(sign: str) -> bool:
    """Return whether a code point modifies the one before it: accents, selectors, skin tones, tags, joiners."""
    return (
        unicodedata.category(sign) in {"Mn", "Mc", "Me"}
        or sign in {_JOINER, _NON_JOINER}
        or "\U0001f3fb" <= sign <= "\U0001f3ff"
        or "\U000e0020" <= sign <= "\U000e007f"
    )


def _is_flag(sign: str) -> bool:
    """Return whether a code point is one of the two regional indicators of a flag."""
    return "\U0001f1e6" <= sign <= "\U0001f1ff"


def _flags_before(text: str, at: int) -> int:
    """Return how many regional indicators precede a position."""
    count = 0
    while count < min(at, FARTHEST) and _is_flag(text[at - 1 - count]):
        count += 1
    return count


_SYLLABLES = frozenset(
    [*(("L", after) for after in ("L", "V", "LV", "LVT")), ("LV", "V"), ("V", "V")]
    + [(before, "T") for before in ("LV", "V", "LVT", "T")]
)


def _hangul(sign: str) -> str:
    """Return which part of a Hangul syllable a code point is; empty for all others."""
    if "\uac00" <= sign <= "\ud7a3":
        return "LV" if (ord(sign) - 0xAC00) % 28 == 0 else "LVT"
    for part, ranges in _JAMO.items():
        if any(first <= sign <= last for first, last in ranges):
            return part
    return ""


_JAMO = {
    "L": (("\u1100", "\u115f"), ("\ua960", "\ua97c")),
    "V": (("\u1160", "\u11a7"), ("\ud7b0", "\ud7c6")),
    "T": (("\u11a8", "\u11ff"), ("\ud7cb", "\ud7fb")),
}
