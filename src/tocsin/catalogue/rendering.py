"""Rendering: plain text and HTML from one sentence, in which only its own marks become tags."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any, NamedTuple

MISFITS = (LookupError, TypeError, AttributeError)
"""What a speaker raises for the data of an event that does not fit its kind, because the kind was changed since."""

_TAG = re.compile(r"</?(?:p|strong|em)>")
_WORD = re.compile(r"\{([A-Za-z]\w*(?:\.[A-Za-z]\w*)?)\}")
_LINE_BREAK = re.compile(r"\r\n?|\n")
_WHITE_SPACE = re.compile(r"\s")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
# The blocks of Unicode that are written from right to left, and the two marks that count as such.
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\u200f\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
_FIRST_STRONG_ISOLATE, _POP_DIRECTIONAL_ISOLATE = "\u2068", "\u2069"


@dataclass(frozen=True, slots=True)
class Words:
    """The text of a notification in one language: plain, and the same as safe HTML."""

    message: str
    message_formatted: str


class Word(NamedTuple):
    """The value of a `{word}`, as plain text and as HTML."""

    plain: str
    html: str


Speaker = Callable[[Mapping[str, Any], Mapping[str, Any]], Word]
"""Returns a word from an event's `data` and `params`."""

_STRONG = Word("", "<strong>")
_STRONG_END = Word("", "</strong>")


@dataclass(frozen=True, slots=True)
class Wording:
    """One kind in one language. `quote` returns the text after the sentence, if there is one.

    If `sender` returns a name, the title is `signed` with `{title}` and `{sender}` filled in.
    """

    title: str
    sentence: "Sentence"
    speakers: Mapping[str, Speaker]
    quote: Speaker | None = None
    sender: Speaker | None = None
    signed: str = ""

    def title_of(self, data: Mapping[str, Any], params: Mapping[str, Any]) -> str:
        """Return the title, with the name of the sender if there is one."""
        try:
            sender = self.sender(data, params) if self.sender else Word("", "")
        except MISFITS:
            return self.title
        if not sender.plain:
            return self.title
        name = isolated(sender).plain if is_right_to_left(sender.plain) else sender.plain
        return self.signed.replace("{title}", self.title).replace("{sender}", name)

    def render(self, data: Mapping[str, Any], params: Mapping[str, Any]) -> Words:
        """Fill an event's words into the sentence. Raises `LookupError` if one of them is missing or does not fit."""
        try:
            words = {name: speak(data, params) for name, speak in self.speakers.items()}
            quoted = self.quote(data, params) if self.quote else Word("", "")
        except MISFITS as error:
            raise LookupError(f"the event does not fit its kind: {error!r}") from error
        plain, html = self.sentence.render(words, apart=True)
        message, formatted = plain, f"<p>{html}</p>"
        if quoted.plain.strip():
            message += f" <br> {quoted.plain}"
            formatted += f"<br><p><em>{quoted.html}</em></p>"
        return Words(message, formatted)


class Sentence:
    """A parsed sentence with `**bold**` marks and `{words}`; `words` are their names, each once.

    It is split at `**` before words are filled in, so that no word can open or close a tag. Raises `ValueError` for an
    odd number of `**` and for a brace without a match.
    """

    __slots__ = ("_is_mixed", "_is_rtl", "_pieces", "words")

    def __init__(self, says: str) -> None:
        runs = says.split("**")
        if len(runs) % 2 == 0:
            raise ValueError("has an odd number of `**`")
        self._pieces: tuple[Word | str, ...] = tuple(
            piece for position, run in enumerate(runs) for piece in _pieces(run, bold=position % 2 == 1)
        )
        self.words = tuple(dict.fromkeys(piece for piece in self._pieces if isinstance(piece, str)))
        own = "".join(piece.plain for piece in self._pieces if isinstance(piece, Word))
        self._is_rtl = is_right_to_left(own)
        self._is_mixed = bool(own) or len(self.words) > 1

    @property
    def is_one_word(self) -> bool:
        """Whether it is one word and nothing else, as it is rendered."""
        return self._pieces == self.words and len(self.words) == 1

    def render(self, words: Mapping[str, Word], *, apart: bool = False) -> Word:
        """Join the same pieces twice, once per voice; `apart`: no word changes the direction of what stands around it.

        Only words that need it are set apart: those written from right to left, and all in a sentence that is. A word
        that is the whole sentence stays as it is.
        """
        if apart and self._is_mixed:
            words = {
                name: isolated(word) if self._is_rtl or is_right_to_left(word.plain) else word
                for name, word in words.items()
            }
        said = [words[piece] if isinstance(piece, str) else piece for piece in self._pieces]
        return Word("".join([word.plain for word in said]), "".join([word.html for word in said]))


def spoken(value: Any) -> Word:
    """Return a value as a word in a line: a list joined by commas, null as an empty text."""
    if not isinstance(value, str):
        value = ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
    value = one_line(value)
    return Word(value, escape(value, quote=False))


def spoken_text(value: str | None) -> Word:
    """Return a text of several lines as a word. Line breaks are `<br>` in HTML."""
    value = value or ""
    return Word(value, _LINE_BREAK.sub("<br>", escape(value, quote=False)))


def one_line(text: str) -> str:
    """Return a text with control characters replaced by spaces, and without those that set directions."""
    if text.isascii() and text.isprintable():
        return text
    return _DIRECTION.sub("", _CONTROL.sub(" ", text))


def is_right_to_left(text: str) -> bool:
    """Return whether any of a text is written from right to left."""
    return not text.isascii() and _RIGHT_TO_LEFT.search(text) is not None


def isolated(word: Word) -> Word:
    """Return a word with its direction isolated by Unicode's FSI and PDI, in each of its lines."""
    start, end = _FIRST_STRONG_ISOLATE, _POP_DIRECTIONAL_ISOLATE
    plain, html = (_DIRECTION.sub("", voice) for voice in word)
    plain = _LINE_BREAK.sub(lambda line_break: f"{end}{line_break[0]}{start}", plain)
    return Word(f"{start}{plain}{end}", f"{start}{html.replace('<br>', f'{end}<br>{start}')}{end}")


def readable(code: str, of: str) -> str:
    """Make a code readable: `the_early_bird` is `The Early Bird`, and of `level`, `level_12` is `12`.

    A text with white space is returned unchanged.
    """
    if _WHITE_SPACE.search(code):
        return code
    parts = [part for part in code.split("_") if part]
    if len(parts) > 1 and parts[0].lower() == of:
        del parts[0]
    return " ".join(part[0].upper() + part[1:] for part in parts) or code


def has_only_allowed_tags(html: str) -> bool:
    """Return whether HTML has only the tags `p`, `strong`, `em` and `br`, properly nested and closed."""
    tags = _TAG.findall(html)
    return html.count("<") == len(tags) + html.count("<br>") and _are_nested("".join(tags))


@lru_cache(maxsize=100)
def _are_nested(tags: str) -> bool:
    """Return whether these tags, without text, are properly nested and closed. Texts use few patterns."""
    is_open: list[str] = []
    for tag in tags[1:-1].split("><") if tags else ():
        if not tag.startswith("/"):
            is_open.append(tag)
        elif not is_open or is_open.pop() != tag[1:]:
            return False
    return not is_open


def _pieces(run: str, *, bold: bool) -> list[Word | str]:
    parts = _WORD.split(run)  # with one group in the pattern, text and names of words alternate
    if any("{" in text or "}" in text for text in parts[::2]):
        raise ValueError("has a `{` or `}` that has no match")
    pieces = [part if turn % 2 else Word(part, escape(part, quote=False)) for turn, part in enumerate(parts) if part]
    return [_STRONG, *pieces, _STRONG_END] if bold else pieces
