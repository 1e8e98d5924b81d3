"""The languages: the texts of kinds in each; what one leaves out comes from its fallback languages."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tocsin.catalogue.entries import ENGLISH, NAMES, KindEntry, Raw, Raws, WordingEntry, advice, parse
from tocsin.catalogue.rendering import Sentence, Wording
from tocsin.catalogue.shapes import Labels, Shape
from tocsin.catalogue.vocabulary import Vocabulary

PHRASES: Mapping[str, Sequence[str]] = {
    "erased": (),
    "pushed": (),
    "bundled": ("{count}",),
    "tested": (),
    "signed": ("{title}", "{sender}"),
}
"""The fixed phrases, each with its words: for erased text, for pushes without content, for bundled pushes, for test
pushes and titles."""

_Text = TypeVar("_Text")


@dataclass(frozen=True, slots=True)
class Languages:
    """All languages: wordings by language and kind, with the entries they are from, labels and names by language."""

    wordings_of: Mapping[str, Mapping[str, tuple[Raw, WordingEntry]]]
    labels: Mapping[str, Labels]
    groups: Mapping[str, Mapping[str, str]]
    phrases: Mapping[str, Mapping[str, str]]

    def wordings(self, raw: Raw, entry: KindEntry, vocabulary: Vocabulary, lost: Collection[str]) -> dict[str, Wording]:
        """Return the wording of a kind in each language; empty after recording an error of any sentence."""
        before = len(raw.findings)
        sentences = {"": sentence_of(raw, "says", entry.says, vocabulary, lost)}
        titles = {"": entry.title}
        _check_marks(raw, "title", entry.title)
        for language, kinds in self.wordings_of.items():
            of, wording = kinds.get(raw.name, (raw, WordingEntry()))
            if wording.title:
                _check_marks(of, "title", wording.title)
                titles[language] = wording.title
            if wording.says:
                sentences[language] = sentence_of(of, "says", wording.says, vocabulary, lost)
        if lost or len(raw.findings) > before or (entry.sender and entry.sender not in vocabulary.data):
            return {}
        quote = vocabulary.quoter(entry.quotes) if entry.quotes in vocabulary.params else None
        found = {}
        for language, labels in self.labels.items():
            sentence = _nearest(language, sentences)
            speakers = {word: vocabulary.speaker(word, labels) for word in sentence.words}
            sender = vocabulary.speaker(entry.sender, labels) if entry.sender else None
            signed = self.phrases[language].get("signed", "")
            found[language] = Wording(_nearest(language, titles), sentence, speakers, quote, sender, signed)
        return found


def languages_of(raws: Raws, shapes: Mapping[str, Shape | None]) -> Languages:
    """Make the languages from all files; invalid entries are recorded and left out."""
    known = {"groups": _groups_of(raws), "phrases": PHRASES}
    for names in raws.names.values():
        for table, raw in names.items():
            _check_names(raw, known[table])
            if table == "phrases":
                for name, words in PHRASES.items():
                    _check_marks(raw, name, raw.values.get(name), words)
    labels = _labels_of(raws, shapes)
    groups, phrases = (
        {language: _nearest_texts(raws.names, language, table) for language in labels} for table in NAMES
    )
    return Languages(_wordings_of(raws), labels, groups, phrases)


def fallbacks_of(language: str) -> Iterator[str]:
    """Yield a language and its fallback languages: `pt-BR`, `pt`, `en`."""
    while language:
        yield language
        language = language.rpartition("-")[0]
    yield ENGLISH


def sentence_of(raw: Raw, key: str, says: str, vocabulary: Vocabulary, lost: Collection[str]) -> Sentence:
    """Parse a sentence of an entry, and record its errors, except for words whose fields are `lost`."""
    try:
        sentence = Sentence(says)
    except ValueError as error:
        raw.field_error(key, f"`{key}` {error}", "write `**bold**` and `{word}`, both closed")
        return Sentence("")
    known = vocabulary.words()
    for word in sentence.words:
        if word not in known and word.partition(".")[0] not in lost:
            raw.field_error(key, f"`{key}` names {{{word}}}, a word that it does not have", advice(word, known))
    return sentence


def _nearest(language: str, texts: Mapping[str, _Text]) -> _Text:
    return next((texts[near] for near in fallbacks_of(language) if near in texts), texts[""])


def _wordings_of(raws: Raws) -> dict[str, dict[str, tuple[Raw, WordingEntry]]]:
    found: dict[str, dict[str, tuple[Raw, WordingEntry]]] = {}
    for language, wordings in raws.wordings.items():
        kinds = found.setdefault(language, {})
        for name, raw in wordings.items():
            wording = parse(raw, WordingEntry)
            if name not in raws.kinds:
                raw.field_error("", "is not a kind", advice(name, raws.kinds))
            elif wording is not None:
                kinds[name] = (raw, wording)
    return found


def _labels_of(raws: Raws, shapes: Mapping[str, Shape | None]) -> dict[str, Labels]:
    coded = [f"{name}.{key}" for name, shape in shapes.items() if shape for key in shape.coded]
    for fields in raws.labels.values():
        for name, raw in fields.items():
            _check_labels(name, raw, coded, shapes)
    return {
        language: {name: _nearest_texts(raws.labels, language, name) for name in coded}
        for language in {ENGLISH: None, **dict.fromkeys(raws.labels)}
    }


def _nearest_texts(tables: Mapping[str, Mapping[str, Raw]], language: str, name: str) -> dict[str, str]:
    """Return the texts of a table in a language; missing texts come from its fallback languages."""
    found: dict[str, str] = {}
    for near in reversed([*fallbacks_of(language)]):
        raw = tables.get(near, {}).get(name)
        found.update(raw.values if raw else {})
    return found


def _groups_of(raws: Raws) -> list[str]:
    groups = [raw.values.get("group") for raw in raws.kinds.values()]
    return list(dict.fromkeys(group for group in groups if isinstance(group, str)))


def _check_names(raw: Raw, known: Collection[str]) -> None:
    for name in raw.values:
        if name not in known:
            raw.field_error(name, f"`{name}` is not a known name", advice(name, known))
    _check_texts(raw)


def _check_texts(raw: Raw) -> None:
    for name, text in raw.values.items():
        if not isinstance(text, str) or not text:
            raw.field_error(name, f"`{name}` is {text!r}", "write a text in quotes")


def _check_marks(raw: Raw, key: str, text: Any, words: Sequence[str] = ()) -> None:
    """Record the marks of sentences in a text that shows them as they are, except these words in braces."""
    for word in words:
        text = text.replace(word, "") if isinstance(text, str) else text
    if isinstance(text, str) and any(mark in text for mark in ("{", "}", "**")):
        instead = f"write no others than {' and '.join(f'`{word}`' for word in words)}" if words else "leave them out"
        raw.field_error(key, f"`{key}` has braces or `**` that would be shown as they are", instead)


def _check_labels(name: str, raw: Raw, coded: Collection[str], shapes: Mapping[str, Shape | None]) -> None:
    is_lost = shapes.get(name.partition(".")[0], True) is None
    if name not in coded and not is_lost:
        raw.field_error("", "has labels for a field that is not coded", advice(name, coded))
    _check_texts(raw)
