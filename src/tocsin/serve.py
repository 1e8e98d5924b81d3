"""The process: the database it stands on, the API, the worker, and how they start and end together."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import uvicorn

from tocsin import jobs, migrate, preferences
from tocsin.api.app import service
from tocsin.api.doors import House
from tocsin.api.protocol import Protocol
from tocsin.apps import lanes_of, vapid_of
from tocsin.catalogue import Catalogue
from tocsin.compose import Composer
from tocsin.database import HOPELESS, OUTAGES, SLOWEST, Database
from tocsin.dispatch import Dispatcher, Lane
from tocsin.doorbell import Doorbell
from tocsin.embedded import Embedded, is_served, url_of
from tocsin.errors import Refusal, Unavailable
from tocsin.events import Intake
from tocsin.inbox import Cursors
from tocsin.jwks import Jwks
from tocsin.keeper import keep
from tocsin.keys import EVERYBODY, Speaker, hs256, of_pem, own_secret
from tocsin.metrics import Metrics
from tocsin.preferences import Operator, Preferences
from tocsin.settings import Audience, Settings
from tocsin.tokens import Expected, Signer, Verifier
from tocsin.worker import Worker

API_CONNECTIONS = 10
API_PATIENCE = 5.0
WORKER_CONNECTIONS = 8

PATIENCE = 60.0
"""Seconds that a start waits for a database that cannot be reached."""

GRACE = 6
"""Seconds that requests under way have to end in when the process is stopped."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers: where, and what is behind it."""

    url: str
    house: House


async def serve(
    settings: Settings, *, with_worker: bool = True, when_ready: Callable[[Running], Awaitable[None]] | None = None
) -> None:
    """Serve until a signal ends it. Raises `Refusal` where it can't start."""
    if settings.database_url is not None or settings.has_keys:
        verifier_of(settings)
    async with contextlib.AsyncExitStack() as stack:
        listening = stack.enter_context(_bound(settings))
        url = await stack.enter_async_context(store(settings, alone=True))
        database = await stack.enter_async_context(pool(url, API_CONNECTIONS, API_PATIENCE))
        own = await stack.enter_async_context(pool(url, WORKER_CONNECTIONS))
        bulk = await stack.enter_async_context(_bulk_pool(settings, url))
        doorbell = Doorbell(url, own)
        intake = Intake(database, doorbell)
        verifier = verifier_of(settings)
        stack.push_async_callback(verifier.close)
        verifier.begin()
        catalogue = Catalogue.load(*settings.catalogue_folders)
        operator = Operator.load(catalogue, settings.preferences_file)
        metrics = Metrics()
        lanes = await stack.enter_async_context(_lanes(settings))
        house = House(
            settings,
            database,
            catalogue,
            operator,
            doorbell,
            intake,
            verifier,
            Cursors(database),
            metrics,
            web_push_key(settings),
            lanes,
        )
        worker = None
        if with_worker:
            worker = Worker(own, catalogue, doorbell, bulk, metrics)
            worker.dispatcher = dispatcher_of(settings, lanes, worker, own, catalogue, operator, doorbell, metrics)
            await stack.enter_async_context(_meanwhile(keep(bulk, settings.retention_days)))
        await _together(_Server(house), listening, worker, when_ready)


async def work(settings: Settings) -> None:
    """Work, without serving, until a signal ends it. Raises `Refusal` where there is nothing to work for."""
    if settings.database_url is None and not is_served(settings.data_dir):
        raise Refusal(f"Nothing serves {settings.data_dir}: start `tocsin serve` first, or set TOCSIN_DATABASE_URL.")
    stopping = asyncio.Event()
    _on_signals(stopping.set)
    async with (
        store(settings, alone=False) as url,
        pool(url, WORKER_CONNECTIONS) as database,
        _bulk_pool(settings, url) as bulk,
        _lanes(settings) as lanes,
    ):
        doorbell = Doorbell(url, database)
        catalogue, metrics = Catalogue.load(*settings.catalogue_folders), Metrics()
        worker = Worker(database, catalogue, doorbell, bulk, metrics)
        operator = Operator.load(catalogue, settings.preferences_file)
        worker.dispatcher = dispatcher_of(settings, lanes, worker, database, catalogue, operator, doorbell, metrics)
        async with _meanwhile(doorbell.hear_others()), _meanwhile(keep(bulk, settings.retention_days)):
            working = asyncio.create_task(worker.run())
            log.info("working", worker=str(worker.id))
            until = asyncio.create_task(stopping.wait())
            await asyncio.wait({working, until}, return_when=asyncio.FIRST_COMPLETED)
            worker.stop()
            await working
            await _end([until])
        await doorbell.close()


@contextlib.asynccontextmanager
async def store(settings: Settings, *, alone: bool) -> AsyncIterator[str]:
    """Provide the database, its schema up to date, and yield its url.

    Without `alone`, a server that another process of ours runs on the same folder will do.
    """
    async with contextlib.AsyncExitStack() as stack:
        if settings.database_url is not None:
            url = settings.database_url.get_secret_value()
        elif not alone and is_served(settings.data_dir):
            url = url_of(settings.data_dir)
        else:
            url = (await stack.enter_async_context(Embedded(settings.data_dir))).url
        taken = await _patiently(lambda: _migrate(settings, url))
        log.info("the schema is up to date", new_steps=[f"{step.number:04} {step.name}" for step in taken])
        yield url


@contextlib.asynccontextmanager
async def pool(url: str, size: int, patience: float = SLOWEST, *, yields: bool = False) -> AsyncIterator[Database]:
    """Open a pool of connections for as long as the block runs."""
    database = Database(url, size, patience, yields=yields)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def _bulk_pool(settings: Settings, url: str) -> contextlib.AbstractAsyncContextManager[Database]:
    """Return the bulk lane's own connection, which gives way where the server is our child."""
    return pool(url, 1, yields=settings.database_url is None)


@contextlib.asynccontextmanager
async def _lanes(settings: Settings) -> AsyncIterator[list[Lane]]:
    """Make the lanes that the settings make, and end their transports. Raises `Refusal`."""
    lanes = lanes_of(settings)
    try:
        yield lanes
    finally:
        for lane in lanes:
            await lane.transport.close()


def dispatcher_of(  # noqa: PLR0913, PLR0917 - what it stands on
    settings: Settings,
    lanes: Sequence[Lane],
    worker: Worker,
    database: Database,
    catalogue: Catalogue,
    operator: Operator,
    doorbell: Doorbell,
    metrics: Metrics,
) -> Dispatcher:
    """Return what sends the pushes of a worker, in these lanes."""

    async def load(user_ids: Sequence[int]) -> Mapping[int, Preferences]:
        return await preferences.load(database, operator, user_ids)

    composer = Composer(catalogue, settings.push_content)
    return Dispatcher(database, worker.id, lanes, composer, doorbell, load, metrics)


def web_push_key(settings: Settings) -> str | None:
    """Return the key that browsers need, in base64url, where they are pushed to."""
    vapid = vapid_of(settings)
    return vapid.public if vapid else None


def verifier_of(settings: Settings) -> Verifier:
    """Return what verifies tokens by the keys that are set; the embedded mode makes a secret of its own.

    Raises `Refusal` where there is no key, or one can't be used.
    """
    url, public = settings.jwt_jwks_url, _speakers(settings.jwt_public_keys_for)
    secrets = [] if settings.has_keys and not settings.jwt_secret else secrets_of(settings)
    return Verifier(
        [
            *(hs256(secret, _speakers(settings.jwt_secret_for)) for secret in secrets),
            *(of_pem(path, public) for path in settings.jwt_public_key_files),
        ],
        jwks=Jwks(str(url), _speakers(settings.jwt_jwks_for)) if url else None,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        user_claim=settings.jwt_user_claim,
    )


def signer_of(settings: Settings, *speakers: Speaker) -> Signer:
    """Return what makes tokens of these that the service takes. Raises `Refusal` where it can't be done."""
    for speaker in speakers:
        if speaker not in _speakers(settings.jwt_secret_for):
            raise Refusal(
                f"The secret is not for {speaker}, whose tokens their issuer makes: see TOCSIN_JWT_SECRET_FOR."
            )
    expected = Expected(settings.jwt_issuer, settings.jwt_audience, settings.jwt_user_claim)
    return Signer(secrets_of(settings)[0], expected)


def secrets_of(settings: Settings) -> Sequence[str]:
    """Return the secrets that tokens are signed with; the embedded mode makes its own. Raises `Refusal`."""
    if settings.jwt_secret:
        return [secret.get_secret_value() for secret in settings.jwt_secret]
    if settings.has_keys:
        raise Refusal("Public keys make no tokens: get one from their issuer, or set TOCSIN_JWT_SECRET too.")
    if settings.database_url is not None:
        raise Refusal(
            "With a database of your own, set TOCSIN_JWT_SECRET to at least 32 random bytes, "
            "or TOCSIN_JWT_PUBLIC_KEY_FILES or TOCSIN_JWT_JWKS_URL to the keys of your tokens' issuer."
        )
    folder = settings.data_dir
    try:
        if not (folder / "postgres").exists():
            raise Refusal(f"There is no secret in {folder} yet: start `tocsin serve` once, or set TOCSIN_JWT_SECRET.")
        return [own_secret(folder)]
    except PermissionError:
        raise Refusal(f"{folder} belongs to another user: become that user, or set TOCSIN_JWT_SECRET.") from None


def _speakers(audience: Audience) -> frozenset[Speaker]:
    return EVERYBODY if audience == "both" else frozenset({audience})


class _Server(uvicorn.Server):
    """The HTTP server, which says when it is ready."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.ready = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                service(house),
                http=Protocol,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


async def _together(
    server: _Server,
    listening: socket.socket,
    worker: Worker | None,
    when_ready: Callable[[Running], Awaitable[None]] | None,
) -> None:
    """Run all parts; when one ends, end the others."""
    house, doorbell = server.house, server.house.doorbell
    if worker:
        doorbell.answer("settled")
        if house.settings.database_url is None:
            await jobs.forget_workers(house.database)
    _outlive_signals()
    ears = asyncio.create_task(doorbell.hear_others())
    working = [asyncio.create_task(worker.run())] if worker else []
    serving = asyncio.create_task(server.serve([listening]))
    introducing = asyncio.create_task(_introduce(server, listening, when_ready))
    await asyncio.wait({serving, *working}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await asyncio.wait({serving})
    if worker:
        worker.stop()
    ended = await asyncio.gather(serving, *working, return_exceptions=True)
    await _end([ears, introducing])
    with contextlib.suppress(Unavailable):
        await doorbell.close()
    for error in ended:
        if error:
            raise error


async def _introduce(
    server: _Server, listening: socket.socket, when_ready: Callable[[Running], Awaitable[None]] | None
) -> None:
    await server.ready.wait()
    host, port = listening.getsockname()[:2]
    running = Running(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", server.house)
    log.info("serving", url=running.url)
    if when_ready:
        await when_ready(running)


@contextlib.contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """Take the port, without listening yet: who calls before all is ready is refused, not kept waiting."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:  # asyncio sets TCP_NODELAY on these
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((settings.host, settings.port))
        except OSError as error:
            raise Refusal(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.") from error
        yield bound


async def _migrate(settings: Settings, url: str) -> list[migrate.Step]:
    return await migrate.migrate(url, accept_undurable=settings.database_durable == "yes")


async def _patiently(attempt: Callable[[], Awaitable[list[migrate.Step]]]) -> list[migrate.Step]:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await attempt()
        except OUTAGES as error:
            if isinstance(error, HOPELESS) or time.monotonic() > end:
                raise Refusal(f"The database of TOCSIN_DATABASE_URL cannot be used: {error}.") from error
            log.warning("the database cannot be reached yet", error=str(error))
            await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let something go on for as long as the block runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await _end([task])


async def _end(tasks: Sequence[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _outlive_signals() -> None:
    """Let the HTTP server end when it is told to, without ending us: it raises the signal again when it has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def _on_signals(stop: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
