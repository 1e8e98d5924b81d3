"""What callers send where the framework's models do not reach: who is to be notified, numbers in a query, words."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tocsin.errors import FieldError, NotFound
from tocsin.formats import wrong_ids
from tocsin.ids import MAX_ID, parsed_uuid
from tocsin.validation import among, field_error

MAX_RECIPIENTS = 10_000
MAX_MESSAGE_LENGTH = 512

_INTEGER = re.compile(r"-?[0-9]+")
_MAX_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Notify:
    """Whom a caller names: ids of users and of teams, as given, and who is excepted.

    One that `skips` goes on without those whom nobody knows.
    """

    users: list[int]
    teams: list[int]
    excepted: list[int]
    skips: bool


def notify_of(
    body: Mapping[str, Any], field_errors: list[FieldError], prefix: str = "", *, may_except: bool = True
) -> Notify:
    """Return the recipients in `notify`; what is wrong with them is added to `field_errors`.

    Who `may_except` may also say who is left out, and what becomes of ids that nobody knows.
    """
    notify, path = body.get("notify", {}), f"{prefix}notify"
    if not isinstance(notify, dict):
        field_errors.append(field_error(path, "object", "must be an object"))
        return Notify([], [], [], skips=False)
    before = len(field_errors)
    names = ("users", "teams", "except") if may_except else ("users", "teams")
    if sum(len(notify[name]) for name in names if isinstance(notify.get(name), list)) > MAX_RECIPIENTS:
        field_errors.append(
            field_error(path, "array_between", f"may have at most {MAX_RECIPIENTS} ids in {', '.join(names)}")
        )
        return Notify([], [], [], skips=True)
    users, teams, *rest = (ids_of(notify, name, field_errors, f"{path}.") for name in names)
    excepted = rest[0] if rest else []
    skips = may_except and _skips(notify, path, field_errors)
    if not users and not teams and len(field_errors) == before:
        field_errors += [
            field_error(f"{path}.{name}", "required_without", f"is required where {path}.{other} is absent or empty")
            for name, other in (("users", "teams"), ("teams", "users"))
        ]
    return Notify(users, teams, excepted, skips)


def _skips(notify: Mapping[str, Any], path: str, field_errors: list[FieldError]) -> bool:
    given = notify.get("unknown")
    if given not in {None, "refuse", "skip"} if isinstance(given, str | None) else True:
        field_errors.append(field_error(f"{path}.unknown", "in", "must be refuse or skip"))
    return bool(given == "skip")


def message_of(body: Mapping[str, Any], field_errors: list[FieldError]) -> str:
    """Return the `message` without the white space around it; what is wrong with it is added to `field_errors`."""
    message = body.get("message")
    if message is None:
        field_errors.append(FieldError("message", "required", "The message field is required."))
    elif not isinstance(message, str):
        field_errors.append(FieldError("message", "string", "The message field must be a string."))
    elif not message.strip():
        field_errors.append(FieldError("message", "required", "The message field is required."))
    elif len(message.strip()) > MAX_MESSAGE_LENGTH:
        field_errors.append(
            FieldError(
                "message", "string_between", f"The message field must have 1 to {MAX_MESSAGE_LENGTH} characters."
            )
        )
    else:
        return message.strip()
    return ""


def number_of(
    query: Mapping[str, str], name: str, span: tuple[int, int], default: int, field_errors: list[FieldError]
) -> int:
    """Return an integer of the query within `span`; what is wrong with it is added to `field_errors`."""
    text = query.get(name)
    if text is None:
        return default
    if not _INTEGER.fullmatch(text):
        field_errors.append(FieldError(name, "integer", f"The {name} field must be an integer."))
    elif len(text) > _MAX_DIGITS or not span[0] <= int(text) <= span[1]:
        field_errors.append(
            FieldError(name, "numeric_between", f"The {name} field must be between {span[0]} and {span[1]}.")
        )
    else:
        return int(text)
    return default


def ids_of(body: Mapping[str, Any], name: str, field_errors: list[FieldError], prefix: str = "") -> list[int]:
    """Return the ids in a field, none where it is left out; what is wrong with it is added to `field_errors`."""
    ids, field = body.get(name, []), f"{prefix}{name}"
    if not isinstance(ids, list):
        field_errors.append(field_error(field, "array", "must be an array"))
        return []
    for position, wrong in wrong_ids(ids) if ids else ():
        field_errors.append(among(field_errors, f"{field}.{position}", *wrong))
    return ids


def known_id(text: str) -> int:
    """Return the id of a user or team in a path; anything else names nothing."""
    field_errors: list[FieldError] = []
    id_ = number_of({"id": text}, "id", (1, MAX_ID), 0, field_errors)
    if field_errors:
        raise NotFound
    return id_


def uuid_of(body: Mapping[str, Any], name: str, field_errors: list[FieldError]) -> UUID | None:
    """Return the UUID in a field, None where it is left out; what is wrong with it is added to `field_errors`."""
    given = body.get(name)
    if given is None:
        return None
    found = parsed_uuid(given)
    if found is None:
        field_errors.append(field_error(name, "uuid", "must be a UUID"))
    return found


def uuids_of(body: Mapping[str, Any], name: str, most: int, field_errors: list[FieldError]) -> list[UUID] | None:
    """Return the 1 to `most` UUIDs in a field, None where it is left out."""
    given = body.get(name)
    if given is None:
        return None
    if not isinstance(given, list):
        field_errors.append(field_error(name, "array", "must be an array"))
        return []
    if not 1 <= len(given) <= most:
        field_errors.append(field_error(name, "array_between", f"must have 1 to {most} entries"))
        return []
    found = [parsed_uuid(each) for each in given]
    field_errors += [
        field_error(f"{name}.{position}", "uuid", "must be a UUID") for position, id_ in enumerate(found) if id_ is None
    ]
    return [id_ for id_ in found if id_]


def id_of(text: str) -> UUID:
    """Return the UUID in a path; anything else names nothing."""
    try:
        id_ = UUID(text)
    except ValueError:
        raise NotFound from None
    if str(id_) != text.lower():
        raise NotFound
    return id_
