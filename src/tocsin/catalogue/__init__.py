"""The catalogue: all kinds of notification, read from data files. No code depends on the name of a kind.

It validates events, and renders them in each language.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tocsin.catalogue.entries import ENGLISH, Findings, Raws, read
from tocsin.catalogue.kinds import Kind, kinds_of
from tocsin.catalogue.languages import Languages, fallbacks_of, languages_of
from tocsin.catalogue.rendering import Words, readable
from tocsin.catalogue.shapes import only_ids, shapes_of
from tocsin.errors import MAX_FIELD_ERRORS, UNREPORTED, FieldError, Invalid
from tocsin.validation import field_error, field_errors_of

__all__ = ["ENGLISH", "MAX_SUBJECT_LENGTH", "Catalogue", "Checked", "Kind"]

BUILT_IN = Path(__file__).parent
"""The folder of the built-in kinds, which is read first."""

_REQUIRED = ("required", "is required")
_STRING = ("string", "must be a string")
_OBJECT = ("object", "must be an object")

MAX_SUBJECT_LENGTH = 255
"""Maximum characters of a subject after its word. A longer one, in an imported notification, cannot be named."""

ACTOR = "user"
"""The field of an event's data with the acting user."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A valid event.

    `data` and `params` are those of the event, in the catalogue's order of fields at every level; `actor` is the id of
    the acting user; `subjects` are what the event is about (`case:65e48afe-...`); `unfilled` are the fields of `data`
    with the id of a user, to be replaced by the user from the directory.
    """

    kind: str
    data: dict[str, Any]
    params: dict[str, Any]
    actor: int | None
    subjects: tuple[str, ...]
    unfilled: dict[str, int]


class Catalogue:
    """The kinds by name, the languages, English first, and the samples: built-in ones, and those of entries."""

    def __init__(self, kinds: Mapping[str, Kind], languages: Languages, samples: dict[str, Any]) -> None:
        self.kinds = kinds
        self.languages = tuple(languages.labels)
        self.samples = samples
        self._names = languages
        self._languages = {language.lower(): language for language in self.languages}
        self._variants: dict[str, dict[str, Kind]] = {}
        for kind in kinds.values():
            self._variants.setdefault(kind.type, {})[kind.variant] = kind

    @classmethod
    def load(cls, *folders: Path) -> "Catalogue":
        """Read the built-in folder and then these, which override earlier ones. Raises `Refusal` with all errors."""
        findings = Findings()
        raws = read([BUILT_IN, *folders], findings)
        if not raws.whole:
            findings.refuse()  # the contents of an unreadable file would be reported as missing everywhere
        shapes = shapes_of(raws.shapes)
        languages = languages_of(raws, shapes)
        kinds = kinds_of(raws, shapes, languages)
        findings.refuse()
        samples = json.loads((BUILT_IN / "samples.json").read_text(encoding="utf-8"))
        made = cls(kinds, languages, {sample["name"]: sample for sample in samples})
        made.samples |= made._samples_of(raws)
        findings.refuse()
        return made

    def check(self, type_: Any, data: Any, params: Any) -> Checked:
        """Validate an event as it was posted; None for missing parts. Raises `Invalid` with all errors."""
        kind = self._kind_of(type_, data, params)
        event = _checked(kind, data, params)
        data, params = event["data"], event["params"]
        subjects = tuple(dict.fromkeys(_subjects_of(kind, event)))
        return Checked(kind.name, data, params, _actor_of(kind, data), subjects, _unfilled(kind, data))

    def unfilled(self, type_: Any, data: Any) -> dict[str, int]:
        """Return the users, by field, that the directory fills in. The event may be invalid."""
        try:
            return _unfilled(self._kind_of(type_, data, None), data if isinstance(data, dict) else {})
        except Invalid:
            return {}

    def render(
        self, kind: str, language: str, data: Mapping[str, Any], params: Mapping[str, Any], *, erased: bool = False
    ) -> Words:
        """Render an event in one of `languages`, else in English; without personal data if `erased`.

        Its users must be filled in. Raises `LookupError` if the catalogue no longer has the kind, or the kind has
        fields that the event does not have.
        """
        wordings = self.kinds[kind].wordings
        if erased:
            data, params = self.erase(kind, data, params, language)
        return (wordings.get(language) or wordings[ENGLISH]).render(data, params)

    def erase(
        self, kind: str, data: Mapping[str, Any], params: Mapping[str, Any], language: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return an event's `data` and `params` without personal data.

        It is replaced by an empty text, or, with a `language`, by the phrase for erased text. Of an unknown kind, only
        ids are kept.
        """
        phrase = self.phrase("erased", language) if language else ""
        if kind not in self.kinds:
            return only_ids(data), {}
        return self.kinds[kind].vocabulary.erased(data, params, phrase)

    def phrase(self, name: str, language: str) -> str:
        """Return a fixed phrase in one of `languages`, else in English."""
        return self._names.phrases.get(language, self._names.phrases[ENGLISH])[name]

    def spoken(self, language: str, locale: str) -> str:
        """Return the given language if it is one of `languages`, else that of the locale."""
        return language if language in self._names.phrases else self.language_of(locale)

    def group_of(self, group: str, language: str) -> str:
        """Return the name of a group of kinds in one of `languages`."""
        return self._names.groups.get(language, {}).get(group) or readable(group, "")

    def subjects_of(self, kind: str, data: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the subjects of a notification with this data; of an unknown kind, as if any kind had its fields."""
        kinds = [self.kinds[kind]] if kind in self.kinds else self.kinds.values()
        return tuple(dict.fromkeys(subject for each in kinds for subject in _subjects_of(each, {"data": data})))

    def name_of(self, type_: str, data: Mapping[str, Any]) -> str:
        """Return the name of the kind of a notification with this type and data, else the type."""
        event = data.get("event")
        variant = event.get("type") if isinstance(event, dict) else None
        return next((name for name in (f"{type_}/{variant}", type_) if name in self.kinds), type_)

    def language_of(self, locale: str) -> str:
        """Return the language for a locale: of `da-DK` or `da_DK`, `da-DK` if there is one, else `da`, else `en`."""
        wanted = fallbacks_of(locale.replace("_", "-").lower())
        return next(self._languages[language] for language in wanted if language in self._languages)

    def schemas(self) -> dict[str, dict[str, Any]]:
        """Return JSON Schemas (2020-12) without references, by the name of the kind, of its `data` and `params`."""
        found = {}
        for name, kind in self.kinds.items():
            schema = kind.event.json_schema()
            found[name] = {part: _inlined(of_part, schema["$defs"]) for part, of_part in schema["properties"].items()}
        return found

    def _samples_of(self, raws: Raws) -> dict[str, Any]:
        """Return the samples of entries, each with its notification, and record invalid ones."""
        found = {}
        for name, raw in raws.kinds.items():
            if "sample" not in raw.values:
                continue
            given, kind = raw.values["sample"], self.kinds[name]
            data, params = given.get("data"), given.get("params")
            try:
                checked = self.check(kind.type, data, params)
            except Invalid as invalid:
                for each in invalid.field_errors:
                    raw.field_error(
                        "sample",
                        f"has a sample that is not a valid event: {each.message.rstrip('.')}",
                        "correct the sample",
                    )
                continue
            for field in checked.unfilled:
                wrong = f"has a sample whose `data.{field}` is an id"
                raw.field_error("sample", wrong, "write the user as an object, as the directory would fill it in")
            if not checked.unfilled:
                found[name] = self._sample(kind, checked)
        return found

    def _sample(self, kind: Kind, event: Checked) -> dict[str, Any]:
        words = self.render(kind.name, ENGLISH, event.data, event.params)
        shown = {"type": kind.type, "data": event.data, "message": words.message}
        shown["message_formatted"] = words.message_formatted
        posted = {"type": kind.type, "notify": {"users": [2]}, "data": event.data, "params": event.params}
        return {"name": kind.name, "event": posted, "notification": shown}

    def _kind_of(self, type_: Any, data: Any, params: Any) -> Kind:
        """Return the kind of an event. Raises `Invalid` with all errors if it is unknown."""
        try:
            variants = self._variants[type_]
            return variants[data["event"]["type"] if "" not in variants else ""]
        except (LookupError, TypeError):
            field_errors = [*self._errors_of_type(type_, data), *_errors_of_form(data, params)]
            raise Invalid(dict.fromkeys(field_errors)) from None

    def _errors_of_type(self, type_: Any, data: Any) -> Iterator[FieldError]:
        if not isinstance(type_, str):
            yield field_error("type", *(_REQUIRED if type_ is None else _STRING))
        elif type_ not in self._variants:
            yield field_error("type", "in", f"must be one of {', '.join(self._variants)}")
        else:
            yield _error_of_variant(data, self._variants[type_])


def _error_of_variant(data: Any, variants: Mapping[str, Kind]) -> FieldError:
    if data is None:
        return field_error("data", *_REQUIRED)
    found, path = data, "data"
    for key in ("event", "type"):
        if not isinstance(found, dict):
            return field_error(path, *_OBJECT)
        path = f"{path}.{key}"
        if key not in found:
            return field_error(path, *_REQUIRED)
        found = found[key]
    if not isinstance(found, str):
        return field_error(path, *_STRING)
    return field_error(path, "in", f"must be one of {', '.join(variants)}")


def _errors_of_form(data: Any, params: Any) -> Iterator[FieldError]:
    for name, part in (("data", data), ("params", params)):
        if part is not None and not isinstance(part, dict):
            yield field_error(name, *_OBJECT)


def _checked(kind: Kind, data: Any, params: Any) -> dict[str, Any]:
    given = {name: part for name, part in (("data", data), ("params", params)) if part is not None}
    given, left_out = _without_most_unknown(kind, given)
    try:
        event = kind.event.validator.validate_python(given)
    except ValidationError as error:
        field_errors = field_errors_of(error)
    else:
        field_errors = []
    field_errors += [UNREPORTED] * left_out
    known = {found.field for found in field_errors}
    field_errors += [found for found in _miscounted(kind, given) if found.field not in known]
    if field_errors:
        raise Invalid(field_errors)
    return {"data": {}, "params": {}, **event}


def _unfilled(kind: Kind, data: Mapping[str, Any]) -> dict[str, int]:
    return {name: data[name] for name in kind.directory if type(data.get(name)) is int}


def _without_most_unknown(kind: Kind, given: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return an event without most of its unknown fields, if they are many, and the number of those left out.

    So the cost of validation is bounded.
    """
    if not _is_large(given.get("data")) and not _is_large(given.get("params")):
        return given, 0
    left_out = 0
    kept = {}
    for name, fields in (("data", kind.vocabulary.data), ("params", kind.vocabulary.params)):
        if name not in given:
            continue
        kept[name], more = _pruned(given[name], fields)
        left_out += more
        for key, of in fields.items() if isinstance(kept[name], dict) else ():
            shape = kind.vocabulary.shapes.get(of.base)
            inner, more = _pruned(kept[name].get(key), shape.fields) if shape else (None, 0)
            if more:
                kept[name] = {**kept[name], key: inner}
                left_out += more
    return kept, left_out


def _is_large(part: Any) -> bool:
    """Return whether a part of an event, or an object in it, has more fields than errors are reported."""
    if not isinstance(part, dict) or len(part) > MAX_FIELD_ERRORS:
        return isinstance(part, dict)
    for of in part.values():  # noqa: SIM110 - `any` is slower, and this runs for every event
        if isinstance(of, dict) and len(of) > MAX_FIELD_ERRORS:
            return True
    return False


def _pruned(part: Any, known: Collection[str]) -> tuple[Any, int]:
    if not isinstance(part, dict) or len(part) <= len(known) + MAX_FIELD_ERRORS:
        return part, 0
    extra = {name for name in list(part)[:MAX_FIELD_ERRORS] if name not in known}
    pruned = {name: value for name, value in part.items() if name in known or name in extra}
    return pruned, len(part) - len(pruned)


def _miscounted(kind: Kind, given: Mapping[str, Any]) -> Iterator[FieldError]:
    for param, field in kind.as_many:
        words, due = _at(given, ("params", param)), _at(given, ("data", field))
        if isinstance(words, list) and isinstance(due, list) and len(words) != len(due):
            yield field_error(f"params.{param}", "array_between", f"must have as many entries as data.{field}")


def _actor_of(kind: Kind, data: Mapping[str, Any]) -> int | None:
    who = data.get(ACTOR) if ACTOR in kind.directory else None
    return who["id"] if isinstance(who, dict) else who


def _subjects_of(kind: Kind, event: Mapping[str, Any]) -> Iterator[str]:
    for path, word in kind.subjects:
        found = _at(event, path)
        if isinstance(found, str) and len(found) <= MAX_SUBJECT_LENGTH:
            yield f"{word}:{found.lower()}"


def _at(found: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _inlined(schema: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(part, known) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(known[schema["$ref"].removeprefix("#/$defs/")], known)
    return {
        key: _inlined(part, known)
        for key, part in schema.items()
        if key != "default" or part is not None  # a field without a default may be left out
    }
