"""What callers send where the framework's models do not reach: who is to be notified, numbers in a query, words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tocsin.directory import LARGEST_ID
from tocsin.errors import Fault

MOST_RECIPIENTS = 10_000
LONGEST_MESSAGE = 512

_INTEGER = re.compile(r"-?[0-9]+")
_LONGEST = 20


@dataclass(frozen=True, slots=True)
class Notify:
    """Whom a caller names: ids of users and of teams, as given."""

    users: list[int]
    teams: list[int]


def notify_of(body: Mapping[str, Any], faults: list[Fault]) -> Notify:
    """Return the recipients in `notify`; what is wrong with them is added to `faults`."""
    notify = body.get("notify", {})
    if not isinstance(notify, dict):
        faults.append(Fault("notify", "object", "The notify field must be an object."))
        return Notify([], [])
    refuse_unserved(notify, ("except", "unknown"), faults, "notify.")
    before = len(faults)
    found = Notify(_ids_of(notify, "users", faults), _ids_of(notify, "teams", faults))
    if len(found.users) + len(found.teams) > MOST_RECIPIENTS:
        faults.append(
            Fault("notify", "array_between", f"The notify field may name at most {MOST_RECIPIENTS} users and teams.")
        )
        return Notify([], [])
    if not found.users and not found.teams and len(faults) == before:
        faults += [
            Fault(
                f"notify.{field}",
                "required_without",
                f"The notify.{field} field is required where notify.{other} is absent or empty.",
            )
            for field, other in (("users", "teams"), ("teams", "users"))
        ]
    return found


def refuse_unserved(body: Mapping[str, Any], names: Sequence[str], faults: list[Fault], prefix: str = "") -> None:
    """Add a fault for each field that this release does not serve: to ignore it would do what nobody asked for."""
    faults += [
        Fault(f"{prefix}{name}", "prohibited", f"The {prefix}{name} field is not served by this release.")
        for name in names
        if name in body
    ]


def message_of(body: Mapping[str, Any], faults: list[Fault]) -> str:
    """Return the `message` without the white space around it; what is wrong with it is added to `faults`."""
    message = body.get("message")
    if message is None:
        faults.append(Fault("message", "required", "The message field is required."))
    elif not isinstance(message, str):
        faults.append(Fault("message", "string", "The message field must be a string."))
    elif not message.strip():
        faults.append(Fault("message", "required", "The message field is required."))
    elif len(message.strip()) > LONGEST_MESSAGE:
        faults.append(
            Fault("message", "string_between", f"The message field must have 1 to {LONGEST_MESSAGE} characters.")
        )
    else:
        return message.strip()
    return ""


def number_of(query: Mapping[str, str], name: str, span: tuple[int, int], default: int, faults: list[Fault]) -> int:
    """Return an integer of the query within `span`; what is wrong with it is added to `faults`."""
    text = query.get(name)
    if text is None:
        return default
    if not _INTEGER.fullmatch(text):
        faults.append(Fault(name, "integer", f"The {name} field must be an integer."))
    elif len(text) > _LONGEST or not span[0] <= int(text) <= span[1]:
        faults.append(Fault(name, "numeric_between", f"The {name} field must be between {span[0]} and {span[1]}."))
    else:
        return int(text)
    return default


def _ids_of(notify: Mapping[str, Any], name: str, faults: list[Fault]) -> list[int]:
    field = f"notify.{name}"
    ids = notify.get(name, [])
    if not isinstance(ids, list):
        faults.append(Fault(field, "array", f"The {field} field must be an array."))
        return []
    for position, id_ in enumerate(ids):
        if type(id_) is not int:
            faults.append(Fault(f"{field}.{position}", "integer", f"The {field}.{position} field must be an integer."))
        elif not 1 <= id_ <= LARGEST_ID:
            faults.append(
                Fault(
                    f"{field}.{position}",
                    "numeric_between",
                    f"The {field}.{position} field must be between 1 and {LARGEST_ID}.",
                )
            )
    return ids
