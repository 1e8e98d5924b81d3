"""Preferences: whether and when a notification is pushed to the devices of a user.

They come from the catalogue, the operator and the user. The inbox always contains all notifications.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic_core import PydanticCustomError

from tocsin import audit
from tocsin.audit import Actor
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection
from tocsin.db.pool import Database, fetch
from tocsin.db.statements import queries
from tocsin.errors import FieldError, Invalid, Unauthenticated
from tocsin.formats import is_time_zone
from tocsin.notifications import future_of, moment_of, time_of, to_json
from tocsin.preference_policy import NO_RULES, Rules, read_rules
from tocsin.pubsub import PubSub
from tocsin.push import deliveries
from tocsin.quiet_hours import QuietHours, windows_of
from tocsin.validation import among, field_error

Channel = Literal["push", "web_push"]

_AS_SHOWN = re.compile("[0-9-]{10} [0-9:]{8}")
"""Matches a pause in the format of answers, which is UTC."""

_SQL = queries("preferences")


@dataclass(frozen=True, slots=True)
class Send:
    """The push is sent now."""


@dataclass(frozen=True, slots=True)
class Muted:
    """The push is not sent, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """The push waits until a time in UTC, with the reason; then it is decided again."""

    until: datetime
    reason: str


Decision = Send | Muted | Held

SEND = Send()


@dataclass(frozen=True, slots=True)
class Switches:
    """The preferences of one kind: its channels, and whether it is sent during pauses and quiet hours."""

    push: bool = True
    web_push: bool = True
    urgent: bool = False


SWITCHES = tuple(switch.name for switch in fields(Switches))
CHANNELS = ("push", "web_push")
"""The channels that a user can switch for a kind."""

_USUAL = Switches()


async def load(store: Database | Connection, operator: "Operator", user_ids: Iterable[int]) -> dict[int, "Preferences"]:
    """Return the preferences of the users that exist. Users without choices share one object."""
    rows = await fetch(store, _SQL["load"], list(user_ids))
    return {row["id"]: operator.preferences(_chosen(row["chosen"]), row["time_zone"]) for row in rows}


async def get(database: Database, operator: "Operator", user_id: int) -> "Preferences":
    """Return the preferences of a caller. Raises `Unauthenticated` if the user is erased or inactive."""
    return operator.preferences(*await _of_caller(database, user_id))


async def patch(
    database: Database, pubsub: PubSub, operator: "Operator", user_id: int, body: Mapping[str, Any]
) -> "Preferences":
    """Merge changes into the choices of a caller (RFC 7396), and return the resulting preferences.

    Held pushes are decided again at once. Raises `Invalid` with all errors, and `Unauthenticated` if the user is erased
    or inactive.
    """
    field_errors: list[FieldError] = []
    time_zone = (await _of_caller(database, user_id))[1] if "time_zone" in operator.locked & body.keys() else "UTC"
    changes = changes_of(body, operator, field_errors, time_zone)
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
    await deliveries.decide_again(database, [user_id])
    pubsub.publish("push")
    return operator.preferences(chosen, time_zone)


async def record_locks(database: Database, operator: "Operator", actor: Actor) -> None:
    """Record in the audit log which preferences are locked or unlocked since this was last called."""
    async with database.transaction() as connection:
        before = await connection.fetchval(_SQL["hold_locks"])
        locked, unlocked = ([*sorted(each)] for each in (operator.locks - set(before), set(before) - operator.locks))
        if locked or unlocked:
            await connection.execute(_SQL["put_locks"], sorted(operator.locks))
            await audit.record(connection, actor, "preference_locks_changed", locked=locked, unlocked=unlocked)


async def _of_caller(store: Database | Connection, user_id: int) -> tuple[dict[str, Any], str]:
    rows = await fetch(store, _SQL["one"], user_id)
    if not rows:
        raise Unauthenticated.unknown(user_id)
    return _chosen(rows[0]["chosen"]), rows[0]["time_zone"]


def _chosen(text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


class Operator:
    """The preference policy: the defaults of all kinds and of quiet hours, and the locked preferences."""

    def __init__(self, catalogue: Catalogue, rules: Rules = NO_RULES) -> None:
        self.kinds = {
            name: replace(Switches(urgent=kind.preset == "urgent"), **rules.of(name).defaults())
            for name, kind in catalogue.kinds.items()
        }
        self.locked_of = {name: frozenset(rules.of(name).locked) for name in self.kinds}
        self.locked = frozenset(name for name, is_locked in rules.locked if is_locked)
        self.locks = self.locked.union(f"{name}.{switch}" for name, found in self.locked_of.items() for switch in found)
        self.quiet_hours = QuietHours.of(windows_of(rules.defaults.quiet_hours, "", []))
        self.digest = _digest([self.kinds, self.locked_of, self.locked, rules.defaults.quiet_hours])
        self._shared: dict[str, Preferences] = {}

    @classmethod
    def load(cls, catalogue: Catalogue, path: Path | None) -> "Operator":
        """Read the file of the policy, if it is given. Raises `Refusal` with all errors, one per line."""
        return cls(catalogue) if path is None else cls(catalogue, read_rules(path, catalogue.kinds))

    def preferences(self, chosen: Mapping[str, Any], time_zone: str) -> "Preferences":
        """Return the preferences of a user with these choices. Choices that are locked now are ignored."""
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
        """Yield the kinds that a user changed and that still exist."""
        for name in kinds.keys() & self.kinds.keys():
            free = {key: value for key, value in kinds[name].items() if key not in self.locked_of[name]}
            yield name, replace(self.kinds[name], **free)


@dataclass(frozen=True, slots=True)
class Preferences:
    """The resulting preferences of a user, with all defaults filled in."""

    kinds: Mapping[str, Switches]
    quiet_hours: QuietHours
    paused_until: datetime | None
    time_zone: ZoneInfo

    def decide(self, kind: str, channel: Channel, now: datetime) -> Decision:
        """Decide whether a notification of a kind is sent by a channel now, later or never."""
        switches = self.kinds.get(kind, _USUAL)
        if not (switches.push if channel == "push" else switches.web_push):
            return Muted(f"{channel} switched off for {kind}")
        if switches.urgent or not (self.paused_until or self.quiet_hours.spans):
            return SEND
        return self._in_its_time(now)

    def shown(self, now: datetime) -> dict[str, Any]:
        """Return the preferences for the API, without a pause that has ended."""
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
    """Apply changes to a document (RFC 7396), and remove objects that become empty."""
    if not isinstance(changes, dict):
        return changes
    found = dict(target) if isinstance(target, dict) else {}
    for name, value in changes.items():
        found[name] = None if value is None else merged(found.get(name), value)
    return {name: value for name, value in found.items() if value not in (None, {})}


def changes_of(
    body: Mapping[str, Any], operator: Operator, field_errors: list[FieldError], time_zone: str = "UTC"
) -> dict[str, Any]:
    """Validate the changes of a caller and return them in the stored format. Append errors to `field_errors`.

    Unknown fields are ignored, and so are locked ones with the value in effect: what `GET` answers can be sent back.
    `time_zone` is that of the directory.
    """
    in_effect = operator.preferences({}, time_zone).shown(datetime.now(UTC))
    changes = {}
    for name, value in body.items():
        if name in operator.locked:
            if value != in_effect[name]:
                field_errors.append(_locked(name))
        elif name in _READERS:
            changes[name] = None if value is None else _READERS[name](value, operator, field_errors)
    return changes


def _kinds_of(given: Any, operator: Operator, field_errors: list[FieldError]) -> Any:
    if not isinstance(given, dict):
        field_errors.append(field_error("kinds", "object", "must be an object"))
        return {}
    changes: dict[str, dict[str, bool | None] | None] = {}
    for name, switches in given.items():
        if name not in operator.kinds:
            field_errors.append(among(field_errors, f"kinds.{name}", "prohibited", "is not a known kind"))
        elif isinstance(switches, dict):
            changes[name] = _switches_of(name, switches, operator, field_errors)
        elif switches is None:
            changes[name] = None
        else:
            field_errors.append(field_error(f"kinds.{name}", "object", "must be an object"))
    return changes


def _switches_of(
    kind: str, switches: Mapping[str, Any], operator: Operator, field_errors: list[FieldError]
) -> dict[str, bool | None]:
    changes = {}
    for name, value in switches.items():
        field = f"kinds.{kind}.{name}"
        if name not in SWITCHES:
            field_errors.append(among(field_errors, field, "prohibited", "is not allowed here"))
        elif name in operator.locked_of[kind]:
            if value is not getattr(operator.kinds[kind], name):
                field_errors.append(_locked(field))
        elif value is None or isinstance(value, bool):
            changes[name] = value
        else:
            field_errors.append(field_error(field, "boolean", "must be true or false"))
    return changes


def _windows_of(given: Any, _: Operator, field_errors: list[FieldError]) -> Any:
    return windows_of(given, "quiet_hours", field_errors)


def _pause_of(given: Any, _: Operator, field_errors: list[FieldError]) -> str | None:
    if isinstance(given, str) and _AS_SHOWN.fullmatch(given):
        given += "Z"
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


def _locked(field: str) -> FieldError:
    return field_error(field, "prohibited", "is locked by the operator")


def _digest(said: Any) -> str:
    """Return a digest of the policy. It is equal at each start with the same policy."""

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, frozenset) else asdict(value)

    return hashlib.sha256(json.dumps(said, default=plain, sort_keys=True).encode()).hexdigest()


def _zone(name: str) -> ZoneInfo:
    """Return a time zone, or UTC if this machine no longer has it."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")
