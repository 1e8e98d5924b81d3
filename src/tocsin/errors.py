"""Everything that can go wrong for a caller, as a family of exceptions.

    Problem                     one answer in the contract's form
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
    ├── Invalid             422 validation.*, all faults at once
    ├── RateLimited         429 rate_limited
    ├── HeadTooLarge        431 head_too_large
    ├── InternalError       500 error
    ├── Unavailable         503 unavailable, the database cannot do it now
    │   └── Locked                               a lock that another session holds was not released in time
    └── Overrun             503 unavailable, the database could not do it in the time that it may take

Raised anywhere, turned into an answer in `api/problems.py` alone. A `Refusal` is not for a caller: it is the one
sentence with which a command declines to start.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self


class Refusal(Exception):  # noqa: N818 - not an internal error
    """A command cannot continue; the message tells the operator why, in one sentence."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with a request.

    `field` is the dotted path of the value at fault (`notify.users.1`), `code` a validation code without its prefix.
    """

    field: str
    code: str
    message: str


UNREPORTED = FieldError("", "", "")
"""Stands for a further error after `MAX_FIELD_ERRORS` are reported: it is only counted."""

MAX_FIELD_ERRORS = 100
"""Maximum errors of a request that are reported."""

MAX_ERRORS_BYTES = 60_000
"""Bytes of their entries in an answer."""


class Problem(Exception):  # noqa: N818 - the answers have their own names
    """One answer that is not a success: its HTTP status, its stable code, and a sentence for the developer."""

    status = 500
    code = "error"
    message = "An internal error occurred."

    def __init__(self, message: str | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message or self.message)
        self.headers = dict(headers or {})

    def errors(self) -> list[dict[str, str]]:
        """Return the entries of the answer's `errors`."""
        return [{"message": str(self), "code": self.code}]

    def answer(self) -> dict[str, object]:
        """Return the body of the answer."""
        return {"errors": self.errors()}


class Malformed(Problem):
    """The body is not JSON, or JSON that no two readers would read alike."""

    status = 400
    code = "malformed"
    message = "The body is not valid JSON."


class Unauthenticated(Problem):
    """No, invalid or expired credentials (RFC 6750, section 3)."""

    status = 401
    code = "unauthenticated"
    message = "A valid bearer token is required."

    def __init__(self, message: str | None = None, *, presented: bool = False) -> None:
        challenge = 'Bearer error="invalid_token"' if presented else "Bearer"
        super().__init__(message, headers={"WWW-Authenticate": challenge})

    @classmethod
    def unknown(cls, user_id: int) -> Self:
        """Return the refusal of a valid token whose user is gone, or was never there."""
        return cls(f"The token is valid, but user {user_id} is not in the directory.", presented=True)

    @classmethod
    def inactive(cls, user_id: int) -> Self:
        """Return the refusal of a valid token whose user is deactivated."""
        return cls(f"The token is valid, but user {user_id} is not active.", presented=True)


class Unauthorized(Problem):
    """Valid credentials that may not do this (RFC 6750, section 3.1)."""

    status = 403
    code = "unauthorized"
    message = "The token does not permit this operation."

    def __init__(self, message: str | None = None, *, scope: str | None = None) -> None:
        challenge = 'Bearer error="insufficient_scope"' + (f', scope="{scope}"' if scope else "")
        super().__init__(message, headers={"WWW-Authenticate": challenge})


class NotFound(Problem):
    """No such path, or nothing with that id for this caller."""

    status = 404
    code = "not_found"
    message = "The resource does not exist."


class MethodNotAllowed(Problem):
    """The path exists, for other methods."""

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
    """What is asked for contradicts what was asked for, or done, before."""

    status = 409


class KeyReused(Conflict):
    """An `Idempotency-Key` used again with another body."""

    code = "conflict.key_reused"
    message = "This Idempotency-Key was used with another body."


class IdReused(Conflict):
    """An event's `id` used again for another event."""

    code = "conflict.id_reused"
    message = "This id belongs to another event."


class TooLate(Conflict):
    """A cancellation after delivery."""

    code = "conflict.too_late"
    message = "The event was delivered before it could be cancelled."


class Missing(Problem):
    """The caller's own notification, deleted."""

    status = 410
    code = "missing"
    message = "This notification was deleted."


class TooLarge(Problem):
    """The body is over its limit."""

    status = 413
    code = "too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body may have at most {limit} bytes.")


class ContentType(Problem):
    """A body that is not declared as JSON."""

    status = 415
    code = "content_type"
    message = "The body must be sent with Content-Type: application/json."


class Invalid(Problem):
    """The request is understood and wrong: all its faults at once."""

    status = 422
    code = "validation"

    def __init__(self, field_errors: Iterable[FieldError]) -> None:
        super().__init__("The request is not valid.")
        self.field_errors = list(field_errors)

    def errors(self) -> list[dict[str, str]]:
        """Return one entry per fault, in the order of the request: the first of them, as many as an answer holds."""
        entries, size = [], 0
        for field_error in in_order(self.field_errors)[:MAX_FIELD_ERRORS]:
            entry = {
                "message": field_error.message,
                "code": f"validation.{field_error.code}",
                "field": field_error.field,
            }
            size += sum(len(json.dumps(value)) for value in entry.values()) + len('{"message":,"code":,"field":},')
            if size > MAX_ERRORS_BYTES:
                break
            entries.append(entry)
        return entries

    def answer(self) -> dict[str, object]:
        """Return the body of the answer, with how many faults are not told, if any."""
        errors = self.errors()
        more = len(self.field_errors) - len(errors)
        return {"errors": errors, "more": more} if more else {"errors": errors}


def in_order(field_errors: Iterable[FieldError]) -> list[FieldError]:
    """Return faults in the order of the request: fields as they were found, entries of an array by their positions."""
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
    """More than `limit` within a minute; the next in `wait` seconds (RFC 6585; the headers of the draft RateLimit)."""

    status = 429
    code = "rate_limited"

    def __init__(self, limit: int, wait: int) -> None:
        headers = {
            "Retry-After": str(wait),
            "RateLimit-Limit": str(limit),
            "RateLimit-Remaining": "0",
            "RateLimit-Reset": str(wait),
        }
        super().__init__(f"Rate limit exceeded: {limit} requests per minute.", headers=headers)


class HeadTooLarge(Problem):
    """What stands before or behind a body is over its limit."""

    status = 431
    code = "head_too_large"
    message = "The request line and the headers may have at most 65536 bytes, in at most 256 headers."


class InternalError(Problem):
    """An internal error; `id` is also in the log."""

    def __init__(self, request_id: str) -> None:
        super().__init__()
        self.request_id = request_id

    def errors(self) -> list[dict[str, str]]:
        """Return the one entry, with the id under which the log tells more."""
        return [{"message": str(self), "code": self.code, "id": self.request_id}]


class Unavailable(Problem):
    """What is needed cannot be reached, mostly the database; nothing was done that will not be done again.

    `reason` is for operators: what keeps us from it, in words that tell no secret.
    """

    status = 503
    code = "unavailable"
    message = "The database cannot be reached. Please try again."

    def __init__(self, message: str | None = None, *, retry_after: int = 1, reason: str = "") -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})
        self.reason = reason or str(self).partition(".")[0]


class Locked(Unavailable):
    """A lock that another session holds was not released in time: what needs no such lock can be done."""


class Overrun(Problem):
    """A statement that ran into its limit of time while the database is fine: the request asks too much of it."""

    status = 503
    code = "unavailable"
    message = "The request takes the database too long. Ask for less in one request, or try again later."
    reason = "a statement timed out"

    def __init__(self, message: str | None = None, *, retry_after: int = 60) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})
