"""The acceptance of events: one statement stores them, their subjects and their jobs, or delivers them at once."""

import asyncio
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from tocsin.at_once import MAX_COST as MAX_COST_AT_ONCE
from tocsin.at_once import AtOnce
from tocsin.audit import Actor
from tocsin.catalogue import Checked
from tocsin.db.connections import Connection, Record
from tocsin.db.statements import queries
from tocsin.directory import UnknownRecipients, people
from tocsin.errors import FieldError, IdReused, Invalid, Problem, Unavailable
from tocsin.jobs import DIRECT_MAX_RECIPIENTS
from tocsin.notifications import to_json

EVENTS_PER_TURN = 16
"""Events that are rendered or answered per turn of the event loop, so that other requests get their turns."""

Users = Mapping[tuple[int | None, int], Mapping[str, Any]]
"""User objects of notifications, by the company of the caller and the user's id."""

_SQL = queries("events")


@dataclass(frozen=True, slots=True)
class Draft:
    """A valid event and its recipients.

    `service` posted it; None: its actor did. `id` and `digest` are set if the request has an id; the digest is that of
    the whole event. Users in `excepted` are not notified. With `skips`, unknown recipients are ignored. The event is
    held until `deliver_at`. `key` is the name that the service gave it. If an `actor` sends a custom notification, it
    is recorded in the audit log, with the number of `recipients`.
    """

    checked: Checked
    users: Sequence[int]
    teams: Sequence[int]
    service: str | None
    company_id: int | None
    about: Sequence[str] = ()
    excepted: Sequence[int] = ()
    skips: bool = False
    deliver_at: datetime | None = None
    key: str | None = None
    id: UUID | None = None
    digest: bytes | None = None
    actor: Actor | None = None
    recipients: int = 0

    @property
    def named(self) -> int:
        """The number of ids that it names."""
        return len(self.users) + len(self.teams) + len(self.excepted)

    @property
    def cost(self) -> int:
        """Maximum users that its delivery looks up: of each team, as many as a job reaches and the excepted ones."""
        return 1 + len(self.users) + len(self.excepted) + len(self.teams) * (DIRECT_MAX_RECIPIENTS + len(self.excepted))


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event that is on disk: its id, the unknown recipients that it skips, and whether it was posted before."""

    id: UUID
    skipped_users: Sequence[int] = ()
    skipped_teams: Sequence[int] = ()
    is_repeated: bool = False


Outcome = Accepted | Problem
"""The outcome of an event that is posted."""


@dataclass(frozen=True, slots=True)
class Entered:
    """What was delivered at once: the users, and whether there are pushes. The other events, if any, are queued.

    `took` are the seconds that each event took.
    """

    user_ids: Collection[int] = ()
    is_pushed: bool = False
    is_queued: bool = True
    took: Sequence[float] = ()


async def store_events(
    connection: Connection, drafts: Mapping[UUID, Draft], at_once: AtOnce | None, batch: UUID | None = None
) -> tuple[dict[UUID, Outcome], Entered]:
    """Store the events that are valid; return the outcome of each event by its id, and what was delivered at once.

    Jobs of events that are due at once belong to `batch`, if it is given. All of these are delivered at once, or none.
    """
    began = time.monotonic()
    users = await _users_of_data(connection, drafts.values())
    # The languages and lanes may change while this loop pauses.
    languages, lanes = (at_once.recent, at_once.lanes) if at_once else ((), None)
    few = few_of(drafts, is_batch=batch is not None) if lanes is not None else frozenset[UUID]()
    rows, contents = [], list[tuple[int, str, str]]()
    for position, (id_, draft) in enumerate(drafts.items(), 1):
        if position % EVENTS_PER_TURN == 0:
            await asyncio.sleep(0)
        data = _data_of(draft, users)
        as_json = None if data is None else to_json(data)
        rows.append(_row(id_, draft, as_json))
        if at_once and id_ in few and data is not None and as_json is not None:
            contents += [
                (position, *content) for content in at_once.render(id_, draft.checked, data, as_json, languages)
            ]
    arguments = (*map(list, zip(*rows, strict=True)), batch, len(rows))
    if at_once and contents:
        words = map(list, zip(*contents, strict=True))
        entering = (*words, at_once.languages, lanes, batch is not None, DIRECT_MAX_RECIPIENTS)
        found = await connection.fetch(_SQL["accept_at_once"], *arguments, *entering)
        entered = _entered(found, len(drafts), at_once, time.monotonic() - began)
    else:
        found, entered = await connection.fetch(_SQL["accept"], *arguments), Entered()
    outcomes: dict[UUID, Outcome] = dict(zip(drafts, map(Accepted, drafts), strict=True))
    outcomes |= {row["id"]: _outcome(row, drafts[row["id"]], users) for row in found}
    refused = [row["id"] for row in found if not row["is_stored"] and drafts[row["id"]].id]
    if refused:
        outcomes |= {
            row["id"]: _outcome_of_repeat(row, drafts[row["id"]])
            for row in await connection.fetch(_SQL["posted"], refused)
        }
        await connection.fetch(_SQL["write_log"])
    return outcomes, entered


def few_of(drafts: Mapping[UUID, Draft], *, is_batch: bool) -> frozenset[UUID]:
    """Return the events that are delivered at once if nothing hinders it.

    Of a batch, these are all or none, because it is delivered in its order. In a batch, an event with a key can be
    replaced by a later one.
    """
    few, left = set[UUID](), MAX_COST_AT_ONCE
    for id_, draft in drafts.items():
        if draft.deliver_at is None and draft.cost <= left and not (is_batch and draft.key):
            few.add(id_)
            left -= draft.cost
        elif is_batch:
            return frozenset()
    return frozenset(few)


def _entered(found: Sequence[Record], stored: int, at_once: AtOnce, seconds: float) -> Entered:
    """Return what the statement delivered. `stored` is the number of events."""
    at_once.learn(json.loads(found[0]["languages"] or "{}").values())
    delivered = [row for row in found if row["user_ids"] is not None]
    stored -= sum(not row["is_stored"] for row in found)
    return Entered(
        {user_id for row in delivered for user_id in row["user_ids"]},
        any(row["is_pushed"] for row in delivered),
        len(delivered) < stored,
        [seconds] * len(delivered),
    )


def _outcome(row: Record, draft: Draft, users: Users) -> Outcome:
    """Return the outcome of an event that was not stored or has unknown recipients."""
    if row["is_stored"]:
        return Accepted(row["id"], row["unknown_users"], row["unknown_teams"])
    field_errors = [
        FieldError(f"data.{field}", "unknown", f"The data.{field} field is not a known user.")
        for field, id_ in draft.checked.unfilled.items()
        if (draft.company_id, id_) not in users
    ]
    if not draft.skips:
        unknown = UnknownRecipients(frozenset(row["unknown_users"]), frozenset(row["unknown_teams"]))
        field_errors += unknown.field_errors(draft.users, draft.teams, "notify.")
    # Without errors, the id is in use. `store_events` looks for the event; if it was removed since, the client retries.
    return Invalid(field_errors) if field_errors else Unavailable()


def _outcome_of_repeat(row: Record, draft: Draft) -> Outcome:
    """Return the outcome of an event whose id is in use: the original one if it is the same event."""
    if (row["service"], row["company_id"], row["digest"]) != (draft.service, draft.company_id, draft.digest):
        return IdReused()
    return Accepted(row["id"], row["skipped_users"], row["skipped_teams"], is_repeated=True)


def _data_of(draft: Draft, users: Users) -> Mapping[str, Any] | None:
    """Return the data of an event with its users filled in; None if one is unknown."""
    unfilled = draft.checked.unfilled
    if not unfilled:
        return draft.checked.data
    filled = {field: users.get((draft.company_id, user)) for field, user in unfilled.items()}
    return {**draft.checked.data, **filled} if all(filled.values()) else None


def _row(id_: UUID, draft: Draft, data: str | None) -> tuple[Any, ...]:
    """Return the arguments of the statement for one event."""
    checked = draft.checked
    own = [f"key:{draft.key}"] if draft.key else []
    return (
        id_,
        draft.service,
        draft.company_id,
        checked.kind,
        checked.actor,
        _array(draft.users),
        _array(draft.teams),
        data,
        to_json(checked.params),
        _array_of_words([*checked.subjects, *draft.about, *own]),
        _array(draft.excepted),
        draft.skips,
        draft.deliver_at,
        draft.key,
        draft.digest,
        draft.cost,
    )


def _array(ids: Iterable[int]) -> str:
    return f"{{{','.join(map(str, dict.fromkeys(ids)))}}}"


def _array_of_words(words: Iterable[str]) -> str:
    """Return an array literal of PostgreSQL."""
    quoted = (word.replace("\\", r"\\").replace('"', r"\"") for word in dict.fromkeys(words))
    return "{" + ",".join(f'"{word}"' for word in quoted) + "}"


async def _users_of_data(connection: Connection, drafts: Iterable[Draft]) -> Users:
    """Return the users that the data of these events refers to by id."""
    wanted = {(draft.company_id, id_) for draft in drafts for id_ in draft.checked.unfilled.values()}
    return await people(connection, wanted) if wanted else {}
