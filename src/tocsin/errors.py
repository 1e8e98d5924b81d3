"""The errors that the API returns, as a hierarchy of exceptions.

    Problem                 one error response
    ├── Malformed           400 malformed
    ├── Unauthenticated     401 unauthenticated
    ├── Unauthorized        403 unauthorized
    ├── NotFound            404 not_found
    ├── MethodNotAllowed    405 method_not_allowed
    ├── Timeout             408 timeout
    ├── Conflict            409 conflict.key_reused, conflict.id_reused, conflict.too_late
    ├── Missing             410 missing
    ├── TooLarge            413 too_large
    ├── ContentType         415 content_type
    ├── Invalid             422 validation.*, all errors at once
    ├── RateLimited         429 rate_limited
    ├── HeadTooLarge        431 head_too_large
    ├── InternalError       500 error
    ├── Unavailable         503 unavailable, the database is not available
    │   ├── ReadOnly        503 unavailable, this process is read-only
    │   ├── Overloaded      503 unavailable, more requests arrive than can be processed
    │   └── Locked          503 unavailable, a lock of another session was not released in time
    └── Overrun             503 unavailable, a statement exceeded its timeout

Any module can raise them; only `api/errors.py` converts them into responses. `Refusal` is not an error of the API:
its message tells the operator why a command cannot continue.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self


class Refusal(Exception):  # noqa: N818 - not an internal error
    """A command cannot continue; the message tells the operator why, in one sentence."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One validation error of a request.

    `field` is the dotted path of the invalid value (`notify.users.1`), `code` the validation code without its prefix.
    """

    field: str
    code: str
    message: str


UNREPORTED = FieldError("", "", "")
"""Placeholder for each error after the first `MAX_FIELD_ERRORS`: counted in `more`, without a message."""

MAX_FIELD_ERRORS = 100
"""Maximum number of errors in a response."""

MAX_ERRORS_BYTES = 60_000
"""Maximum size of these errors in bytes."""


class Problem(Exception):  # noqa: N818 - the answers have their own names
    """An error response: its HTTP status, its stable code, and a message for the developer."""

    status = 500
    code = "error"
    message = "An internal error occurred."

    def __init__(self, message: str | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message or self.message)
        self.headers = dict(headers or {})

    def errors(self) -> list[dict[str, str]]:
        """Return the entries of `errors` in the response."""
        return [{"message": str(self), "code": self.code}]

    def answer(self) -> dict[str, object]:
        """Return the body of the response."""
        return {"errors": self.errors()}


class Malformed(Problem):
    """The body is not JSON, or JSON that parsers interpret differently (duplicate names, large numbers)."""

    status = 400
    code = "malformed"
    message = "The body is not valid JSON."


class Unauthenticated(Problem):
    """Missing, invalid or expired credentials (RFC 6750, section 3)."""

    status = 401
    code = "unauthenticated"
    message = "A valid bearer token is required."

    def __init__(self, message: str | None = None, *, presented: bool = False) -> None:
        challenge = 'Bearer error="invalid_token"' if presented else "Bearer"
        super().__init__(message, headers={"WWW-Authenticate": challenge})

    @classmethod
    def unknown(cls, user_id: int) -> Self:
        """Return the error for a valid token of a user who does not exist or was erased."""
        return cls(f"The token is valid, but user {user_id} is not in the directory.", presented=True)

    @classmethod
    def inactive(cls, user_id: int) -> Self:
        """Return the error for a valid token of a deactivated user."""
        return cls(f"The token is valid, but user {user_id} is not active.", presented=True)


class Unauthorized(Problem):
    """Valid credentials without permission for this operation (RFC 6750, section 3.1)."""

    status = 403
    code = "unauthorized"
    message = "The token does not permit this operation."

    def __init__(self, message: str | None = None, *, scope: str | None = None) -> None:
        challenge = 'Bearer error="insufficient_scope"' + (f', scope="{scope}"' if scope else "")
        super().__init__(message, headers={"WWW-Authenticate": challenge})


class NotFound(Problem):
    """The path does not exist, or this caller has no access to an object with that id."""

    status = 404
    code = "not_found"
    message = "The resource does not exist."


class MethodNotAllowed(Problem):
    """The path does not support this method."""

    status = 405
    code = "method_not_allowed"
    message = "This path does not support that method."

    def __init__(self, allowed: Iterable[str]) -> None:
        super().__init__(headers={"Allow": ", ".join(sorted(allowed))})


class Timeout(Problem):
    """The head or the body of a request did not arrive in time; the connection is closed."""

    status = 408
    code = "timeout"
    message = "The body of the request did not arrive in time."


class Conflict(Problem):
    """The request conflicts with an earlier one."""

    status = 409


class KeyReused(Conflict):
    """An `Idempotency-Key` was used before with another body."""

    code = "conflict.key_reused"
    message = "This Idempotency-Key was used with another body."


class IdReused(Conflict):
    """The `id` belongs to another event."""

    code = "conflict.id_reused"
    message = "This id belongs to another event."


class TooLate(Conflict):
    """The event was delivered before the cancellation."""

    code = "conflict.too_late"
    message = "The event was delivered before it could be cancelled."


class Missing(Problem):
    """The caller deleted this notification."""

    status = 410
    code = "missing"
    message = "This notification was deleted."


class TooLarge(Problem):
    """The body exceeds its maximum size."""

    status = 413
    code = "too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body may have at most {limit} bytes.")


class ContentType(Problem):
    """The body is not declared as JSON, or is compressed."""

    status = 415
    code = "content_type"
    message = "The body must be sent with Content-Type: application/json."


class Invalid(Problem):
    """The request is well-formed but not valid. All errors are reported at once."""

    status = 422
    code = "validation"

    def __init__(self, field_errors: Iterable[FieldError], more: int = 0) -> None:
        super().__init__("The request is not valid.")
        self.field_errors = list(field_errors)
        self.more = more
        """The number of further errors, which were only counted."""

    def errors(self) -> list[dict[str, str]]:
        """Return one entry per error, in the order of the request, up to the limits of a response."""
        entries, size = [], 0
        for field_error in in_order(self.field_errors)[:MAX_FIELD_ERRORS]:
            entry = {
                "message": field_error.message,
                "code": f"validation.{field_error.code}",
                "field": field_error.field,
            }
            size += len(json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()) + len(",")
            if size > MAX_ERRORS_BYTES:
                break
            entries.append(entry)
        return entries

    def answer(self) -> dict[str, object]:
        """Return the body of the response. `more` is the number of errors that are left out, if there are any."""
        errors = self.errors()
        more = len(self.field_errors) + self.more - len(errors)
        return {"errors": errors, "more": more} if more else {"errors": errors}


def in_order(field_errors: Iterable[FieldError]) -> list[FieldError]:
    """Return errors in the order of the request: fields as they were found, entries of an array by their positions."""
    reported = [field_error for field_error in field_errors if field_error is not UNREPORTED]
    places: dict[str, int] = {}

    def place(field_error: FieldError) -> list[int]:
        found, path = [], ""
        for part in field_error.field.split("."):
            path = f"{path}.{part}"
            is_position = part.isascii() and part.isdigit() and len(part) < 10  # noqa: PLR2004 - no array is so long
            found.append(int(part) if is_position else places.setdefault(path, len(places)))
        return found

    return sorted(reported, key=place)


class RateLimited(Problem):
    """A rate limit is used up until its window ends, in `wait` seconds. The message says which limit."""

    status = 429
    code = "rate_limited"
    message = "Rate limit exceeded."

    def __init__(self, message: str | None = None, *, wait: int = 1) -> None:
        super().__init__(message, headers={"Retry-After": str(wait)})


class HeadTooLarge(Problem):
    """The request line, the headers or the trailers exceed their limit."""

    status = 431
    code = "head_too_large"
    message = "The request line and the headers may have at most 65536 bytes, in at most 256 headers."


class InternalError(Problem):
    """An internal error; `id` is also in the log."""

    def __init__(self, request_id: str) -> None:
        super().__init__()
        self.request_id = request_id

    def errors(self) -> list[dict[str, str]]:
        """Return the one entry, with the request id that is also in the log."""
        return [{"message": str(self), "code": self.code, "id": self.request_id}]


class Unavailable(Problem):
    """A required service, usually the database, is not available. Retry after `Retry-After` seconds.

    `reason` is for operators and contains no secrets.
    """

    status = 503
    code = "unavailable"
    message = "The database cannot be reached. Please try again."

    def __init__(self, message: str | None = None, *, retry_after: int = 1, reason: str = "") -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})
        self.reason = reason or str(self).partition(".")[0]


class ReadOnly(Unavailable):
    """This process is read-only. Another one accepts the request."""

    message = "This server is read-only. Please send this request to one that is not."


class Overloaded(Unavailable):
    """More requests arrive than can be processed."""

    message = "The service has more requests than it can process. Please try again."


class Locked(Unavailable):
    """A lock of another session was not released in time, or both waited for each other. Other requests still work."""

    message = "Another session of the database holds a lock that this needs. Please try again."


class Overrun(Problem):
    """A statement exceeded its timeout although the database works: the request is too expensive."""

    status = 503
    code = "unavailable"
    message = "The request took too long in the database. Request less data, or try again later."
    reason = "a statement timed out"

    def __init__(self, message: str | None = None, *, retry_after: int = 60) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})
