from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    HttpUrl,
    Tag,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from tocsin.errors import FieldError
from tocsin.validation import INTEGER_TAG, OBJECT_TAG, field_errors_of


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    name: str


def tag_of(value: Any) -> str:
    return INTEGER_TAG if type(value) is int else OBJECT_TAG


def refuse(_: Any) -> Any:
    raise PydanticCustomError("unknown", "names nobody")


def refuse_oddly(_: Any) -> Any:
    raise ValueError("{odd}")


class Whole(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    text: Annotated[str, Field(min_length=2, max_length=3)] = "xx"
    form: Annotated[str, Field(pattern="^[a-z]+$")] = "x"
    number: Annotated[int, Field(ge=1, le=3)] = 1
    flag: bool = True
    some: Annotated[list[int], Field(min_length=1, max_length=2)] = [1]
    part: Part | None = None
    one_of: Literal["a", "b"] = "a"
    at: Annotated[AwareDatetime | None, Field(strict=False)] = None
    link: HttpUrl | None = None
    either: Annotated[Annotated[Part, Tag(OBJECT_TAG)] | Annotated[int, Tag(INTEGER_TAG)], Discriminator(tag_of)] = 1
    who: Annotated[Any, AfterValidator(refuse)] = None
    odd: Annotated[Any, AfterValidator(refuse_oddly)] = None


def errors_in(given: Any, prefix: str = "") -> list[FieldError]:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(given)
    return field_errors_of(caught.value, prefix)


@pytest.mark.parametrize(
    ("given", "field", "code", "says"),
    [
        ({"text": 5}, "text", "string", "must be a string"),
        ({"text": "\ud800x"}, "text", "string", "must be a string of Unicode characters"),
        ({"text": "x"}, "text", "string_between", "must have at least 2 characters"),
        ({"text": "xxxx"}, "text", "string_between", "must have at most 3 characters"),
        ({"form": "X"}, "form", "regex", "has an invalid format"),
        ({"number": True}, "number", "integer", "must be an integer"),
        ({"number": 1.0}, "number", "integer", "must be an integer"),
        ({"number": 0}, "number", "numeric_between", "must be at least 1"),
        ({"number": 10**30}, "number", "numeric_between", "must be at most 3"),
        ({"flag": 1}, "flag", "boolean", "must be true or false"),
        ({"some": {}}, "some", "array", "must be an array"),
        ({"some": []}, "some", "array_between", "must have at least 1 entries"),
        ({"some": [1, 2, 3]}, "some", "array_between", "must have at most 2 entries"),
        ({"some": [1, "2"]}, "some.1", "integer", "must be an integer"),
        ({"part": 5}, "part", "object", "must be an object"),
        ({"part": {}}, "part.name", "required", "is required"),
        ({"part": {"name": "x", "more": 1}}, "part.more", "prohibited", "is not allowed here"),
        ({"one_of": "c"}, "one_of", "in", "must be a or b"),
        ({"at": "soon"}, "at", "date", "must be a time in RFC 3339 format"),
        ({"at": "2026-01-01T00:00:00"}, "at", "date", "must have an offset, such as Z or +01:00"),
        ({"link": "x"}, "link", "url", "must be a URL"),
        ({"link": "ftp://example.com/"}, "link", "url", "must be a URL with the scheme http or https"),
        ({"either": {"name": 5}}, "either.name", "string", "must be a string"),
        ({"either": "x"}, "either", "object", "must be an object"),
        ({"who": 5}, "who", "unknown", "names nobody"),
    ],
)
def test_pydantic_errors_are_translated(given: dict[str, Any], field: str, code: str, says: str) -> None:
    assert errors_in(given) == [FieldError(field, code, f"The {field} field {says}.")]


def test_all_validation_errors_are_reported_in_order() -> None:
    found = errors_in({"text": 5, "part": {"x": 1}, "number": "1"})
    assert [field_error.field for field_error in found] == ["text", "number", "part.name", "part.x"]


def test_prefix_locates_the_error_in_the_request() -> None:
    assert [field_error.field for field_error in errors_in({"some": ["x"]}, "events.17")] == ["events.17.some.0"]
    assert [field_error.field for field_error in errors_in([], "events.17")] == ["events.17"]


def test_untranslated_pydantic_error_is_a_disallowed_value() -> None:
    assert errors_in({"odd": "x"}) == [FieldError("odd", "in", "The odd field has a value that is not allowed.")]
