"""Tocsin in several processes: an API process and two workers, on the embedded or another PostgreSQL."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.chaos import ChaosRun
from tests.support.processes import TOCSIN, Program, data_folder
from tocsin.postgres.supervisor import url_of


@dataclass(frozen=True)
class Cluster:
    """Running processes under the load of a run."""

    data: Path
    url: str
    service: Program
    workers: tuple[Program, Program]

    async def said(self) -> str:
        """Return why work waits or requests fail, as `/readyz` says."""
        host, port = self.service.address
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30) as http:
            answer = (await http.get("/readyz")).json()
        return "; ".join([error["message"] for error in answer.get("errors", ())] + answer.get("problems", []))


@asynccontextmanager
async def embedded_cluster(
    run: ChaosRun,
    variables: Mapping[str, str] | None = None,
    data: Path | None = None,
    command: Sequence[str | Path] = (TOCSIN,),
) -> AsyncIterator[Cluster]:
    """Run the processes on an embedded PostgreSQL, which the API process supervises, in a new folder or in `data`."""
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(data_folder()) if data is None else data
        yield await stack.enter_async_context(_processes(run, folder, url_of(folder), variables or {}, command))


@asynccontextmanager
async def cluster_on(
    run: ChaosRun,
    url: str,
    variables: Mapping[str, str] | None = None,
    command: Sequence[str | Path] = (TOCSIN,),
) -> AsyncIterator[Cluster]:
    """Run the processes on a database that they do not supervise."""
    variables = {"TOCSIN_DATABASE_URL": url, **(variables or {})}
    async with data_folder() as data, _processes(run, data, url, variables, command) as cluster:
        yield cluster


@asynccontextmanager
async def _processes(
    run: ChaosRun, data: Path, url: str, variables: Mapping[str, str], command: Sequence[str | Path]
) -> AsyncIterator[Cluster]:
    variables = {**run.variables, **variables}
    async with (
        Program(data, "serve", "--no-worker", variables=variables, command=command) as service,
        Program(data, "worker", variables=variables, command=command) as one,
        Program(data, "worker", variables=variables, command=command) as other,
        run.under_load(url, lambda: service.address),
    ):
        yield Cluster(data, url, service, (one, other))
