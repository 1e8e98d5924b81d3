"""The types of the fields of events, as written in the catalogue's files: `uuid`, `optional list of words`."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from tocsin.ids import MAX_ID

MAX_LIST_ITEMS = 100

MAX_MESSAGE_LENGTH = 512
"""Maximum characters of a custom message."""

VARIANT = "variant"
"""The type of the field `event` of a kind `a/b`: an object whose `type` is `b`."""

_CANONICAL = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_SPELLING = re.compile(r"(?P<optional>optional )?(?P<many>list of )?(?P<base>\w+)(?P<nullable> or null)?")


def _is_uuid(value: Any) -> str:
    if not isinstance(value, str) or _CANONICAL.fullmatch(value) is None:
        raise PydanticCustomError("uuid", "must be a UUID")
    return value


def _is_not_blank(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("string_between", "must not be blank")
    return value


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _is_something(value: str) -> str:
    if not value:
        raise PydanticCustomError("required", "is required")
    return value


UserId = Annotated[int, Field(strict=True, ge=1, le=MAX_ID)]
Integer = Annotated[int, Field(strict=True, ge=0, le=2**53 - 1)]
"""An integer that all JSON parsers read exactly."""
Uuid = Annotated[str, PlainValidator(_is_uuid), WithJsonSchema({"type": "string", "format": "uuid"})]
String = Annotated[str, Field(strict=True, max_length=1000)]
SomeWords = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=1000, json_schema_extra={"pattern": r"\S"}),
    AfterValidator(_is_not_blank),
]
Text = Annotated[str, Field(strict=True, max_length=10_000)]
"""Text of several lines."""
Message = Annotated[
    str,
    Field(strict=True, max_length=MAX_MESSAGE_LENGTH, json_schema_extra={"minLength": 1, "pattern": r"\S"}),
    BeforeValidator(_stripped),
    AfterValidator(_is_something),
]

SCALARS: dict[str, Any] = {
    "user_id": UserId,
    "integer": Integer,
    "uuid": Uuid,
    "string": String,
    "words": SomeWords,
    "text": Text,
    "message": Message,
}
OF_SEVERAL_LINES = {"text", "message"}
LINES = {"string", "words", *OF_SEVERAL_LINES}


@dataclass(frozen=True, slots=True)
class FieldType:
    """The type of a field. `base` is the name of a scalar or a shape, or `variant`."""

    base: str
    optional: bool = False
    many: bool = False
    nullable: bool = False

    def annotation(self, one: Any) -> Any:
        """Return the annotation for pydantic; `one` is that of a single value."""
        whole = Annotated[list[one], Field(strict=True, min_length=1, max_length=MAX_LIST_ITEMS)] if self.many else one
        return whole | None if self.nullable else whole


def field_type(spelling: str, bases: Collection[str]) -> FieldType | None:
    """Parse a type; return None if it is invalid, or its base is not among `bases`."""
    found = _SPELLING.fullmatch(spelling)
    if found is None or found["base"] not in bases:
        return None
    return FieldType(found["base"], bool(found["optional"]), bool(found["many"]), bool(found["nullable"]))
