"""One sentence, two voices: plain text and HTML come from one template, and only our own marks become tags."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

_TAG = re.compile(r"<(/?)(p|strong|em)>")
_WORD = re.compile(r"\{([A-Za-z]\w*(?:\.[A-Za-z]\w*)?)\}")
_LINE_BREAK = re.compile(r"\r\n?|\n")
_WHITE_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Words:
    """A notification in one language: a short title, plain text, and the same as HTML that is safe in any page."""

    title: str
    message: str
    message_formatted: str


class Word(NamedTuple):
    """What stands for one `{word}`, as plain text and as HTML."""

    plain: str
    html: str


Speaker = Callable[[Mapping[str, Any], Mapping[str, Any]], Word]
"""Finds a word in an event's `data` and `params`."""

_STRONG = Word("", "<strong>")
_STRONG_END = Word("", "</strong>")


@dataclass(frozen=True, slots=True)
class Wording:
    """One kind in one language; `quote` speaks what is shown after the sentence, where there is something."""

    title: str
    sentence: "Sentence"
    speakers: Mapping[str, Speaker]
    quote: Speaker | None = None

    def render(self, data: Mapping[str, Any], params: Mapping[str, Any]) -> Words:
        """Put an event's words into the sentence; raises `LookupError` where one of them is not there."""
        plain, html = self.sentence.render({name: speak(data, params) for name, speak in self.speakers.items()})
        message, formatted = plain, f"<p>{html}</p>"
        if self.quote is not None:
            quoted = self.quote(data, params)
            if quoted.plain.strip():
                message += f" <br> {quoted.plain}"
                formatted += f"<br><p><em>{quoted.html}</em></p>"
        return Words(self.title, message, formatted)


class Sentence:
    """A sentence with `**bold**` marks and `{words}`, parsed once; `words` are their names, each once.

    It is split at `**` before any word goes in, so that no word can open or close a tag. Raises `ValueError` for an
    odd number of `**` and for a brace that belongs to no word.
    """

    __slots__ = ("_pieces", "words")

    def __init__(self, says: str) -> None:
        runs = says.split("**")
        if len(runs) % 2 == 0:
            raise ValueError("has an odd number of `**`")
        self._pieces: tuple[Word | str, ...] = tuple(
            piece for position, run in enumerate(runs) for piece in _pieces(run, bold=position % 2 == 1)
        )
        self.words = tuple(dict.fromkeys(piece for piece in self._pieces if isinstance(piece, str)))

    def render(self, words: Mapping[str, Word]) -> Word:
        """Join the same pieces twice, once per voice."""
        said = [words[piece] if isinstance(piece, str) else piece for piece in self._pieces]
        return Word("".join([word.plain for word in said]), "".join([word.html for word in said]))


def spoken(value: Any) -> Word:
    """Return a value as a word in a line: a list joined by commas, null as nothing."""
    if not isinstance(value, str):
        value = ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
    return Word(value, escape(value, quote=False))


def spoken_text(value: str | None) -> Word:
    """Return a text of several lines as a word; a line break is `<br>` in HTML."""
    value = value or ""
    return Word(value, _LINE_BREAK.sub("<br>", escape(value, quote=False)))


def readable(code: str, of: str) -> str:
    """Make a coded name readable: `the_early_bird` is `The Early Bird`, and of `level`, `level_12` is `12`.

    What has white space in it was written for people, and stays as it is.
    """
    if _WHITE_SPACE.search(code):
        return code
    parts = [part for part in code.split("_") if part]
    if len(parts) > 1 and parts[0].lower() == of:
        del parts[0]
    return " ".join(part[0].upper() + part[1:] for part in parts) or code


def has_only_our_marks(html: str) -> bool:
    """Tell whether HTML has no tags but `p`, `strong`, `em` and `br`, each closed in its place."""
    is_open: list[str] = []
    for slash, name in _TAG.findall(html):
        if not slash:
            is_open.append(name)
        elif not is_open or is_open.pop() != name:
            return False
    return not is_open and "<" not in _TAG.sub("", html).replace("<br>", "")


def _pieces(run: str, *, bold: bool) -> list[Word | str]:
    parts = _WORD.split(run)  # with one group in the pattern, text and names of words take turns
    if any("{" in text or "}" in text for text in parts[::2]):
        raise ValueError("has a `{` or `}` that belongs to no word")
    pieces = [part if turn % 2 else spoken(part) for turn, part in enumerate(parts) if part]
    return [_STRONG, *pieces, _STRONG_END] if bold else pieces
