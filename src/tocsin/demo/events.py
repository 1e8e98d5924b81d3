"""Events of the demo: the sample of a kind with varied values."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

from tocsin.catalogue import Kind
from tocsin.formats import User


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the dealership and its customer."""

    id: str
    number: int
    path: str
    first_name: str
    last_name: str


CASES = (
    Case("65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88", 6, "Car sale", "Mette", "Sørensen"),
    Case("da79fcb1-4fc3-3250-9206-e38eff52bf1b", 17, "Service", "Jürgen", "Weiß"),
    Case("cd0e2c00-2d73-4cf9-a820-f34a5c8557c3", 23, "Leasing", "Amina", "Haddad"),
    Case("eab4f954-28d8-3e9a-b2d0-5e819fccfefd", 41, "Trade-in", "Oscar", "Lindqvist"),
)

COLLEAGUE_MESSAGES = (
    "Could you have a look before noon?",
    "They would like a second test drive on Friday.",
    "The trade-in is worth more than we thought, see page 2.",
    "Please call back today, they are about to sign.",
)
CUSTOMER_MESSAGES = (
    "When can I pick the car up?",
    "Is the blue one still there? We would like to see it on Saturday.",
    "I have signed the contract and attached it.",
)
ACTIVITIES = ("Test drive", "Phone call", "Walk-around video", "Visit")

WORDS: Mapping[tuple[str, str], Sequence[str]] = {
    ("lead_type", "name"): ("Test drive", "Trade-in", "Leasing offer", "Call back"),
    ("email", "subject"): ("Sale contract", "Question about the trade-in", "Delivery date"),
    ("campaign", "name"): ("Winter tyres", "Service reminder", "Open house on Saturday"),
    ("rank", "name"): ("Best salesman", "Most test drives", "Fastest reply"),
    ("target", "title"): ("Car sale", "Test drives", "Calls"),
    ("target", "count"): ("day", "week", "month"),
    ("level", "name"): ("level_2", "level_3", "level_4"),
    ("badge", "name"): ("the_seller", "the_early_bird", "the_closer"),
}
"""Values for fields of objects in the data of events."""


def event_of(kind: Kind, sample: Mapping[str, Any], actor: User, dice: Random) -> dict[str, Any]:
    """Return an event like the sample of its kind, by `actor`, with another case and other texts."""
    event = deepcopy(dict(sample))
    data, params = event.get("data", {}), event.get("params", {})
    case = dice.choice(CASES)
    for name, part in data.items():
        if isinstance(part, dict):
            data[name] = _varied(name, part, dice)
    known = {
        **dict.fromkeys(kind.directory, _shown(actor)),
        "case": {"id": case.id, "case_number": case.number, "relations_path_name": case.path},
        "contact": {**data.get("contact", {}), "first_name": case.first_name, "last_name": case.last_name},
    }
    data.update({name: value for name, value in known.items() if name in data})
    said = {
        "contact": f"{case.first_name} {case.last_name}",
        "accepted_by": f"{actor.first_name} {actor.last_name}",
        "activities": dice.sample(ACTIVITIES, len(params.get("activities", []))),
        "body": dice.choice(CUSTOMER_MESSAGES if "contact" in data else COLLEAGUE_MESSAGES),
    }
    params.update({name: words for name, words in said.items() if name in params})
    return event


def _varied(name: str, part: Mapping[str, Any], dice: Random) -> dict[str, Any]:
    words = {field: dice.choice(WORDS[name, field]) for field in part if (name, field) in WORDS}
    new = {"id": str(UUID(int=dice.getrandbits(128), version=4))} if "id" in part else {}
    return {**part, **new, **words}


def _shown(actor: User) -> dict[str, Any]:
    return {"id": actor.id, "first_name": actor.first_name, "last_name": actor.last_name, "profile_picture": None}
