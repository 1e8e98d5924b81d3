"""The words that the sentences of a kind can use, and their places in an event."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tocsin.catalogue.fields import LINES, OF_SEVERAL_LINES, VARIANT, FieldType
from tocsin.catalogue.rendering import Speaker, Word, spoken, spoken_text
from tocsin.catalogue.shapes import Labels, Shape, only_ids


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The fields of a kind's data and params. If both have a name, it means the param.

    `instead` maps fields of the data to the optional param that is rendered instead, if it is given.
    """

    data: Mapping[str, FieldType]
    params: Mapping[str, FieldType]
    instead: Mapping[str, str]
    shapes: Mapping[str, Shape]

    def words(self) -> list[str]:
        """Return the words that can stand in braces: params, scalars, shapes with a text, and `shape.field`."""
        found = [name for name, of in self.params.items() if not of.optional]
        for name, of in self.data.items():
            shape = self.shapes.get(of.base)
            if of.optional or of.base == VARIANT or (shape is not None and of.nullable):
                continue
            if shape is None or shape.spoken.words:
                found.append(name)
            if shape is not None:
                found += [f"{name}.{key}" for key in shape.fields]
        return list(dict.fromkeys(found))

    def quotable(self) -> list[str]:
        """Return the params that can be quoted after the sentence."""
        return [name for name, of in self.params.items() if of.base in LINES and not of.many]

    def speaker(self, word: str, labels: Labels) -> Speaker:
        """Return the function that renders one of `words`, in the language of `labels`."""
        name, _, key = word.partition(".")
        if not key and name in self.params:
            return _speaker_of_param(name, self.params[name])
        of = self.data[name]
        shape = self.shapes.get(of.base)
        if shape is None:
            return _speaker_of_data(name, spoken_text if of.base in OF_SEVERAL_LINES and not of.many else spoken)
        if key:
            return _speaker_of_data(name, shape.field_speaker(key, labels))
        return _speaker_of_data(name, shape.speaker(labels), self.instead.get(name))

    def erased(
        self, data: Mapping[str, Any], params: Mapping[str, Any], phrase: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return an event without personal data: `phrase` replaces it, and texts of several lines become empty.

        Of what the kind does not have, or no longer, only ids are kept.
        """
        told, said = only_ids(data), only_ids(params)
        for name in data.keys() & self.data.keys():
            base = self.data[name].base
            if base in self.shapes:
                told[name] = (
                    self.shapes[base].erased(data[name], phrase) if isinstance(data[name], dict) else told[name]
                )
            elif base == VARIANT or not isinstance(data[name], dict):
                told[name] = data[name]
        for name in params.keys() & self.params.keys():
            of = self.params[name]
            said[name] = _erased(of, phrase) if of.base in LINES else params[name]
        return told, said

    def quoter(self, param: str) -> Speaker:
        """Return the function that renders a quoted param; a missing one is empty."""
        return _speaker_of_param(param, self.params[param])


def _speaker_of_param(name: str, of: FieldType) -> Speaker:
    say: Callable[[Any], Word] = spoken_text if of.base in OF_SEVERAL_LINES and not of.many else spoken
    if of.optional or of.nullable:
        return lambda _, params: say(params.get(name))
    return lambda _, params: say(params[name])


def _speaker_of_data(name: str, say: Callable[[Any], Word], instead: str | None = None) -> Speaker:
    if instead is None:
        return lambda data, _: say(data[name])
    return lambda data, params: spoken(params[instead]) if instead in params else say(data[name])


def _erased(of: FieldType, phrase: str) -> Any:
    if of.many:
        return [phrase]
    return "" if of.base == "text" else phrase
