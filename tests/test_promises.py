"""Every number that the API promises, literally: a change here is a change of the contract."""

import re
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import tocsin.notifications
from tocsin import (
    dead_letters,
    devices,
    errors,
    fanout,
    formats,
    idempotency,
    ids,
    isolation,
    jobs,
    open_streams,
    quiet_hours,
    rate_limits,
    setting_types,
    streams,
    strict_json,
    worker,
)
from tocsin.api import arriving, body, events, imports, notifications, protocol, pushes, requests
from tocsin.api.connections import Patience
from tocsin.auth import claims, jwks
from tocsin.catalogue import fields
from tocsin.db.statements import queries
from tocsin.push import deliveries, dispatcher
from tocsin.push.channels import apns, fcm, payloads
from tocsin.setting_types import Rate
from tocsin.settings import Settings
from tocsin.transfer.imports import MAX_LINE_BYTES

MIB = 1_048_576
SCHEMA = Path(tocsin.__file__).parent / "db/schema.sql"


def age_in(module: str, statement: str) -> str:
    """Return the only age that a statement compares with, as it is written there."""
    [found] = set(re.findall(r"- (?:make_interval\((.+?)\)|interval '(.+?)')", queries(module)[statement]))
    return "".join(found)


def burst_of_clears() -> str:
    """Return how long a clear waits for others of its user, as the schema says."""
    [table] = re.findall(r"CREATE TABLE tocsin\.clears \((.*?)\n\)", SCHEMA.read_text("utf-8"), re.DOTALL)
    [found] = re.findall(r"due_at .* \(now\(\) \+ '(.+)'::interval\)", table)
    return str(found)


def longest(field: Any) -> int:
    """Return the maximum length of a field."""
    [found] = [each.max_length for each in field.__metadata__[0].metadata if hasattr(each, "max_length")]
    return int(found)


PROMISES: dict[str, tuple[Any, Any]] = {
    "the largest id of a user or team": (ids.MAX_ID, 2_147_483_647),
    "faults that are told": (errors.MAX_FIELD_ERRORS, 100),
    "bytes of the errors in an answer": (errors.MAX_ERRORS_BYTES, 60_000),
    "levels of JSON": (strict_json.MAX_DEPTH, 32),
    "a body": (body.MAX_BODY_BYTES, MIB),
    "the body of a batch": (requests.MAX_BATCH_BODY_BYTES, 8 * MIB),
    "the body of an import": (imports.MAX_IMPORT_BYTES, 256 * MIB),
    "a line of an import": (MAX_LINE_BYTES, 12 * MIB),
    "unfinished bodies of a process": (arriving.MAX_ARRIVING_BYTES, 256 * MIB),
    "complete bodies of a process": (arriving.MAX_COMPLETE_BYTES, 64 * MIB),
    "the head of a request": (protocol.MAX_HEAD_BYTES, 65_536),
    "headers of a request": (protocol.MAX_HEADERS, 256),
    "waiting for a client, in seconds": (
        asdict(Patience()),
        {"head": 10.0, "body": 30.0, "answer": 30.0, "idle": 75.0, "rest": 5.0},
    ),
    "events of a batch": (requests.MAX_BATCH_EVENTS, 1_000),
    "waiting for an event's end, in seconds": (events.MAX_WAIT_SECONDS, 30),
    "ids that an event names": (requests.MAX_RECIPIENTS, 10_000),
    "characters of a custom message": (fields.MAX_MESSAGE_LENGTH, 512),
    "characters of an event's key": (requests.MAX_KEY_LENGTH, 255),
    "characters of an Idempotency-Key": (idempotency.MAX_KEY_LENGTH, 255),
    "pages": (notifications.MAX_PAGE, 1_000_000),
    "notifications of a page": (notifications.MAX_PER_PAGE, 100),
    "notifications of a page where nothing is said": (notifications.DEFAULT_PER_PAGE, 15),
    "ids that are marked at once": (requests.MAX_IDS, 1_000),
    "members of a team": (formats.MAX_TEAM_MEMBERS, 1_000_000),
    "windows of quiet hours": (quiet_hours.MAX_WINDOWS, 20),
    "devices of a user": (devices.MAX_DEVICES, 50),
    "characters of a device's token that are shown": (devices.ENDING, 6),
    "streams of a user": (open_streams.MAX_STREAMS_PER_USER, 8),
    "silence of a stream, in seconds": (streams.KEEPALIVE_INTERVAL, 15.0),
    "the clock of an issuer may differ by, in seconds": (claims.CLOCK_SKEW, 30),
    "bytes of a secret for tokens": (setting_types.MIN_SECRET_BYTES, 32),
    "fetching the keys of the issuer again, in seconds": (jwks.FETCH_INTERVAL, 60.0),
    "test pushes": (rate_limits.TEST_PUSHES, Rate(5, "minute")),
    "rate limits": (
        {name: field.default for name, field in Settings.model_fields.items() if name.startswith("limit_")},
        {
            "limit_user_requests": Rate(3000, "minute"),
            "limit_service_requests": None,
            "limit_service_events": None,
            "limit_custom_calls": Rate(60, "minute"),
            "limit_custom_recipients": Rate(5000, "hour"),
            "limit_devices": Rate(60, "hour"),
            "limit_failed_auth": Rate(600, "minute"),
        },
    ),
    "tries of a job, in seconds between them": (jobs.RETRY_DELAYS, (0.2, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0)),
    "a worker's sign of life, in seconds": (jobs.HEARTBEAT_INTERVAL, 5.0),
    "silence after which leases are free, in seconds": (jobs.LEASE_TIMEOUT, 15.0),
    "people whom a direct job reaches": (jobs.DIRECT_MAX_RECIPIENTS, 100),
    "people whom a step of a bulk job reaches": (fanout.BULK_CHUNK_SIZE, 10_000),
    "the retry of what meets a lock, in seconds": (isolation.LOCKED_DELAY, 5.0),
    "a wait for a lock soon after a conflict, in seconds": (isolation.SHORT_LOCK_TIMEOUT, 0.2),
    "how long waits are short after a conflict, in seconds": (isolation.CONFLICT_MEMORY, 30.0),
    "what the jobs of a claim cost": (jobs.MAX_CLAIM_COST, 20_000),
    "tries of a push, in seconds between them": (
        deliveries.RETRY_DELAYS,
        (5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0),
    ),
    "chance in these": (deliveries.JITTER, 0.1),
    "tries after which a job is a dead letter": (len(jobs.RETRY_DELAYS) + 1, 8),
    "jobs of one transaction": (worker.BATCH, {"direct": 200, "bulk": 1}),
    "the age of dead letters that are requeued": (dead_letters.KEPT, timedelta(days=30)),
    "how long dead letters of events are kept": (age_in("retention", "dead_letters"), "days => 30"),
    "how long dead pushes are kept": (age_in("retention", "deliveries"), "days => 30"),
    "how long changes of an inbox are kept": (age_in("inbox", "forget_changes"), "days => 7"),
    "how long answers to an Idempotency-Key are valid": (age_in("idempotency", "begin"), "24 hours"),
    "and how long they are kept": (age_in("retention", "idempotency_keys"), "hours => 24"),
    "how far ahead an event is held": (tocsin.notifications.FURTHEST_AHEAD, timedelta(days=366)),
    "characters of a string in data": (longest(fields.String), 1_000),
    "characters of a text in params": (longest(fields.Text), 10_000),
    "characters of a service's name": (claims.MAX_NAME_LENGTH, 100),
    "how long a clear gathers others": (burst_of_clears(), "00:00:02"),
    "bytes of a browser's payload": (pushes.MAX_WEB_PUSH_BYTES, 3_000),
    "the life of a push": (deliveries.LIFETIME, timedelta(hours=24)),
    "the first try again with FCM, in seconds": (fcm.MIN_RETRY, 10.0),
    "single pushes at the end of quiet hours": (dispatcher.MAX_SEPARATE_PUSHES, 3),
    "held pushes of a device in one": (deliveries.MAX_BUNDLED, 1_000),
    "bytes of a payload": (payloads.MAX_BYTES, 4_096),
    "the age of a provider token when it is made again, in seconds": (apns.TOKEN_LIFETIME, 2_400),
    "and at the earliest": (apns.MIN_TOKEN_AGE, 1_200),
}


@pytest.mark.parametrize("promise", PROMISES)
def test_promised_numbers_match_the_code(promise: str) -> None:
    found, promised = PROMISES[promise]
    assert found == promised
