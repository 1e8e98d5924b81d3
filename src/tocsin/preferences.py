"""Preferences: of what, when and by which way a user is told, as the catalogue, the operator and they themselves say.

The inbox always has everything. What is decided here is whether, and when, a phone or a browser is told.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic_core import PydanticCustomError

from tocsin.catalogue import Catalogue
from tocsin.db.pool import Connection, Database, fetch, queries
from tocsin.errors import FieldError, Invalid, Unauthenticated
from tocsin.formats import is_time_zone
from tocsin.notifications import future_of, moment_of, time_of, to_json
from tocsin.preference_policy import NO_RULES, Rules, read_rules
from tocsin.pubsub import PubSub
from tocsin.push import deliveries
from tocsin.quiet_hours import QuietHours, windows_of
from tocsin.validation import among, field_error

Channel = Literal["push", "web_push"]

_SQL = queries("preferences")


@dataclass(frozen=True, slots=True)
class Send:
    """It may be sent now."""


@dataclass(frozen=True, slots=True)
class Muted:
    """It is not to be sent at all, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """It is to wait until a moment, in UTC, and why; it is decided anew then."""

    until: datetime
    reason: str


Decision = Send | Muted | Held

SEND = Send()


@dataclass(frozen=True, slots=True)
class Switches:
    """What is set for one kind: the ways by which it is told, and whether it breaks through pauses and quiet hours."""

    push: bool = True
    web_push: bool = True
    urgent: bool = False


SWITCHES = tuple(switch.name for switch in fields(Switches))
CHANNELS = ("push", "web_push")
"""What a user can switch for a kind; the inbox itself is always there."""

_USUAL = Switches()


async def load(store: Database | Connection, operator: "Operator", user_ids: Iterable[int]) -> dict[int, "Preferences"]:
    """Return the preferences of these users, of those there are; who chose nothing shares them with all alike."""
    rows = await fetch(store, _SQL["load"], list(user_ids))
    return {row["id"]: operator.preferences(_chosen(row["chosen"]), row["time_zone"]) for row in rows}


async def get(database: Database, operator: "Operator", user_id: int) -> "Preferences":
    """Return the preferences of a caller. Raises `Unauthenticated` where the user is gone or inactive."""
    return operator.preferences(*await _of_caller(database, user_id))


async def patch(
    database: Database, pubsub: PubSub, operator: "Operator", user_id: int, body: Mapping[str, Any]
) -> "Preferences":
    """Merge what a caller changes into what they chose before (RFC 7396), and return what that makes.

    What is held for them is decided again at once. Raises `Invalid` with all faults, and `Unauthenticated` where the
    user is gone or inactive.
    """
    field_errors: list[FieldError] = []
    changes = changes_of(body, operator, field_errors)
    if field_errors:
        raise Invalid(field_errors)
    async with database.transaction() as connection:
        await connection.execute(_SQL["hold_owner"], user_id)
        before, time_zone = await _of_caller(connection, user_id)
        chosen = merged(before, changes)
        if chosen:
            await connection.execute(_SQL["put"], user_id, to_json(chosen))
        else:
            await connection.execute(_SQL["forget"], user_id)
        await deliveries.release_held(connection, [user_id])
    pubsub.publish("push")
    return operator.preferences(chosen, time_zone)


async def _of_caller(store: Database | Connection, user_id: int) -> tuple[dict[str, Any], str]:
    rows = await fetch(store, _SQL["one"], user_id)
    if not rows:
        raise Unauthenticated.unknown(user_id)
    return _chosen(rows[0]["chosen"]), rows[0]["time_zone"]


def _chosen(text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


class Operator:
    """What the operator decided: the defaults of every kind and of the quiet hours, and what nobody else can change."""

    def __init__(self, catalogue: Catalogue, rules: Rules = NO_RULES) -> None:
        self.kinds = {
            name: replace(Switches(urgent=kind.preset == "urgent"), **rules.of(name).defaults())
            for name, kind in catalogue.kinds.items()
        }
        self.locked_of = {name: frozenset(rules.of(name).locked) for name in self.kinds}
        self.locked = frozenset(name for name, is_locked in rules.locked if is_locked)
        self.quiet_hours = QuietHours.of(windows_of(rules.defaults.quiet_hours, "", []))
        self.digest = _digest([self.kinds, self.locked_of, self.locked, rules.defaults.quiet_hours])
        self._shared: dict[str, Preferences] = {}

    @classmethod
    def load(cls, catalogue: Catalogue, path: Path | None) -> "Operator":
        """Read the operator's file, where there is one. Raises `Refusal` with all that is wrong, a line for each."""
        return cls(catalogue) if path is None else cls(catalogue, read_rules(path, catalogue.kinds))

    def preferences(self, chosen: Mapping[str, Any], time_zone: str) -> "Preferences":
        """Return the preferences of a user in a time zone who chose this; what is locked by now does not count."""
        if not chosen:
            return self._usual(time_zone)
        chosen = {name: value for name, value in chosen.items() if name not in self.locked}
        zone, windows = chosen.get("time_zone"), chosen.get("quiet_hours")
        return Preferences(
            {**self.kinds, **dict(self._chosen_kinds(chosen.get("kinds", {})))},
            self.quiet_hours if windows is None else QuietHours.of(windows),
            moment_of(chosen.get("paused_until", "")),
            _zone(zone or time_zone),
        )

    def _usual(self, time_zone: str) -> "Preferences":
        if time_zone not in self._shared:
            self._shared[time_zone] = Preferences(self.kinds, self.quiet_hours, None, _zone(time_zone))
        return self._shared[time_zone]

    def _chosen_kinds(self, kinds: Mapping[str, Mapping[str, bool]]) -> Iterator[tuple[str, Switches]]:
        """Yield the kinds that a user changed, of those there still are."""
        for name in kinds.keys() & self.kinds.keys():
            free = {key: value for key, value in kinds[name].items() if key not in self.locked_of[name]}
            yield name, replace(self.kinds[name], **free)


@dataclass(frozen=True, slots=True)
class Preferences:
    """What counts for a user at last, all defaults filled in."""

    kinds: Mapping[str, Switches]
    quiet_hours: QuietHours
    paused_until: datetime | None
    time_zone: ZoneInfo

    def decide(self, kind: str, channel: Channel, now: datetime) -> Decision:
        """Tell whether a notification of a kind may be sent by a channel now, later or never."""
        switches = self.kinds.get(kind, _USUAL)
        if not (switches.push if channel == "push" else switches.web_push):
            return Muted(f"{channel} switched off for {kind}")
        if switches.urgent or not (self.paused_until or self.quiet_hours.spans):
            return SEND
        return self._in_its_time(now)

    def shown(self, now: datetime) -> dict[str, Any]:
        """Return the preferences as the API shows them; a pause that is over is none."""
        return {
            "kinds": {name: asdict(switches) for name, switches in self.kinds.items()},
            "quiet_hours": self.quiet_hours.windows,
            "paused_until": time_of(self.paused_until) if self._is_paused(now) else None,
            "time_zone": self.time_zone.key,
        }

    def _in_its_time(self, now: datetime) -> Decision:
        resumed = self.paused_until if self.paused_until and self._is_paused(now) else now
        until = self.quiet_hours.end(resumed, self.time_zone)
        if until is None:
            return Muted("quiet hours all week")
        if until == now:
            return SEND
        if resumed is not now:
            return Held(until, f"paused until {time_of(self.paused_until)}")
        return Held(until, f"quiet hours until {until.astimezone(self.time_zone):%H:%M}")

    def _is_paused(self, now: datetime) -> bool:
        return self.paused_until is not None and now < self.paused_until


def merged(target: Any, changes: Any) -> Any:
    """Return a document with changes merged in as RFC 7396 has it, without objects that this leaves empty."""
    if not isinstance(changes, dict):
        return changes
    found = dict(target) if isinstance(target, dict) else {}
    for name, value in changes.items():
        found[name] = None if value is None else merged(found.get(name), value)
    return {name: value for name, value in found.items() if value not in (None, {})}


def changes_of(body: Mapping[str, Any], operator: Operator, field_errors: list[FieldError]) -> dict[str, Any]:
    """Return what a caller changes, in the form that is kept; what is wrong with it is added to `field_errors`."""
    changes = {}
    for name, value in body.items():
        if name not in _READERS:
            field_errors.append(among(field_errors, name, *_STRANGER))
        elif name in operator.locked:
            field_errors.append(_locked(name))
        else:
            changes[name] = None if value is None else _READERS[name](value, operator, field_errors)
    return changes


def _kinds_of(given: Any, operator: Operator, field_errors: list[FieldError]) -> Any:
    if not isinstance(given, dict):
        field_errors.append(field_error("kinds", "object", "must be an object"))
        return {}
    for name, switches in given.items():
        if name not in operator.kinds:
            field_errors.append(among(field_errors, f"kinds.{name}", "prohibited", "is not a known kind"))
        elif isinstance(switches, dict):
            _check_switches(name, switches, operator, field_errors)
        elif switches is not None:
            field_errors.append(field_error(f"kinds.{name}", "object", "must be an object"))
    return given


def _check_switches(kind: str, switches: Mapping[str, Any], operator: Operator, field_errors: list[FieldError]) -> None:
    for name, value in switches.items():
        field = f"kinds.{kind}.{name}"
        if name not in SWITCHES:
            field_errors.append(among(field_errors, field, *_STRANGER))
        elif name in operator.locked_of[kind]:
            field_errors.append(_locked(field))
        elif value is not None and not isinstance(value, bool):
            field_errors.append(field_error(field, "boolean", "must be true or false"))


def _windows_of(given: Any, _: Operator, field_errors: list[FieldError]) -> Any:
    return windows_of(given, "quiet_hours", field_errors)


def _pause_of(given: Any, _: Operator, field_errors: list[FieldError]) -> str | None:
    try:
        return time_of(future_of(given))
    except PydanticCustomError as error:
        field_errors.append(field_error("paused_until", error.type, error.message()))
        return None


def _time_zone_of(given: Any, _: Operator, field_errors: list[FieldError]) -> str | None:
    if not isinstance(given, str):
        field_errors.append(field_error("time_zone", "string", "must be a string"))
    elif not is_time_zone(given):
        field_errors.append(field_error("time_zone", "in", "must be an IANA time zone such as Europe/Copenhagen"))
    else:
        return given
    return None


_READERS: Mapping[str, Callable[[Any, Operator, list[FieldError]], Any]] = {
    "kinds": _kinds_of,
    "quiet_hours": _windows_of,
    "paused_until": _pause_of,
    "time_zone": _time_zone_of,
}


_STRANGER = ("prohibited", "is not allowed here")


def _locked(field: str) -> FieldError:
    return field_error(field, "prohibited", "is locked by the operator")


def _digest(said: Any) -> str:
    """Return a short name of what an operator said, the same at every start."""

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, frozenset) else asdict(value)

    return hashlib.sha256(json.dumps(said, default=plain, sort_keys=True).encode()).hexdigest()


def _zone(name: str) -> ZoneInfo:
    """Return a time zone; one that this machine has no longer is UTC."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")
