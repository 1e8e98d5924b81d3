"""Declarations of routes for the OpenAPI document in addition to models: problems, links and examples."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tocsin.errors import Conflict, FieldError, Invalid, Problem, RateLimited, Unauthenticated
from tocsin.idempotency import MAX_KEY_LENGTH
from tocsin.validation import field_error

JSON = "application/json"

LIMITED = ("RateLimit", "RateLimit-Policy")
"""The headers of responses to requests that count towards a rate limit."""

Responses = dict[int | str, dict[str, Any]]

DESCRIPTIONS = {
    200: "The request succeeded.",
    202: "The request is stored durably and will be processed.",
    204: "The request succeeded. Repeating it has no further effect.",
    304: "The inbox has not changed since the response with this `ETag`.",
}

_PROBLEMS = "problems"
_FIELD_ERRORS = "field_errors"

ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
    "description": "for 24 hours, a repeated request with the same key has no effect and gets the same response",
}
"""The header that every POST operation accepts."""

NO_KEY = field_error("Idempotency-Key", "string_between", f"must have 1 to {MAX_KEY_LENGTH} characters")


def problems(*found: type[Problem] | FieldError) -> Responses:
    """Declare the problems of a route in addition to those of all routes, and examples of validation errors."""
    answers: Responses = {}
    for each in found:
        if isinstance(each, FieldError):
            answers.setdefault(422, {_FIELD_ERRORS: []})[_FIELD_ERRORS].append(each)
        else:
            answers.setdefault(each.status, {_PROBLEMS: []})[_PROBLEMS].append(each)
    return answers


def declared(*parts: Responses) -> Responses:
    """Merge several declarations."""
    whole: Responses = {}
    for part in parts:
        for status, of in part.items():
            there = whole.setdefault(status, {})
            for name, value in of.items():
                there[name] = [*there.get(name, []), *value] if isinstance(value, list) else value
    return whole


def links(status: int, parameter: str, where: str, *operations: str) -> Responses:
    """Declare links from a response to operations, with the location of the value of their parameter."""
    return {status: {"links": {id_: {"operationId": id_, "parameters": {parameter: where}} for id_ in operations}}}


def text(media: str, description: str, **examples: str) -> Responses:
    """Declare a response that is not JSON."""
    values = {name: {"value": value} for name, value in examples.items()}
    return {200: {"content": {media: {"schema": {"description": description}, "examples": values}}}}


def headers(*names: str) -> dict[str, Any]:
    """Return the headers of a response."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def rendered(answers: Responses, success: int, limits: Sequence[str] = ()) -> Responses:
    """Return the declared responses in the format of the document, by status, including `success`.

    `limits` are headers of all of them.
    """
    found = {status: _rendered(status, of, limits) for status, of in {success: {}, **answers}.items()}
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def _rendered(status: int | str, answer: dict[str, Any], limits: Sequence[str]) -> dict[str, Any]:
    if _FIELD_ERRORS in answer:
        return _with_headers(invalid(answer[_FIELD_ERRORS]), limits)
    if _PROBLEMS not in answer:
        described = {"description": DESCRIPTIONS[int(status)], "headers": headers(), **answer}
        return _with_headers(described, limits)
    family: list[type[Problem]] = list(dict.fromkeys(answer[_PROBLEMS]))
    if any(issubclass(problem, Conflict) for problem in family):
        return _with_headers(problem_answer(*(problem() for problem in family)), limits)
    return {"$ref": f"#/components/responses/{family[0].__name__}"}


def _with_headers(answer: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {**answer, "headers": {**answer["headers"], **headers(*names)}}


def problem_answer(*found: Problem) -> dict[str, Any]:
    """Describe the problems with the same status as one response."""
    description = "; ".join(f"`{problem.code}`: {_words(problem)}" for problem in found)
    examples = {problem.code: {"errors": problem.errors()} for problem in found}
    names = [*found[0].headers, *(LIMITED if isinstance(found[0], Unauthenticated | RateLimited) else ())]
    return {"description": description, "headers": headers(*names), "content": _errors(examples)}


def invalid(field_errors: Iterable[FieldError]) -> dict[str, Any]:
    """Describe the response to an invalid request."""
    description = "`validation.*`: the request is well-formed but not valid; all its errors are listed at once"
    examples = {"validation": {"errors": Invalid(field_errors).errors()}}
    return {"description": description, "headers": headers(), "content": _errors(examples)}


def _words(problem: Problem) -> str:
    """Return the docstring of a problem's class, without the reference to an RFC."""
    words = (type(problem).__doc__ or "").partition(".\n")[0].partition(" (RFC")[0].rstrip(".")
    return words[0].lower() + words[1:]


def _errors(examples: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: {"value": value} for name, value in examples.items()}
    return {JSON: {"schema": {"$ref": "#/components/schemas/Errors"}, "examples": shown}}


def paragraphs(docstring: str | None) -> tuple[str, str]:
    """Split the docstring of an endpoint into the summary and the description of the operation."""
    summary, _, rest = (docstring or "").strip().partition("\n")
    return summary.rstrip("."), "\n\n".join(_unwrapped(rest))


def _unwrapped(text_: str) -> Iterator[str]:
    for paragraph in text_.split("\n\n"):
        if words := " ".join(paragraph.split()):
            yield words
