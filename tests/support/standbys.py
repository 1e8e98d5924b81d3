"""A primary with a standby that follows it, and the service that writes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.support.database import value
from tests.support.servers import OwnServer, own_server, standby_of
from tests.support.service import SECRET, Api, serving
from tests.support.waiting import until
from tocsin.catalogue import Catalogue
from tocsin.db import migrate
from tocsin.settings import Settings

DATABASE = "tocsin"


@dataclass(frozen=True)
class Pair:
    """Two servers, and the service on the primary."""

    primary: OwnServer
    standby: OwnServer
    api: Api

    @property
    def url(self) -> str:
        """The url of the primary."""
        return self.primary.url(database=DATABASE)

    @property
    def standby_url(self) -> str:
        return self.standby.url(database=DATABASE)

    @property
    def settings(self) -> Settings:
        """The settings of a read-only server on the standby."""
        given: dict[str, Any] = {"database_url": self.standby_url, "jwt_secret": SECRET, "read_only": "yes"}
        return Settings.model_validate(given)

    async def replayed(self) -> None:
        """Wait until the standby has what the primary has written."""
        written = await value(self.url, "select pg_current_wal_flush_lsn()::text")
        replayed = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
        await until(partial(value, self.standby_url, replayed, written))

    async def pause(self) -> None:
        """Let the standby fall behind."""
        await value(self.standby_url, "select pg_wal_replay_pause()")

    async def resume(self) -> None:
        await value(self.standby_url, "select pg_wal_replay_resume()")


@asynccontextmanager
async def pair_of(catalogue: Catalogue) -> AsyncIterator[Pair]:
    """Run a primary with users 1 and 2, its standby and a service.

    The copy for a further standby recycles the log, which the standby may not have received yet.
    """
    async with own_server(wal_keep_size="1GB") as primary:
        await primary.fresh(DATABASE)
        url = primary.url(database=DATABASE)
        await migrate.migrate(url, accept_undurable=True)
        async with standby_of(primary) as standby, serving(url, catalogue) as api:
            await api.people(1, 2)
            yield Pair(primary, standby, api)
