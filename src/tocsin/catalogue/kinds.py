"""Kinds of notification, made from entries: the fields of their events, their subjects and their texts."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Discriminator, Tag, TypeAdapter

from tocsin.catalogue.entries import KindEntry, Raw, Raws, advice, parse
from tocsin.catalogue.fields import SCALARS, VARIANT, FieldType, UserId, field_type
from tocsin.catalogue.languages import Languages, sentence_of
from tocsin.catalogue.rendering import MISFITS, Sentence, Speaker, Word, Wording
from tocsin.catalogue.shapes import Shape, check_names, check_subjects, model_of
from tocsin.catalogue.vocabulary import Vocabulary
from tocsin.validation import INTEGER_TAG, OBJECT_TAG

_NAME = re.compile(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)?")


@dataclass(frozen=True)
class Kind:
    """One kind of notification.

    `name` is `type`, or `type/variant`, whose variant is an event's `data.event.type`; `title` is in English,
    `wordings` by language; `thread` is the field of the data whose id groups notifications. `model` is
    the type of `{"data", "params"}`; `directory` are the fields of the data that accept the id of a user; `subjects`
    are the paths of the ids that it is about, each with its word; `as_many` pairs lists of params and data that must
    have the same length; `vocabulary` has the fields, and which of them are personal.
    """

    name: str
    type: str
    variant: str
    title: str
    preset: Literal["quiet", "normal", "urgent"]
    group: str
    category: str
    channel: str
    link: str
    thread: str
    model: Any
    directory: tuple[str, ...]
    subjects: tuple[tuple[tuple[str, ...], str], ...]
    as_many: tuple[tuple[str, str], ...]
    wordings: Mapping[str, Wording]
    vocabulary: Vocabulary
    leads: tuple[Sentence, Mapping[str, Speaker]]

    @cached_property
    def event(self) -> TypeAdapter[dict[str, Any]]:
        """The validator of `{"data", "params"}`, made when it is first used: all of them take 14 ms."""
        return TypeAdapter(self.model)

    def thread_of(self, data: Mapping[str, Any]) -> str:
        """Return the id that groups a notification with others; empty if its data has none."""
        found = data.get(self.thread)
        return str(found.get("id", "")) if isinstance(found, dict) else ""

    def link_of(self, data: Mapping[str, Any], params: Mapping[str, Any]) -> str:
        """Return the link of a notification, its words percent-encoded; empty if one of them is missing."""
        sentence, speakers = self.leads
        try:
            words = {name: quote(speak(data, params).plain, safe="") for name, speak in speakers.items()}
        except MISFITS:
            return ""
        return sentence.render({name: Word(word, word) for name, word in words.items()}).plain


def kinds_of(raws: Raws, shapes: Mapping[str, Shape | None], languages: Languages) -> dict[str, Kind]:
    """Make the kinds from entries, in all languages; an invalid one is recorded and left out."""
    made = {}
    with_variants = {name.partition("/")[0] for name in raws.kinds if "/" in name}
    for name, raw in raws.kinds.items():
        if name in with_variants:
            raw.field_error("data", f"conflicts with kinds `{name}/...`", "give it a name of that form too")
        before = len(raw.findings)
        entry = parse(raw, KindEntry)
        if entry is None:
            continue
        draft = _Draft(raw, entry, shapes)
        draft.check()
        wordings = languages.wordings(raw, entry, draft.vocabulary, draft.lost)
        if len(raw.findings) == before:
            made[name] = draft.kind(wordings)
    return made


class _Draft:
    """A kind during validation. `lost` are invalid fields, of which no further errors are recorded."""

    def __init__(self, raw: Raw, entry: KindEntry, shapes: Mapping[str, Shape | None]) -> None:
        self.raw, self.entry = raw, entry
        sound = {name: shape for name, shape in shapes.items() if shape is not None}
        data = self._fields("data", entry.data, [*SCALARS, *shapes, VARIANT])
        params = self._fields("params", entry.params, [*SCALARS])
        data = {name: of for name, of in data.items() if of.base not in shapes or of.base in sound}
        self.lost = (entry.data.keys() | entry.params.keys()) - (data.keys() | params.keys())
        self.vocabulary = Vocabulary(data, params, entry.instead, sound)

    def check(self) -> None:
        """Record the errors of the entry, except those of its sentence."""
        entry, raw = self.entry, self.raw
        data, params = self.vocabulary.data, self.vocabulary.params
        if not _NAME.fullmatch(raw.name):
            raw.field_error("", "has a name that no event can have", "write `name` or `type/variant`")
        if [name for name, of in data.items() if of.base == VARIANT] != (["event"] if "/" in raw.name else []):
            instead = 'give the data of a kind `a/b`, and of no other, `event = "variant"`'
            raw.field_error("data", "has a name and a variant that do not go together", instead)
        check_names(raw, "data", entry.data)
        check_names(raw, "params", entry.params)
        check_subjects(raw, entry.subjects, params)
        self._among("quotes", [entry.quotes], self.vocabulary.quotable())
        self._among("sender", [entry.sender], [name for name in data if self._shape_fields(name)])
        self._among("thread", [entry.thread], [name for name in data if "id" in self._shape_fields(name)])
        self._among("instead", entry.instead, [name for name in data if self._shape_fields(name)])
        optional = [name for name in self.vocabulary.quotable() if params[name].optional]
        self._among("instead", entry.instead.values(), optional)
        self._among("as_many", entry.as_many, [name for name, of in params.items() if of.many])
        self._among("as_many", entry.as_many.values(), [name for name, of in data.items() if of.many])
        sentence_of(raw, "link", entry.link, self.vocabulary, self.lost)

    def kind(self, wordings: Mapping[str, Wording]) -> Kind:
        """Return the kind. The entry must be valid."""
        entry, name = self.entry, self.raw.name
        type_, _, variant = name.partition("/")
        return Kind(
            name=name,
            type=type_,
            variant=variant,
            title=entry.title,
            preset=entry.preset,
            group=entry.group,
            category=entry.category,
            channel=entry.channel,
            link=entry.link,
            thread=entry.thread,
            model=self._model(variant),
            directory=tuple(key for key, of in self.vocabulary.data.items() if self._is_of_directory(of)),
            subjects=tuple(self._subjects()),
            as_many=tuple(entry.as_many.items()),
            wordings=wordings,
            vocabulary=self.vocabulary,
            leads=self._leads(),
        )

    def _leads(self) -> tuple[Sentence, Mapping[str, Speaker]]:
        sentence = Sentence(self.entry.link)
        return sentence, {word: self.vocabulary.speaker(word, {}) for word in sentence.words}

    def _fields(self, key: str, spellings: Mapping[str, str], bases: Collection[str]) -> dict[str, FieldType]:
        found = {}
        for name, spelling in spellings.items():
            of = field_type(spelling, bases)
            if of is None or (of.many and of.base not in SCALARS):
                wrong = f"`{key}.{name}` is `{spelling}`, which is neither a type nor a shape"
                self.raw.field_error(key, wrong, advice(spelling, bases))
            else:
                found[name] = of
        return found

    def _among(self, key: str, names: Iterable[str], choices: Collection[str]) -> None:
        for name in names:
            if name and name not in choices and name not in self.lost:
                wrong = f"`{key}` names `{name}`, which it cannot"
                self.raw.field_error(key, wrong, advice(name, choices))

    def _shape_fields(self, name: str) -> Mapping[str, FieldType]:
        shape = self.vocabulary.shapes.get(self.vocabulary.data[name].base)
        return shape.fields if shape else {}

    def _is_of_directory(self, of: FieldType) -> bool:
        return of.base in self.vocabulary.shapes and self.vocabulary.shapes[of.base].directory

    def _subjects(self) -> Iterable[tuple[tuple[str, ...], str]]:
        for name, of in self.vocabulary.data.items():
            shape = self.vocabulary.shapes.get(of.base)
            for key, word in shape.subjects.items() if shape else ():
                yield ("data", name, key), word
        for name, word in self.entry.subjects.items():
            yield ("params", name), word

    def _model(self, variant: str) -> Any:
        data = [(name, self._annotation(of, variant), of.optional) for name, of in self.vocabulary.data.items()]
        params = [(name, of.annotation(SCALARS[of.base]), of.optional) for name, of in self.vocabulary.params.items()]
        name = self.raw.name.replace("/", ".")
        parts = [
            (part, model_of(f"{name}.{part}", fields), all(optional for *_, optional in fields))
            for part, fields in (("data", data), ("params", params))
        ]
        return model_of(name, parts)

    def _annotation(self, of: FieldType, variant: str) -> Any:
        if of.base == VARIANT:
            return model_of(VARIANT, [("type", Literal[variant], False)])
        shape = self.vocabulary.shapes.get(of.base)
        if shape is None:
            return of.annotation(SCALARS[of.base])
        return of.annotation(_or_its_id(shape.model) if shape.directory else shape.model)


def _or_its_id(model: Any) -> Any:
    an_object: Any = Annotated[model, Tag(OBJECT_TAG)]
    an_id: Any = Annotated[UserId, Tag(INTEGER_TAG)]
    return Annotated[an_object | an_id, Discriminator(_tag_of)]


def _tag_of(value: Any) -> str:
    return INTEGER_TAG if type(value) is int else OBJECT_TAG
