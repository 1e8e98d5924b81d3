"""Shapes: the objects in the data of kinds, how they are validated and rendered."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, cast

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from tocsin.catalogue.entries import Raw, ShapeEntry, advice, parse
from tocsin.catalogue.fields import SCALARS, VARIANT, FieldType, field_type
from tocsin.catalogue.rendering import Sentence, Word, readable, spoken

Labels = Mapping[str, Mapping[str, str]]
"""The labels of one language: by `shape.field`, then by code."""

_NAME = re.compile(r"[A-Za-z]\w*")
_SUBJECT = re.compile(r"[a-z][a-z0-9_]*")
_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape. If it is of the `directory`, an integer instead of an object is the id of a user to fill in.

    Its `personal` fields are removed when the user is erased.
    """

    name: str
    fields: Mapping[str, FieldType]
    spoken: Sentence
    coded: Mapping[str, str]
    subjects: Mapping[str, str]
    personal: Sequence[str]
    directory: bool
    model: Any

    def speaker(self, labels: Labels) -> Callable[[Mapping[str, Any]], Word]:
        """Return the function that renders an object of this shape, without white space around empty fields."""
        fields = {key: self.field_speaker(key, labels) for key in self.spoken.words}
        if self.spoken.is_one_word:
            return fields[self.spoken.words[0]]

        def speak(value: Mapping[str, Any]) -> Word:
            words = {key: say(value) for key, say in fields.items()}
            whole = self.spoken.render(words)
            if all(word.plain for word in words.values()):
                return whole
            return Word(whole.plain.strip(), whole.html.strip())

        return speak

    def field_speaker(self, key: str, labels: Labels) -> Callable[[Mapping[str, Any]], Word]:
        """Return the function that renders a field; a coded field by its label, if it has one."""
        if key not in self.coded:
            return lambda value: spoken(value[key])
        known = labels.get(f"{self.name}.{key}", {})
        is_readable = self.coded[key] == "readable"

        def speak(value: Mapping[str, Any]) -> Word:
            code = value[key] or ""
            return spoken(known.get(code) or (readable(code, self.name) if is_readable else code))

        return speak

    def erased(self, value: Mapping[str, Any], phrase: str) -> dict[str, Any]:
        """Return an object of this shape without personal data; `phrase` replaces the first personal field.

        Of fields that the shape does not have, or no longer, only ids are kept.
        """
        blank: dict[str, Any] = {}
        for key in self.personal:
            blank[key] = None if self.fields[key].nullable else "" if phrase in blank.values() else phrase
        unknown = only_ids({key: of for key, of in value.items() if key not in self.fields})
        return {**value, **unknown, **blank}


def only_ids(data: Any) -> Any:
    """Return JSON without its strings, except those of ids."""
    if isinstance(data, dict):
        return {key: value if key == "id" or key.endswith("_id") else only_ids(value) for key, value in data.items()}
    if isinstance(data, list):
        return [only_ids(value) for value in data]
    return "" if isinstance(data, str) else data


def shapes_of(raws: Mapping[str, Raw]) -> dict[str, Shape | None]:
    """Make the shapes from entries; an invalid one is None, so that its name stays known."""
    for name in raws.keys() & {*SCALARS, VARIANT}:
        raws[name].field_error("", "has the name of a type", "choose another name")
    return {name: _shape_of(name, raw) for name, raw in raws.items() if name not in {*SCALARS, VARIANT}}


def model_of(name: str, fields: Iterable[tuple[str, Any, bool]]) -> Any:
    """Return the annotation of an object of fields, each with its name, its annotation, and whether it is optional.

    Validation returns a dict with the fields that are given, in this order.
    """
    annotations = {key: NotRequired[of] if optional else of for key, of, optional in fields}
    return with_config(_STRICT)(cast("Any", TypedDict)(name, annotations))


def check_names(raw: Raw, key: str, names: Iterable[str]) -> None:
    """Record names of fields that a sentence cannot use."""
    for name in names:
        if not _NAME.fullmatch(name):
            raw.field_error(key, f"`{key}` has the field `{name}`", "write letters, digits and `_` alone")


def check_subjects(raw: Raw, subjects: Mapping[str, str], fields: Mapping[str, FieldType]) -> None:
    """Record subjects that are not a word, or not of a `uuid` field."""
    ids = [name for name, of in fields.items() if of.base == "uuid" and not of.many]
    for name, word in subjects.items():
        if name not in ids:
            raw.field_error(
                "subjects", f"`subjects` has `{name}`, which is not a `uuid` field of it", advice(name, ids)
            )
        if not _SUBJECT.fullmatch(word):
            raw.field_error("subjects", f"`subjects` has the word `{word}`", "write one word in small letters")


def _shape_of(name: str, raw: Raw) -> Shape | None:
    before = len(raw.findings)
    entry = parse(raw, ShapeEntry)
    if entry is None:
        return None
    fields = _fields_of(raw, entry)
    sentence = _sentence_of(raw, entry)
    check_names(raw, "fields", entry.fields)
    check_subjects(raw, entry.subjects, fields)
    _check_codes(raw, entry, fields)
    _check_personal(raw, entry, fields)
    if sentence is None or len(raw.findings) > before:
        return None
    model = model_of(name, ((key, of.annotation(SCALARS[of.base]), False) for key, of in fields.items()))
    return Shape(name, fields, sentence, entry.coded, entry.subjects, entry.personal, entry.directory, model)


def _fields_of(raw: Raw, entry: ShapeEntry) -> dict[str, FieldType]:
    found = {}
    for key, spelling in entry.fields.items():
        of = field_type(spelling, SCALARS)
        if of is None or of.optional or of.many:
            wrong = f"`fields.{key}` is `{spelling}`, which no field of a shape can be"
            raw.field_error("fields", wrong, advice(spelling, SCALARS))
        else:
            found[key] = of
    return found


def _sentence_of(raw: Raw, entry: ShapeEntry) -> Sentence | None:
    try:
        sentence = Sentence(entry.spoken)
    except ValueError as error:
        raw.field_error("spoken", f"`spoken` {error}", "write fields in braces: `{name}`")
        return None
    if "**" in entry.spoken:
        raw.field_error("spoken", "`spoken` has `**`", "mark what is bold in the kinds' sentences")
    for word in sentence.words:
        if word not in entry.fields:
            raw.field_error("spoken", f"`spoken` names {{{word}}}, which it does not have", advice(word, entry.fields))
    return sentence


def _check_codes(raw: Raw, entry: ShapeEntry, fields: Mapping[str, FieldType]) -> None:
    strings = [name for name, of in fields.items() if of.base in {"string", "words"}]
    for name in entry.coded:
        if name not in strings:
            raw.field_error(
                "coded", f"`coded` has `{name}`, which is not a `string` field of it", advice(name, strings)
            )


def _check_personal(raw: Raw, entry: ShapeEntry, fields: Mapping[str, FieldType]) -> None:
    blankable = [name for name, of in fields.items() if of.base in {"string", "words", "text"} or of.nullable]
    for name in entry.personal:
        if name not in blankable:
            raw.field_error("personal", f"`personal` has `{name}`, which cannot be blank", advice(name, blankable))
