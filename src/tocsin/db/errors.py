"""Classifies errors of the database by SQLSTATE.

- An outage: the database cannot execute any statement now. Wait and retry; it does not count as an attempt.
- An overrun: the database works, and one statement exceeded its timeout. It counts as an attempt.
- Anything else: the statement or its values are wrong. It counts as an attempt.
"""

import errno
import re
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

import asyncpg

from tocsin.db.admission import Full
from tocsin.errors import Locked, Overrun, Unavailable

OVERRUN = "57014"
"""query_canceled: sessions set `statement_timeout`, so that is the cause."""

LOCK_NOT_AVAILABLE, DEADLOCK = "55P03", "40P01"

LOST = "the database cannot be reached"
"""The reason of outages without a known cause."""

NO_FILES = "this process has reached its limit of open files: raise it (LimitNOFILE, ulimit -n)"

_FULL = frozenset({errno.EMFILE, errno.ENFILE})

UNANSWERED = "the database did not answer in time"

UNCONNECTED = "the database, or a pooler in front of it, gave no connection in time"

CLOSED = "the connection was closed"
"""Replaces what the driver says if the server has closed the connection: it names its own methods and states."""

_CLOSED = re.compile(r"cannot call .* connection is closed|cannot switch to state \d+; another operation .*")

LOCK_HELD = "a lock was not released in time"

OUTAGES: Mapping[str, str] = MappingProxyType(
    {
        "08": "the connection to the database was lost",
        "0A000": "the schema was changed meanwhile",  # only as InvalidCachedStatementError
        "25006": "the database is read-only",
        "25P03": "a transaction was idle for too long",
        "25P04": "a transaction took longer than the server allows",
        "28": "the database rejected the user or the password",
        "3D": "the database does not exist",
        "40": "a transaction was in conflict with another one",
        DEADLOCK: "two transactions waited for each other",
        "53": "the database is short of a resource",
        "53100": "the disk of the database is full",
        "53200": "the database is out of memory",
        "53300": "the database takes no more connections",
        LOCK_NOT_AVAILABLE: LOCK_HELD,
        "57": "the server of the database is stopping, starting or was interrupted",
        "57P01": "the server of the database is stopping, or ended the connection",
        "57P03": "the server of the database is starting or stopping",
        "57P05": "the connection was idle for too long",
        "58": "the server of the database had an error of its system",
    }
)
"""Reasons of outages without secrets, by SQLSTATE or its class (the first two characters)."""


NO_TEMPORARY_FILES = "the server cannot create temporary files: its disk may be full"

CORRUPTION = frozenset({"XX001", "XX002"})
"""SQLSTATEs of damaged tables and indexes."""


class NoConnectionError(TimeoutError):
    """No connection was made in time."""


DRIVER_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""All errors of the driver."""


REFUSALS = (Unavailable, Overrun, asyncpg.PostgresError, asyncpg.InterfaceError)
"""All errors of the database and of the pool."""

PERMANENT = (
    asyncpg.DataError,
    asyncpg.NotNullViolationError,
    asyncpg.CheckViolationError,
    asyncpg.ProgramLimitExceededError,
)
"""Errors of values that the database can never accept. Violations of unique and foreign keys are not among them,
because another transaction may have caused them."""

SETTING = "TOCSIN_DATABASE_URL"
"""The setting that the remedies name, unless `url_named_by` has another."""

url_named_by: ContextVar[str | None] = ContextVar("url_named_by", default=SETTING)
"""The setting with the url of the database that this task uses; None: it is the embedded one."""

_REMEDIES: Mapping[type[BaseException], str] = MappingProxyType(
    {
        asyncpg.InsufficientPrivilegeError: "grant the right to its role",
        asyncpg.InvalidPasswordError: "correct user or password in TOCSIN_DATABASE_URL",
        asyncpg.InvalidAuthorizationSpecificationError: "allow this user in pg_hba.conf or in the provider's list",
        asyncpg.InvalidCatalogNameError: "create it, or correct its name in TOCSIN_DATABASE_URL",
        asyncpg.TooManyConnectionsError: "raise the limit of the server or of the role",
        asyncpg.UndefinedObjectError: "take that parameter out of TOCSIN_DATABASE_URL",
        asyncpg.ReadOnlySQLTransactionError: "connect to the primary, or end default_transaction_read_only of the role",
        asyncpg.TargetServerAttributeNotMatched: "name a server of that kind in TOCSIN_DATABASE_URL, or promote one",
        asyncpg.DiskFullError: "free space on the server's disk",
        NoConnectionError: (
            "see that it runs, that TOCSIN_DATABASE_URL leads there, and that a pooler in front of it has connections"
            " left"
        ),
        ssl.SSLError: "correct sslmode and the files of TOCSIN_DATABASE_URL",
        OSError: "see that it runs, and that TOCSIN_DATABASE_URL leads there",
    }
)
"""Remedies for the operator, by type of error; the first matching entry is used."""

_OF_EMBEDDED: Mapping[type[BaseException], str] = MappingProxyType(
    {
        asyncpg.InvalidAuthorizationSpecificationError: "run this as the user who runs `tocsin serve`",
        asyncpg.TooManyConnectionsError: "end other processes that use it",
        asyncpg.DiskFullError: "free space on the disk of TOCSIN_DATA_DIR",
        OSError: "see that `tocsin serve` runs, and its log in the folder `log` of TOCSIN_DATA_DIR",
    }
)
"""The remedies for the embedded PostgreSQL, which no url leads to."""


def sentence_on(error: BaseException, setting: str | None = None) -> str:
    """Return an error message about the database or its connection, with the remedy. `setting` has its url.

    Without `setting`, it is about the database that this task uses.
    """
    named_by = setting or url_named_by.get()
    what, remedies = ("The database", _REMEDIES) if named_by else ("The embedded PostgreSQL", _OF_EMBEDDED)
    cause = (error.__cause__ or error) if isinstance(error, Unavailable | Overrun) else error
    said = first_line(cause)
    if isinstance(cause, TimeoutError) and not str(cause):
        said = "it did not answer in time"
    if isinstance(cause, ValueError) and not isinstance(cause, asyncpg.InterfaceError):
        said = "a parameter of its url or a variable PG... is not usable"  # the message may contain a password
    elif isinstance(cause, asyncpg.TargetServerAttributeNotMatched):
        said = "no host of its url is of the kind that target_session_attrs names"
    remedy = next((remedy for kind, remedy in remedies.items() if isinstance(cause, kind)), "")
    return f"{what} cannot be used: {said}" + (f"; {remedy.replace(SETTING, named_by or '')}." if remedy else ".")


def problem_of(error: BaseException) -> Unavailable | Overrun | None:
    """Return `Unavailable` for an outage, `Overrun` if a statement exceeded its timeout, None for other errors."""
    if isinstance(error, asyncpg.PostgresError):
        return _problem_of_state(error)
    if isinstance(error, asyncpg.DataError):  # a value of the wrong type, not an outage
        return None
    if isinstance(error, Full):
        message = "All connections to the database are in use. Please try again."
        return Unavailable(message, reason="all connections to the database are in use")
    if isinstance(error, TimeoutError):
        return Unavailable(reason=UNCONNECTED if isinstance(error, NoConnectionError) else UNANSWERED)
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return Unavailable(reason=NO_FILES if getattr(error, "errno", None) in _FULL else LOST)
    return None


def is_corruption(error: BaseException) -> bool:
    """Return whether an error is about a damaged table or index."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in CORRUPTION


def is_denied(error: BaseException) -> bool:
    """Return whether the role lacks a privilege."""
    return isinstance(error, asyncpg.InsufficientPrivilegeError)


def is_outage(error: BaseException) -> bool:
    """Return whether an error means that the database cannot execute any statement now."""
    return isinstance(problem_of(error), Unavailable)


def is_locked(error: BaseException) -> bool:
    """Return whether a lock was not released in time: the connection is still usable."""
    return isinstance(problem_of(error), Locked)


def is_conflict(error: BaseException) -> bool:
    """Return whether an outage is a conflict between sessions: the database works for other sessions."""
    return isinstance(error, asyncpg.LockNotAvailableError | asyncpg.TransactionRollbackError | Full)


def is_hopeless(error: BaseException) -> bool:
    """Return whether retrying at startup is useless, because the configuration is wrong."""
    kinds = (
        asyncpg.ClientConfigurationError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
    )
    has_bad_file = isinstance(error, ssl.SSLError) or (isinstance(error, OSError) and error.filename is not None)
    return isinstance(error, kinds) or has_bad_file


def _problem_of_state(error: asyncpg.PostgresError) -> Unavailable | Overrun | None:
    state = error.sqlstate or ""
    if state == OVERRUN:
        return Overrun()
    if state == "0A000" and not isinstance(error, asyncpg.InvalidCachedStatementError):
        return None
    words = OUTAGES.get(state) or OUTAGES.get(state[:2])
    if state == "XX000" and "pgsql_tmp" in str(error):  # an internal error for PostgreSQL, which names the file
        words = NO_TEMPORARY_FILES
    kind = Locked if state in {LOCK_NOT_AVAILABLE, DEADLOCK} else Unavailable
    return kind(reason=words) if words else None


def first_line(error: BaseException) -> str:
    """Return the first line of an error message. The other lines from PostgreSQL can contain values."""
    said = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return CLOSED if _CLOSED.fullmatch(said) else said
