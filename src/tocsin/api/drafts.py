"""Events as producers post them: each checked as a whole, all its faults at once."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from tocsin.api.requests import MAX_RECIPIENTS, Notify, ids_of, notify_of, uuid_of
from tocsin.auth.claims import ServiceCaller
from tocsin.catalogue import Catalogue, Checked
from tocsin.errors import FieldError, Invalid
from tocsin.events import Draft
from tocsin.notifications import future_of
from tocsin.resolutions import KEY, How, Resolution
from tocsin.validation import field_error, under

MAX_KEY_LENGTH = 255
"""Characters of the longest key of a service's own."""

MAX_SUBJECTS = 20
"""How many subjects an event may name beside those in its data."""

_SUBJECT = re.compile(r"[a-z][a-z0-9_]{0,31}:\S(.{0,253}\S)?")


@dataclass(frozen=True, slots=True)
class Posted:
    """One event of a request: who is to be notified, what is wrong with it, and the draft where nothing is."""

    notify: Notify
    field_errors: list[FieldError]
    draft: Draft | None


def posted(body: Any, service: ServiceCaller, catalogue: Catalogue, prefix: str = "") -> Posted:
    """Check one event; `prefix` is its path in the request (`events.17.`)."""
    if not isinstance(body, dict):
        nobody = Notify([], [], [], skips=True)
        return Posted(nobody, [field_error(prefix.rstrip("."), "object", "must be an object")], None)
    field_errors: list[FieldError] = []
    checked = _checked(body, catalogue, field_errors)
    about, key = _about(body.get("about"), field_errors), _key(body.get("key"), field_errors)
    deliver_at, id_ = future_of(body.get("deliver_at"), "deliver_at", field_errors), uuid_of(body, "id", field_errors)
    field_errors = [under(prefix, found) for found in field_errors] if prefix else field_errors
    notify = notify_of(body, field_errors, prefix)
    if field_errors or checked is None:
        return Posted(notify, field_errors, None)
    draft = Draft(
        checked,
        notify.users,
        notify.teams,
        service.name,
        service.company_id,
        about=about,
        excepted=notify.excepted,
        skips=notify.skips,
        deliver_at=deliver_at,
        key=key,
        id=id_,
        digest=_digest(body) if id_ else None,
    )
    return Posted(notify, [], draft)


def resolution_of(body: Mapping[str, Any], service: ServiceCaller, field_errors: list[FieldError]) -> Resolution | None:
    """Return what is asked to be settled; what is wrong with it is added to `field_errors`."""
    subject, how = _subject(body.get("about"), field_errors), _how(body.get("as"), field_errors)
    users = body.get("users")
    if users is not None and how == "erased":
        field_errors.append(field_error("users", "prohibited", "cannot be combined with erased"))
    if isinstance(users, list) and len(users) > MAX_RECIPIENTS:
        field_errors.append(field_error("users", "array_between", f"may name at most {MAX_RECIPIENTS} users"))
    elif users is not None:
        users = ids_of(body, "users", field_errors)
    if field_errors or subject is None or how is None:
        return None
    return Resolution(subject, how, users, service.name, service.company_id)


def _subject(given: Any, field_errors: list[FieldError]) -> str | None:
    if given is None:
        field_errors.append(field_error("about", "required", "is required"))
    elif not isinstance(given, str):
        field_errors.append(field_error("about", "string", "must be a string"))
    elif (subject := subject_of(given)) is None:
        field_errors.append(
            field_error("about", "regex", "must be a subject such as lead:220f5f6e-e30f-4c5f-8db5-44e345f8e568")
        )
    else:
        return subject
    return None


def _how(given: Any, field_errors: list[FieldError]) -> How | None:
    if given is None:
        field_errors.append(field_error("as", "required", "is required"))
    for how in get_args(How):
        if given == how:
            return cast("How", how)
    if given is not None:
        field_errors.append(field_error("as", "in", f"must be {', '.join(get_args(How))}"))
    return None


def subject_of(text: Any) -> str | None:
    """Return a subject as it is kept, or None for what is none: all but keys are the same in upper and lower case."""
    if not isinstance(text, str):
        return None
    if text.startswith(KEY):
        return text if 1 <= len(text) - len(KEY) <= MAX_KEY_LENGTH else None
    return text.lower() if _SUBJECT.fullmatch(text) else None


def _checked(body: Mapping[str, Any], catalogue: Catalogue, field_errors: list[FieldError]) -> Checked | None:
    try:
        return catalogue.check(body.get("type"), body.get("data"), body.get("params"))
    except Invalid as invalid:
        field_errors += invalid.field_errors
        return None


def _about(given: Any, field_errors: list[FieldError]) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list):
        field_errors.append(field_error("about", "array", "must be an array"))
        return []
    if len(given) > MAX_SUBJECTS:
        field_errors.append(field_error("about", "array_between", f"must have at most {MAX_SUBJECTS} entries"))
        return []
    found = []
    for position, text in enumerate(given):
        subject = subject_of(text)
        if not isinstance(text, str):
            field_errors.append(field_error(f"about.{position}", "string", "must be a string"))
        elif subject is None or subject.startswith(KEY):
            field_errors.append(
                field_error(f"about.{position}", "regex", "must be a subject such as order:42; `key` is taken")
            )
        else:
            found.append(subject)
    return found


def _key(given: Any, field_errors: list[FieldError]) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str):
        field_errors.append(field_error("key", "string", "must be a string"))
    elif not 1 <= len(given) <= MAX_KEY_LENGTH:
        field_errors.append(field_error("key", "string_between", f"must have 1 to {MAX_KEY_LENGTH} characters"))
    else:
        return given
    return None


def _digest(body: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
