"""What pydantic finds wrong with a request, in the words of our answers.

A union of a request model is tagged, with tags in angle brackets: they are left out of a fault's path.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from tocsin.errors import MAX_FIELD_ERRORS, UNTOLD, FieldError

OBJECT_TAG = "<object>"
INTEGER_TAG = "<integer>"

_TAGS = {OBJECT_TAG, INTEGER_TAG}
_UNNAMED = ("in", "has a value that is not allowed")

# pydantic's type of an error -> our code, and what the field is told; {} are the limits that pydantic names
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
    "enum": ("in", "must be {expected}"),
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
"""Characters of a field's path in an answer: names that callers make up have no bound."""

ENTRIES = "entries"
"""The type of pydantic's error that stands for those of a list: its context has `(position, code, says)` of each."""

OURS = {code for code, _ in _CODES.values()} | {"required_without", "unknown"}
"""All validation codes, without their prefix."""


def field_error(field: str, code: str, says: str) -> FieldError:
    """Return the fault of one field, in a sentence: `The data.case.id field is required.`; a long name is cut."""
    if len(field) > MAX_FIELD_LENGTH:
        field = field[:MAX_FIELD_LENGTH] + "…"
    return FieldError(field, code, f"The {field} field {says}.")


def among(field_errors: Sequence[FieldError], field: str, code: str, says: str) -> FieldError:
    """Return the fault of one of many fields: once enough are told, one that is only counted, which costs nothing."""
    return UNTOLD if len(field_errors) >= MAX_FIELD_ERRORS else field_error(field, code, says)


def counted(field_errors: Sequence[FieldError], told: int) -> list[FieldError]:
    """Return faults that come after so many that are told: only counted, where these are as many as an answer holds."""
    return [UNTOLD] * len(field_errors) if told >= MAX_FIELD_ERRORS else list(field_errors)


def told_of(field_errors: Sequence[FieldError]) -> int:
    """Return how many of these faults are told."""
    return sum(found is not UNTOLD for found in field_errors)


def under(prefix: str, found: FieldError) -> FieldError:
    """Return a fault of a part as one of the whole; `prefix` is the part's path (`events.17.`)."""
    if found is UNTOLD:
        return found
    message = found.message.replace(f"The {found.field} field", f"The {prefix}{found.field} field", 1)
    return FieldError(prefix + found.field, found.code, message)


def field_errors_of(error: ValidationError, prefix: str = "") -> list[FieldError]:
    """Return one fault per finding; `prefix` is the dotted path of what was checked (`events.17`).

    A validator of ours raises `PydanticCustomError` with one of our codes, and what is to be said after the field.
    """
    return _field_errors_of(error.errors(include_url=False, include_input=False), prefix)


def field_errors_of_parts(findings: Sequence[Any]) -> list[FieldError]:
    """Return the same of findings whose paths start with the part of the request that they are in."""
    return _field_errors_of([{**found, "loc": found["loc"][1:] or found["loc"]} for found in findings], "")


def _field_errors_of(findings: Sequence[Any], prefix: str) -> list[FieldError]:
    field_errors: list[FieldError] = []
    for found in findings:
        if found["type"] != ENTRIES:
            field_errors.append(_field_error_of(found, prefix) if len(field_errors) < MAX_FIELD_ERRORS else UNTOLD)
            continue
        whole = _field_error_of({**found, "type": "array", "msg": ""}, prefix).field
        entries = [field_error(f"{whole}.{position}", code, says) for position, code, says in found["ctx"]["first"]]
        field_errors += [*entries, *[UNTOLD] * found["ctx"]["more"]]
    return field_errors


def _field_error_of(found: Any, prefix: str) -> FieldError:
    path = [str(part) for part in found["loc"] if part not in _TAGS]
    field = ".".join([prefix, *path] if prefix else path)
    if found["type"] in OURS:
        return field_error(field, found["type"], found["msg"])
    code, says = _CODES.get(found["type"], _UNNAMED)
    return field_error(field, code, says.format(**found.get("ctx", {})))
