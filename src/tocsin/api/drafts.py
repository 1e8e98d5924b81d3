"""Events as producers post them: each checked as a whole, all its faults at once."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from tocsin.api.requests import MAX_RECIPIENTS, Notify, ids_of, notify_of, uuid_of
from tocsin.auth.tokens import Service
from tocsin.catalogue import Catalogue, Checked
from tocsin.errors import Fault, Invalid
from tocsin.events import Draft
from tocsin.notifications import future_of
from tocsin.resolutions import KEY, How, Resolution
from tocsin.validation import fault, under

MAX_KEY_LENGTH = 255
"""Characters of the longest key of a service's own."""

MAX_SUBJECTS = 20
"""How many subjects an event may name beside those in its data."""

_SUBJECT = re.compile(r"[a-z][a-z0-9_]{0,31}:\S(.{0,253}\S)?")


@dataclass(frozen=True, slots=True)
class Posted:
    """One event of a request: who is to be notified, what is wrong with it, and the draft where nothing is."""

    notify: Notify
    faults: list[Fault]
    draft: Draft | None


def posted(body: Any, service: Service, catalogue: Catalogue, prefix: str = "") -> Posted:
    """Check one event; `prefix` is its path in the request (`events.17.`)."""
    if not isinstance(body, dict):
        nobody = Notify([], [], [], skips=True)
        return Posted(nobody, [fault(prefix.rstrip("."), "object", "must be an object")], None)
    faults: list[Fault] = []
    checked = _checked(body, catalogue, faults)
    about, key = _about(body.get("about"), faults), _key(body.get("key"), faults)
    deliver_at, id_ = future_of(body.get("deliver_at"), "deliver_at", faults), uuid_of(body, "id", faults)
    faults = [under(prefix, found) for found in faults] if prefix else faults
    notify = notify_of(body, faults, prefix)
    if faults or checked is None:
        return Posted(notify, faults, None)
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


def resolution_of(body: Mapping[str, Any], service: Service, faults: list[Fault]) -> Resolution | None:
    """Return what is asked to be settled; what is wrong with it is added to `faults`."""
    subject, how = _subject(body.get("about"), faults), _how(body.get("as"), faults)
    users = body.get("users")
    if users is not None and how == "erased":
        faults.append(fault("users", "prohibited", "does not go together with erased"))
    if isinstance(users, list) and len(users) > MAX_RECIPIENTS:
        faults.append(fault("users", "array_between", f"may name at most {MAX_RECIPIENTS} users"))
    elif users is not None:
        users = ids_of(body, "users", faults)
    if faults or subject is None or how is None:
        return None
    return Resolution(subject, how, users, service.name, service.company_id)


def _subject(given: Any, faults: list[Fault]) -> str | None:
    if given is None:
        faults.append(fault("about", "required", "is required"))
    elif not isinstance(given, str):
        faults.append(fault("about", "string", "must be a string"))
    elif (subject := subject_of(given)) is None:
        faults.append(fault("about", "regex", "must be a subject such as lead:220f5f6e-e30f-4c5f-8db5-44e345f8e568"))
    else:
        return subject
    return None


def _how(given: Any, faults: list[Fault]) -> How | None:
    if given is None:
        faults.append(fault("as", "required", "is required"))
    for how in get_args(How):
        if given == how:
            return cast("How", how)
    if given is not None:
        faults.append(fault("as", "in", f"must be {', '.join(get_args(How))}"))
    return None


def subject_of(text: Any) -> str | None:
    """Return a subject as it is kept, or None for what is none: all but keys are the same in upper and lower case."""
    if not isinstance(text, str):
        return None
    if text.startswith(KEY):
        return text if 1 <= len(text) - len(KEY) <= MAX_KEY_LENGTH else None
    return text.lower() if _SUBJECT.fullmatch(text) else None


def _checked(body: Mapping[str, Any], catalogue: Catalogue, faults: list[Fault]) -> Checked | None:
    try:
        return catalogue.check(body.get("type"), body.get("data"), body.get("params"))
    except Invalid as invalid:
        faults += invalid.faults
        return None


def _about(given: Any, faults: list[Fault]) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list):
        faults.append(fault("about", "array", "must be an array"))
        return []
    if len(given) > MAX_SUBJECTS:
        faults.append(fault("about", "array_between", f"must have at most {MAX_SUBJECTS} entries"))
        return []
    found = []
    for position, text in enumerate(given):
        subject = subject_of(text)
        if not isinstance(text, str):
            faults.append(fault(f"about.{position}", "string", "must be a string"))
        elif subject is None or subject.startswith(KEY):
            faults.append(fault(f"about.{position}", "regex", "must be a subject such as order:42; `key` is taken"))
        else:
            found.append(subject)
    return found


def _key(given: Any, faults: list[Fault]) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str):
        faults.append(fault("key", "string", "must be a string"))
    elif not 1 <= len(given) <= MAX_KEY_LENGTH:
        faults.append(fault("key", "string_between", f"must have 1 to {MAX_KEY_LENGTH} characters"))
    else:
        return given
    return None


def _digest(body: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
