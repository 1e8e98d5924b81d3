"""Tocsin in several processes: an API process and two workers, on the embedded or another PostgreSQL."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.chaos import ChaosRun
from tests.support.processes import Program, data_folder
from tests.support.servers import OwnServer, own_server
from tocsin.postgres.supervisor import url_of


@dataclass(frozen=True)
class Cluster:
    """Running processes under the load of a run."""

    data: Path
    url: str
    service: Program
    workers: tuple[Program, Program]


@asynccontextmanager
async def embedded_cluster(run: ChaosRun, variables: Mapping[str, str] | None = None) -> AsyncIterator[Cluster]:
    """Run the processes on an embedded PostgreSQL, which the API process supervises."""
    async with data_folder() as data, _processes(run, data, url_of(data), variables or {}) as cluster:
        yield cluster


@asynccontextmanager
async def cluster_on(
    run: ChaosRun, server: OwnServer, variables: Mapping[str, str] | None = None
) -> AsyncIterator[Cluster]:
    """Run the processes on a database of its own on a server."""
    url = server.url(database=await server.fresh("tocsin"))
    async with (
        data_folder() as data,
        _processes(run, data, url, {"TOCSIN_DATABASE_URL": url, **(variables or {})}) as cluster,
    ):
        yield cluster


@asynccontextmanager
async def durable_server(**settings: str) -> AsyncIterator[OwnServer]:
    """Run a server that forces its log to the disk, as Tocsin demands."""
    async with own_server(fsync="on", **settings) as server:
        yield server


@asynccontextmanager
async def _processes(run: ChaosRun, data: Path, url: str, variables: Mapping[str, str]) -> AsyncIterator[Cluster]:
    variables = {**run.variables, **variables}
    async with (
        Program(data, "serve", "--no-worker", variables=variables) as service,
        Program(data, "worker", variables=variables) as one,
        Program(data, "worker", variables=variables) as other,
        run.under_load(url, lambda: service.address),
    ):
        yield Cluster(data, url, service, (one, other))
