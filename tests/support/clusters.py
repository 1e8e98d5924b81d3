"""Tocsin in several processes: an API process and two workers, on the embedded or another PostgreSQL."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from tests.support.chaos import ChaosRun
from tests.support.ledger import DAY
from tests.support.processes import TOCSIN, Program, data_folder
from tests.support.service import SECRET
from tests.support.waiting import until
from tocsin.auth.minting import mint_service
from tocsin.postgres.supervisor import url_of


@dataclass(frozen=True)
class Cluster:
    """Running processes under the load of a run."""

    run: ChaosRun
    data: Path
    url: str
    service: Program
    workers: tuple[Program, Program]
    variables: Mapping[str, str]

    async def shows(self, words: str, doctor: str = "") -> None:
        """Wait until `/readyz`, the metrics and `tocsin doctor` contain the reason why work waits or requests fail.

        `doctor` is the reason in the words of the doctor. The console shows the reasons that it finds in the metrics.
        """
        for path in ("/readyz", "/metrics"):
            await until(partial(_contains, partial(self._page, path), words))
        await self.doctor_shows(doctor or words)
        self.run.shown.add(words)

    async def doctor_shows(self, words: str) -> None:
        """Wait until `tocsin doctor` contains these words."""
        await until(partial(_contains, self._doctor, words))

    async def _page(self, path: str) -> str:
        host, port = self.service.address
        headers = {"Authorization": f"Bearer {mint_service(SECRET, 'operator', ['operations'], DAY)}"}
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30, headers=headers) as http:
            return (await http.get(path)).text

    async def _doctor(self) -> str:
        doctor = Program(self.data, "doctor", variables=self.variables)
        return await doctor.output()


async def _contains(look: Callable[[], Awaitable[str]], words: str) -> bool:
    return words in await look()


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
        yield Cluster(run, data, url, service, (one, other), variables)
