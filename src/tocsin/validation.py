"""Validation: converts errors of pydantic into field errors, and defines limits that are reported in one sentence.

Unions in request models are tagged. The tags are in angle brackets and are left out of the paths of fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tocsin.attribute_docs import DescribedModel
from tocsin.errors import MAX_FIELD_ERRORS, UNREPORTED, FieldError

OBJECT_TAG = "<object>"
INTEGER_TAG = "<integer>"

_TAGS = {OBJECT_TAG, INTEGER_TAG}
_UNNAMED = ("in", "has a value that is not allowed")

# pydantic's type of an error -> the code, and the text after the field; {} are replaced by pydantic's limits
_CODES = {
    "missing": ("required", "is required"),
    "union_tag_not_found": ("required", "is required"),
    "extra_forbidden": ("prohibited", "is not allowed here"),
    "string_type": ("string", "must be a string"),
    "string_unicode": ("string", "must be a string of Unicode characters"),
    "string_too_short": ("string_between", "must have at least {min_length} characters"),
    "string_too_long": ("string_between", "must have at most {max_length} characters"),
    "string_pattern_mismatch": ("regex", "has an invalid format"),
    "int_type": ("integer", "must be an integer"),
    "int_parsing": ("integer", "must be an integer"),
    "int_from_float": ("integer", "must be an integer"),
    "int_parsing_size": ("numeric_between", "is too large"),
    "greater_than": ("numeric_between", "must be more than {gt}"),
    "greater_than_equal": ("numeric_between", "must be at least {ge}"),
    "less_than": ("numeric_between", "must be less than {lt}"),
    "less_than_equal": ("numeric_between", "must be at most {le}"),
    "bool_type": ("boolean", "must be true or false"),
    "bool_parsing": ("boolean", "must be true or false"),
    "list_type": ("array", "must be an array"),
    "tuple_type": ("array", "must be an array"),
    "set_type": ("array", "must be an array"),
    "too_short": ("array_between", "must have at least {min_length} entries"),
    "too_long": ("array_between", "must have at most {max_length} entries"),
    "dict_type": ("object", "must be an object"),
    "model_type": ("object", "must be an object"),
    "model_attributes_type": ("object", "must be an object"),
    "literal_error": ("in", "must be {expected}"),
    "union_tag_invalid": ("in", "must be one of {expected_tags}"),
    "uuid_type": ("uuid", "must be a UUID"),
    "uuid_parsing": ("uuid", "must be a UUID"),
    "uuid_version": ("uuid", "must be a UUID"),
    "url_type": ("url", "must be a URL"),
    "url_parsing": ("url", "must be a URL"),
    "url_syntax_violation": ("url", "must be a URL"),
    "url_too_long": ("url", "must be a URL of at most {max_length} characters"),
    "url_scheme": ("url", "must be a URL with the scheme {expected_schemes}"),
    "date_type": ("date", "must be a date"),
    "date_parsing": ("date", "must be a date"),
    "date_from_datetime_parsing": ("date", "must be a date"),
    "time_type": ("date", "must be a time"),
    "time_parsing": ("date", "must be a time"),
    "datetime_type": ("date", "must be a time in RFC 3339 format"),
    "datetime_parsing": ("date", "must be a time in RFC 3339 format"),
    "datetime_from_date_parsing": ("date", "must be a time in RFC 3339 format"),
    "datetime_object_invalid": ("date", "must be a time in RFC 3339 format"),
    "timezone_aware": ("date", "must have an offset, such as Z or +01:00"),
}

MAX_FIELD_LENGTH = 200
"""Maximum characters of a field's path in a response. Callers can send names of any length."""

_SEVERAL = "several"
"""The type of a pydantic error that contains several: its context has `(path, code, says)` of each."""

VALIDATION_CODES = {code for code, _ in _CODES.values()} | {"required_without", "unknown"}
"""All validation codes, without their prefix."""


def field_error(field: str, code: str, says: str) -> FieldError:
    """Return the error of a field, with a message such as `The data.case.id field is required.`. Long names are cut."""
    if len(field) > MAX_FIELD_LENGTH:
        field = field[:MAX_FIELD_LENGTH] + "…"
    return FieldError(field, code, f"The {field} field {says}.")


def among(field_errors: Sequence[FieldError], field: str, code: str, says: str) -> FieldError:
    """Return the error of a field, or `UNREPORTED` after `MAX_FIELD_ERRORS` errors."""
    return UNREPORTED if len(field_errors) >= MAX_FIELD_ERRORS else field_error(field, code, says)


def up_to_limit(field_errors: Sequence[FieldError], reported: int) -> list[FieldError]:
    """Return the errors, or `UNREPORTED` for each of them after `MAX_FIELD_ERRORS` reported errors."""
    return [UNREPORTED] * len(field_errors) if reported >= MAX_FIELD_ERRORS else list(field_errors)


def reported_count(field_errors: Sequence[FieldError]) -> int:
    """Return the number of errors that are not `UNREPORTED`."""
    return sum(found is not UNREPORTED for found in field_errors)


def under(prefix: str, found: FieldError) -> FieldError:
    """Return the error with `prefix` before its field. The prefix is the path of the part (`events.17.`)."""
    if found is UNREPORTED:
        return found
    message = found.message.replace(f"The {found.field} field", f"The {prefix}{found.field} field", 1)
    return FieldError(prefix + found.field, found.code, message)


def refusal(code: str, says: str) -> PydanticCustomError:
    """Return the exception for a validator: a validation code, and the text after the field."""
    return PydanticCustomError(code, says)


def refusals(found: Sequence[tuple[str | int, str, str]], more: int = 0) -> PydanticCustomError:
    """Return the exception for a validator that found several errors: the path, code and text of each.

    Paths are relative to the validated field. `{field}` in a text is replaced by that field and a dot. `more` is the
    number of further errors.
    """
    return PydanticCustomError(_SEVERAL, "has several errors", {"found": found, "more": more})


class RequestModel(DescribedModel, BaseModel, strict=True):
    """A request body, or a part of one. Values are not converted; unknown fields are ignored."""

    @classmethod
    def checked(cls, given: Mapping[str, Any], field_errors: list[FieldError], context: Any = None) -> Self | None:
        """Validate the input and return the model. If it is invalid, append to `field_errors` and return None."""
        try:
            return cls.model_validate(given, context=context)
        except ValidationError as error:
            field_errors += field_errors_of(error)
            return None


@dataclass(frozen=True, slots=True)
class Between:
    """The limits of an integer, of the length of a string or of a list. One error message states both limits."""

    least: int
    most: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the length of a list before its entries, and other limits after the type."""
        schema = inner = handler(source)
        while inner["type"].startswith("function-"):
            inner = inner["schema"]
        if inner["type"] == "list":
            return core_schema.no_info_before_validator_function(self._entries, schema)
        check = self._number if inner["type"] == "int" else self._characters
        return core_schema.no_info_after_validator_function(check, schema)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the limits to the JSON Schema."""
        found = handler(schema)
        names = {"array": ("minItems", "maxItems"), "string": ("minLength", "maxLength")}
        least, most = names.get(found["type"], ("minimum", "maximum"))
        return {**found, **({least: self.least} if self.least or least == "minimum" else {}), most: self.most}

    def _number(self, value: int) -> int:
        if not self.least <= value <= self.most:
            raise refusal("numeric_between", f"must be between {self.least} and {self.most}")
        return value

    def _characters(self, value: str) -> str:
        if not self.least <= len(value) <= self.most:
            raise refusal("string_between", f"must have {self.least} to {self.most} characters")
        return value

    def _entries(self, value: Any) -> Any:
        if isinstance(value, list) and not self.least <= len(value) <= self.most:
            limits = f"{self.least} to {self.most}" if self.least else f"at most {self.most}"
            raise refusal("array_between", f"must have {limits} entries")
        return value


class NotNull:
    """Refuses null for an optional field: for a field that narrows a request, null must not mean everything."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Use the schema of the value alone."""
        schema: CoreSchema = handler(source)["schema"]  # of a nullable one
        return schema


def field_errors_of(error: ValidationError, prefix: str = "") -> list[FieldError]:
    """Return the field errors of a pydantic error. `prefix` is the dotted path of the validated part (`events.17`)."""
    return field_errors_of_findings(error.errors(include_url=False, include_input=False), prefix)


def field_errors_of_findings(findings: Sequence[Any], prefix: str = "") -> list[FieldError]:
    """Return the field errors for the entries of `ValidationError.errors()`."""
    field_errors: list[FieldError] = []
    for found in findings:
        if found["type"] != _SEVERAL:
            field_errors.append(_field_error_of(found, prefix) if len(field_errors) < MAX_FIELD_ERRORS else UNREPORTED)
            continue
        path = _path_of(found["loc"], prefix)
        whole = f"{path}." if path else ""
        field_errors += [
            field_error(f"{whole}{name}", code, says.replace("{field}", whole))
            for name, code, says in found["ctx"]["found"]
        ]
        field_errors += [UNREPORTED] * found["ctx"]["more"]
    return field_errors


def _field_error_of(found: Any, prefix: str) -> FieldError:
    field = _path_of(found["loc"], prefix)
    if found["type"] in VALIDATION_CODES:
        return field_error(field, found["type"], found["msg"])
    code, says = _CODES.get(found["type"], _UNNAMED)
    return field_error(field, code, says.format(**found.get("ctx", {})).replace("'", ""))


def _path_of(loc: Sequence[str | int], prefix: str) -> str:
    path = [str(part) for part in loc if part not in _TAGS]
    return ".".join([prefix, *path] if prefix else path)
