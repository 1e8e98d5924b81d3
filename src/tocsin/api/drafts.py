"""Validation of posted events. All errors of an event are reported at once."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tocsin.acceptance import Draft
from tocsin.api.requests import NewEvent, named_in
from tocsin.auth.claims import ServiceCaller
from tocsin.catalogue import Catalogue, Checked
from tocsin.errors import FieldError, Invalid
from tocsin.strict_json import parse_object
from tocsin.validation import field_error, under


@dataclass(frozen=True, slots=True)
class Posted:
    """One event of a request: a draft if it is valid, otherwise its errors.

    `users` and `teams` are the recipients as posted; they are empty if the event skips unknown ids. `unfilled` are the
    users of its data, by field, that the directory fills in.
    """

    draft: Draft | None
    field_errors: list[FieldError]
    users: Sequence[Any] = ()
    teams: Sequence[Any] = ()
    unfilled: Mapping[str, int] = field(default_factory=dict)


def posted(body: Any, service: ServiceCaller, catalogue: Catalogue, prefix: str = "") -> Posted:
    """Validate one event. `prefix` is its path in the request (`events.17.`)."""
    if not isinstance(body, dict):
        return Posted(None, [field_error(prefix.rstrip("."), "object", "must be an object")])
    field_errors: list[FieldError] = []
    checked = _checked(body, catalogue, field_errors)
    event = NewEvent.checked(body, field_errors)
    if event is None or checked is None:
        found = [under(prefix, each) for each in field_errors] if prefix else field_errors
        return Posted(None, found, *_named_in(body), catalogue.unfilled(body.get("type"), body.get("data")))
    to = event.notify
    skips = to.unknown == "skip"
    draft = Draft(
        checked,
        to.users,
        to.teams,
        service.name,
        service.company_id,
        about=event.about or (),
        excepted=to.except_,
        skips=skips,
        deliver_at=event.deliver_at,
        key=event.key,
        id=event.id,
        digest=_digest({**body, "id": str(event.id)}) if event.id else None,
    )
    users, teams = ((), ()) if skips else (to.users, to.teams)
    return Posted(draft, [], users, teams, checked.unfilled)


def draft_of(body: str, service: str, company_id: int | None, catalogue: Catalogue) -> Draft:
    """Return the draft of an event that an application posted by `tocsin.post`. Raises `Invalid` and `Malformed`."""
    caller = ServiceCaller(service, frozenset({"events:write"}), company_id, expires=0)
    found = posted(parse_object(body.encode()), caller, catalogue)
    if found.draft is None:
        raise Invalid(found.field_errors)
    return found.draft


def _checked(body: Mapping[str, Any], catalogue: Catalogue, field_errors: list[FieldError]) -> Checked | None:
    try:
        return catalogue.check(body.get("type"), body.get("data"), body.get("params"))
    except Invalid as invalid:
        field_errors += invalid.field_errors
        return None


def _named_in(body: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    notify = body.get("notify")
    skips = isinstance(notify, dict) and notify.get("unknown") == "skip"
    return ((), ()) if skips else named_in(body)


def _digest(body: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
