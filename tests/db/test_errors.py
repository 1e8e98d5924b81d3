"""Errors of the driver become outages, overruns or bugs."""

import asyncio

import asyncpg
import pytest

from tocsin.db.admission import Full
from tocsin.db.errors import problem_of, sentence_on
from tocsin.errors import Locked, Overrun, Unavailable


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (asyncpg.LockNotAvailableError(), Locked),
        (asyncpg.QueryCanceledError(), Overrun),
        (asyncpg.AdminShutdownError(), Unavailable),
        (asyncpg.InvalidCachedStatementError(), Unavailable),
        (Full(), Unavailable),
        (TimeoutError(), Unavailable),
        (ConnectionResetError(), Unavailable),
        (asyncpg.InterfaceError("closed"), Unavailable),
        (asyncpg.InternalServerError('could not create temporary file "base/pgsql_tmp/pgsql_tmp7.0"'), Unavailable),
        (asyncpg.InternalServerError("cache lookup failed"), type(None)),
        (asyncpg.FeatureNotSupportedError(), type(None)),
        (asyncpg.UniqueViolationError(), type(None)),
        (asyncpg.DataError("a string where a number belongs"), type(None)),
        (KeyError("a bug"), type(None)),
        (asyncio.InvalidStateError(), type(None)),
    ],
)
def test_each_error_is_an_outage_an_overrun_or_neither(error: Exception, kind: type) -> None:
    assert type(problem_of(error)) is kind


def test_closed_connection_is_reported_without_states_of_the_driver() -> None:
    for error in (
        asyncpg.InterfaceError("cannot call Transaction.__aexit__(): the underlying connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
    ):
        assert sentence_on(error) == "The database cannot be used: the connection was closed."
    assert sentence_on(TimeoutError()).startswith("The database cannot be used: it did not answer in time; ")


def test_an_unusable_url_is_reported_without_the_password_in_it() -> None:
    assert sentence_on(ValueError("invalid port 'secret@host'")) == (
        "The database cannot be used: a parameter of its url or a variable PG... is not usable."
    )
