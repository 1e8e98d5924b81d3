"""The models of responses for operators: readiness, queues, history, lanes, dead letters, people and the audit log."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from tocsin.api.answers import AnswerModel, DeviceAnswer, Lane, PlainObject, PreferencesAnswer, Recipient, Time


class Health(AnswerModel):
    """The process is alive."""

    status: str


class QueueDepth(AnswerModel):
    """The state of a queue."""

    due: int
    """number of due jobs, counted up to about 1,000"""
    oldest: float
    """seconds since the oldest of them was due"""
    stalled: bool
    """true: the oldest waits too long for a queue that makes progress"""


class PushesWaiting(AnswerModel):
    """The pushes that wait, in all lanes."""

    oldest: float
    """seconds since the oldest was due"""
    stalled: bool
    """true: the oldest waits too long for a lane that makes progress"""


class ReadinessAnswer(AnswerModel, title="Readiness"):
    """The process can serve requests. Includes the state of queues and lanes."""

    status: str
    database: str
    migrations: str
    queue: dict[str, QueueDepth]
    """by name: `direct`, `bulk`"""
    pushes: PushesWaiting
    problems: list[str]
    """the current errors of workers, of the archive of the log, and of the disk"""


class OfQueues(AnswerModel):
    """A value for each queue of jobs."""

    direct: float
    bulk: float


class Quantiles(AnswerModel):
    """Quantiles in seconds, estimated from a histogram; null without samples."""

    p50: float | None
    p95: float | None
    p99: float | None


class HistoryPoint(AnswerModel):
    """The metrics of one minute."""

    at: Time
    """the beginning of the minute"""
    processes: int
    """number of processes that were measured"""
    events: float
    """events per second that came into all inboxes"""
    pushes: float
    """delivered pushes per second"""
    requests: float
    """responses per second"""
    api_errors: int
    """responses with a status of 500 or more"""
    rate_limited: int
    """requests that exceeded a rate limit"""
    push_errors: dict[str, int]
    """pushes that were not delivered, by provider: `apns`, `fcm`, `web`"""
    jobs_due: OfQueues
    oldest_job: OfQueues
    """how long the oldest due job had waited, in seconds"""
    pushes_due: int
    inbox_seconds: Quantiles
    """from the acceptance of an event to the last inbox"""
    push_seconds: Quantiles
    """from the inbox to the answer of the provider"""


class History(AnswerModel):
    """The history of metrics, the oldest first."""

    data: list[HistoryPoint]


class RefusingService(AnswerModel):
    """A web push service that rejects the authentication of this server."""

    service: str
    since: Time
    reason: str


class LaneAnswer(AnswerModel, title="Lane"):
    """A lane: one provider, app and environment."""

    name: str
    due: int
    """number of due pushes, counted up to 1,000,000"""
    oldest: float
    """seconds since the oldest of them was due"""
    delivered_at: Time | None
    """time of the last delivered push"""
    stopped_at: Time | None
    """since when no push can be sent; null if the lane works"""
    reason: str | None
    """why the lane has stopped"""
    problem: str | None
    """a current error of a worker that delays the lane, or that no running worker has its keys"""
    refused_by: list[RefusingService]
    """push services that reject the authentication"""


class Lanes(AnswerModel):
    """All lanes."""

    data: list[LaneAnswer]


class DeadLetter(AnswerModel):
    """A job or a push that failed permanently."""

    what: str
    """`job` or `push`; open"""
    task: str
    event_id: UUID
    """the id of the event, or of another object of the job"""
    user_id: int | None
    """the recipient of a push; null for a job"""
    lane: str
    """the queue of the job, or the lane of the push"""
    attempts: int
    reason: str | None
    at: Time


class DeadLetters(AnswerModel):
    """Dead letters, the newest first."""

    data: list[DeadLetter]


class ReplayedAnswer(AnswerModel, title="Replayed"):
    """The number of requeued jobs and pushes."""

    jobs: int
    pushes: int


class PersonFound(AnswerModel):
    """A user in the result of a search."""

    id: int
    company_id: int
    first_name: str
    last_name: str
    email: str | None
    active: bool


class PeopleFound(AnswerModel):
    """The result of a search for users."""

    data: list[PersonFound]


class DeviceOfPerson(DeviceAnswer, title="DeviceOfPerson"):
    """A device, and the state of its last push."""

    id: UUID
    """another one after the device moved to another user"""
    lane: Lane
    state: Annotated[
        str,
        Field(
            description="the state of its last push; `stopped`: its lane has stopped; `unserved`: its lane has no key;"
            " `untried`: there was no recent push; open"
        ),
    ]
    what: str | None
    """the reason of the state"""


class Person(AnswerModel):
    """A user with the state of their inbox and devices, and when they want pushes."""

    id: int
    company_id: int
    first_name: str
    last_name: str
    active: bool
    """false: nothing is delivered"""
    total: int
    """number of notifications in the inbox"""
    unread: int
    """number of unread notifications in the inbox"""
    time_zone: str
    devices: list[DeviceOfPerson]
    preferences: PreferencesAnswer


class EventOfPerson(Recipient):
    """An event, and its delivery to one user."""

    type: str
    accepted_at: Time


class EventsOfPerson(AnswerModel):
    """Recent events of a user, the newest first."""

    data: list[EventOfPerson]
    looked_back_to: Annotated[
        Time, Field(description="events that were not delivered to the user are listed only since this time")
    ]


class PersonReached(AnswerModel):
    """A recipient of an event."""

    user_id: int
    first_name: str | None
    """null if the user was erased"""
    last_name: str | None
    read_at: Time | None
    pushes: list[str]
    """the distinct states of the pushes to the user"""


class RecipientsOfEvent(AnswerModel):
    """Recipients of an event in ascending order of user ids."""

    data: list[PersonReached]


class DeviceFound(DeviceAnswer, title="DeviceFound"):
    """A device with its user."""

    user_id: int
    lane: Lane


class DevicesFound(AnswerModel):
    """The result of a search for devices."""

    data: list[DeviceFound]


class CustomSender(AnswerModel):
    """The user who sent a custom notification. The names are null if the user was erased."""

    id: int
    first_name: str | None
    last_name: str | None


class CustomSent(AnswerModel):
    """A custom notification, without its text."""

    id: UUID
    accepted_at: Time
    service: str | None
    """the service that posted it; null if a user did"""
    sender: CustomSender | None
    users: int
    """number of users in `notify`"""
    teams: int
    """number of teams in `notify`"""
    recipients: int
    """number of inboxes to which it was delivered so far"""
    dropped: int
    """number of recipients who were erased or inactive at delivery"""


class CustomNotifications(AnswerModel):
    """Custom notifications, the newest first."""

    data: list[CustomSent]


class AuditEntry(AnswerModel):
    """Who did what."""

    id: UUID
    at: Time
    """when, by the clock of the database"""
    action: str
    """what was done, such as `user_erased`; later releases may add actions"""
    caller: str
    """who did it: `user 4`, `service crm` or `command tocsin export`"""
    name: str | None
    """the name of the user at that time; of a command, the user of the operating system"""
    company_id: int | None
    """the company that it concerns; null: all"""
    request_id: str | None
    """the request, as in the log"""
    subject: str | None
    """what it was done to, such as `user:7` or `event:0195d3f0-4c00-7000-8000-000000000001`"""
    details: PlainObject
    """numbers and names that depend on the action"""


class AuditLog(AnswerModel):
    """Entries of the audit log, the newest first."""

    data: list[AuditEntry]
    next: UUID | None
    """the cursor for the next page; null: there is none"""
