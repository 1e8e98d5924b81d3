"""What the service stands on, looked at without changing any of it: settings, files, port, database, queue."""

import errno
import json
import os
import re
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tocsin import readiness
from tocsin.auth.jwks import FETCH_TIMEOUT, MAX_BYTES
from tocsin.auth.keys import EVERYBODY, SECRET_FILE, of_jwks, of_pem
from tocsin.catalogue import Catalogue
from tocsin.cli.send import local_url
from tocsin.db import migrate
from tocsin.db.errors import DRIVER_ERRORS, first_line, sentence_on
from tocsin.db.pool import Connection, connect, queries
from tocsin.db.url import check_files, place_of
from tocsin.errors import Refusal, Unavailable
from tocsin.http_client.fetch import FetchError, fetch
from tocsin.jobs import LEASE_TIMEOUT
from tocsin.postgres.supervisor import is_served, url_of
from tocsin.preferences import Operator
from tocsin.push import probe
from tocsin.push.apps import Planned, lacks_contact, lane_of, plan
from tocsin.push.channels import DeviceType, Stopped
from tocsin.push.content import Composer
from tocsin.secret_files import is_open_to_others
from tocsin.settings import PREFIX, Settings, read_settings

LEAST_SPACE, LITTLE_SPACE = 100 * 2**20, 2**30
"""Free bytes of the data folder's disk below which PostgreSQL may stop any moment, and those that are soon used up."""

MAX_CLOCK_SKEW = 2.0
"""Seconds that the database's clock may be off ours."""

MAX_QUEUE_WAIT = 60.0
"""Seconds for which a job that is due may wait in a healthy service."""

DATABASE_TIMEOUT = 3.0
"""Seconds that what listens on our port may take to say that it is a Tocsin."""

HELD = "correct its key or settings; until then its pushes wait"
"""What to do about a lane that cannot send."""

_STATUS = re.compile(r"[1-5]\d\d\b")
_BY_OTHERS = 0o067
"""Rights on the data folder that nobody else has; as root, the server's user passes through by the group."""

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_SQL = queries("doctor")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how it is, and what to do about it."""

    level: Literal["ok", "warn", "FAIL"]
    what: str
    finding: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the finding as a line."""
        finding = "; ".join(line.rstrip(".") for line in self.finding.splitlines())
        return f"{self.level:4} {self.what}: {finding}" + (f"; {self.remedy}" if self.remedy else "")


async def examine(env_file: Path = Path(".env")) -> list[Finding]:
    """Look at everything; what can't be looked at is itself a finding."""
    found = [*_env_file(env_file)]
    try:
        settings = read_settings(env_file=env_file)
    except Refusal as refusal:
        return [Finding("FAIL", "settings", str(refusal).rstrip("."), "`tocsin config` lists all settings"), *found]
    found = [Finding("ok", "settings", f"{len(settings.model_fields_set)} are set"), *found]
    found += [
        *_catalogue(settings),
        *[finding async for finding in _push(settings)],
        *_keys(settings),
        *[finding async for finding in _jwks(settings)],
        *_surroundings(settings),
        *[finding async for finding in _port(settings)],
    ]
    if settings.database_url is None:
        found += [*_data_folder(settings.data_dir), *_space(settings.data_dir)]
    return [*found, *[finding async for finding in _database(settings)]]


async def _push(settings: Settings) -> AsyncIterator[Finding]:
    """Look at the lanes that the settings make, and try each provider's credentials, without pushing to anybody."""
    try:
        planned = plan(settings)
    except Refusal as refusal:
        yield Finding("FAIL", "push", str(refusal).rstrip("."), "correct the named setting or file")
        return
    for lane in planned:
        if device := lane.provider.probe_type:
            try:
                lane.make()
            except Refusal as refusal:
                yield Finding("FAIL", f"push {lane.name}", str(refusal).rstrip("."), HELD)
            else:
                yield await _credentials(lane, settings, device)
        for file in filter(_is_open, lane.files):
            yield Finding("warn", f"push {lane.name}", f"others can read {file}", f"close it: chmod 600 {file}")
    if lacks_contact(planned, settings):
        said = f"{PREFIX}VAPID_SUBJECT is not set and there is no public https url: Apple refuses pushes to Safari"
        yield Finding("warn", "push web/default", said, f"set {PREFIX}VAPID_SUBJECT to mailto:you@example.com")
    yield Finding("ok", "push", f"{len(planned)} lanes: {', '.join(lane.name for lane in planned) or 'none is set'}")


def _is_open(path: Path) -> bool:
    return path.is_file() and is_open_to_others(path.stat().st_mode)


async def _credentials(planned: Planned, settings: Settings, device: DeviceType) -> Finding:
    lane = lane_of(planned, settings)
    try:
        wrong = await probe.credentials(lane, Composer(Catalogue.load()), device)
    finally:
        await lane.transport.close()
    what = f"push {lane.name}"
    if isinstance(wrong, Stopped):
        return Finding("FAIL", what, f"the provider refused the credentials: {wrong.reason}", HELD)
    if wrong and _STATUS.match(wrong.reason):
        return Finding(
            "warn", what, f"the provider refused a test push: {wrong.reason}", "look up the reason, and try again"
        )
    if wrong:
        said = f"the provider could not be reached: {wrong.reason}"
        return Finding("warn", what, said, "check outbound network access to the provider")
    return Finding("ok", what, "the provider accepts the credentials")


def _catalogue(settings: Settings) -> Iterator[Finding]:
    try:
        found = Catalogue.load(*settings.catalogue_folders)
    except Refusal as refusal:
        yield Finding("FAIL", "catalogue", str(refusal).rstrip("."), "correct the named setting or file")
    else:
        yield Finding("ok", "catalogue", f"{len(found.kinds)} kinds")
        yield from _preferences(settings.preferences_file, found)


def _preferences(path: Path | None, catalogue: Catalogue) -> Iterator[Finding]:
    try:
        Operator.load(catalogue, path)
    except Refusal as refusal:
        yield Finding("FAIL", "preferences", str(refusal).rstrip("."), "correct the named setting or file")
    else:
        yield Finding(
            "ok", "preferences", f"the defaults are read from {path}" if path else "the defaults of the catalogue"
        )


# Files


def _env_file(path: Path) -> Iterator[Finding]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        yield Finding("ok", ".env", "there is none here")
        return
    except OSError as error:
        yield Finding("FAIL", ".env", f"it can't be looked at: {error.strerror}", "start in another folder")
        return
    if is_open_to_others(mode):
        yield Finding("warn", ".env", "others can read it, and it may hold secrets", f"close it: chmod 600 {path}")
    else:
        yield Finding("ok", ".env", "it is read, and closed to others")


def _keys(settings: Settings) -> Iterator[Finding]:
    if not settings.has_keys:
        yield from _own_secret(settings)
        return
    try:
        for path in settings.jwt_public_key_files:
            of_pem(path, EVERYBODY)
    except Refusal as refusal:
        sentence, _, remedy = str(refusal).rstrip(".").partition(": ")
        yield Finding("FAIL", "keys of tokens", sentence, remedy)
    else:
        yield Finding("ok", "keys of tokens", f"tokens are verified by {' and '.join(_sources(settings))}")


def _own_secret(settings: Settings) -> Iterator[Finding]:
    path = settings.data_dir / SECRET_FILE
    try:
        if settings.database_url is not None:
            remedy = f"set {PREFIX}JWT_SECRET to at least 32 random bytes"
            yield Finding(
                "FAIL", "keys of tokens", "no keys are set, and none are created with an external database", remedy
            )
        elif not path.exists():
            yield Finding("warn", "keys of tokens", "no keys exist yet", "the first `tocsin serve` creates a secret")
        elif is_open_to_others(path.stat().st_mode):
            yield Finding("FAIL", "keys of tokens", f"others can read {path}", f"close it: chmod 600 {path}")
        elif path.stat().st_uid != os.geteuid():
            said = f"{path} belongs to user {path.stat().st_uid}, who can replace it"
            yield Finding("FAIL", "keys of tokens", said, "run this as the user who runs Tocsin, or delete it")
        else:
            said = f"tokens are verified by the secret {path}, which is closed to others"
            yield Finding("ok", "keys of tokens", said)
    except PermissionError:
        yield Finding("FAIL", "keys of tokens", f"{path} belongs to another user", "become that user")


def _sources(settings: Settings) -> Iterator[str]:
    """Yield what tokens are verified by, and whose: `2 secrets (users)`."""
    if count := len(settings.jwt_secret):
        yield f"{count} secret{'s' if count > 1 else ''} ({settings.jwt_secret_for})"
    if count := len(settings.jwt_public_key_files):
        yield f"{count} public key{'s' if count > 1 else ''} in files ({settings.jwt_public_keys_for})"
    if settings.jwt_jwks_url:
        yield f"a JWKS ({settings.jwt_jwks_for})"


async def _jwks(settings: Settings) -> AsyncIterator[Finding]:
    if settings.jwt_jwks_url is None:
        return
    url = str(settings.jwt_jwks_url)
    try:
        keys = of_jwks(await fetch(url, seconds=FETCH_TIMEOUT, limit=MAX_BYTES), EVERYBODY)
    except (FetchError, ValueError) as error:
        remedy = f"make sure that it answers, or correct {PREFIX}JWT_JWKS_URL"
        yield Finding("FAIL", "JWKS", f"{url}: {str(error).rstrip('.')}", remedy)
        return
    if _is_plain(url):
        yield Finding("warn", "JWKS", f"the keys at {url} can be forged on the way", "fetch them over https")
    else:
        yield Finding("ok", "JWKS", f"{len(keys)} key{'s' if len(keys) > 1 else ''} at {url} may verify")


def _data_folder(folder: Path) -> Iterator[Finding]:
    try:
        found = folder.stat()
        list(folder.iterdir())
    except FileNotFoundError:
        yield Finding("warn", "data folder", f"{folder} is not there yet", "the first `tocsin serve` creates it")
    except OSError as error:
        yield Finding("FAIL", "data folder", f"{folder}: {error.strerror}", f"become its user, or set {PREFIX}DATA_DIR")
    else:
        if found.st_mode & _BY_OTHERS:
            yield Finding("warn", "data folder", f"others can enter {folder}", f"close it: chmod 700 {folder}")
        else:
            yield Finding("ok", "data folder", f"{folder} is closed to others")


def _space(folder: Path) -> Iterator[Finding]:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if _is_there(path))
    free = shutil.disk_usage(place).free
    said = f"{free // 2**20} MiB are free in {place}"
    if free < LEAST_SPACE:
        yield Finding("FAIL", "disk", said, "free disk space now: PostgreSQL stops on a full disk")
    elif free < LITTLE_SPACE:
        yield Finding("warn", "disk", said, "free disk space soon")
    else:
        yield Finding("ok", "disk", said)


def _is_there(path: Path) -> bool:
    """Tell whether a path can be seen: one in a folder that is closed to us cannot."""
    try:
        return path.exists()
    except PermissionError:
        return False


# What is around


def _surroundings(settings: Settings) -> Iterator[Finding]:
    if not settings.cors_origins:
        yield Finding("ok", "origins", "no other origin may call the service")
    elif plain := [origin for origin in settings.cors_origins if _is_plain(origin)]:
        yield Finding("warn", "origins", f"{', '.join(plain)} can be forged on the way", "serve these pages over https")
    else:
        yield Finding("ok", "origins", f"pages of {', '.join(settings.cors_origins)} may call the service")
    wide = [network for network in settings.trusted_proxies if ip_network(network).prefixlen == 0]
    if wide:
        remedy = "list the addresses of the proxies"
        yield Finding("warn", "proxies", f"{', '.join(wide)} trusts X-Forwarded headers of any address", remedy)
    else:
        yield Finding("ok", "proxies", ", ".join(settings.trusted_proxies) or "none is trusted")


def _is_plain(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in _LOOPBACK


async def _port(settings: Settings) -> AsyncIterator[Finding]:
    where = f"{settings.host}:{settings.port}"
    try:
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((settings.host, settings.port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            yield Finding("FAIL", "port", f"{where}: {error.strerror}", f"set {PREFIX}HOST or {PREFIX}PORT")
        elif await _is_ours(settings):
            yield Finding("ok", "port", f"a Tocsin listens on {where}")
        else:
            yield Finding("FAIL", "port", f"something else listens on {where}", f"stop it, or set {PREFIX}PORT")
    else:
        yield Finding("ok", "port", f"{where} is free: no service runs there")


async def _is_ours(settings: Settings) -> bool:
    try:
        answer = await fetch(f"{local_url(settings, settings.port)}/healthz", seconds=DATABASE_TIMEOUT, limit=1000)
        return bool(json.loads(answer) == {"status": "ok"})
    except (FetchError, ValueError):
        return False


# The database


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    place = place_of(settings.database_url.get_secret_value()) if settings.database_url else "the embedded PostgreSQL"
    try:
        if settings.database_url is None and not is_served(settings.data_dir):
            yield Finding("warn", "database", "the embedded PostgreSQL does not run", "start `tocsin serve`")
            return
        url = settings.database_url.get_secret_value() if settings.database_url else url_of(settings.data_dir)
        check_files(url)
        connection = await connect(url, 10)
    except (*DRIVER_ERRORS, ValueError, Refusal) as error:
        yield _trouble(place, error)
        return
    try:
        await migrate.refuse_shared_sessions(connection, url)
        for check in (_server, _schema_and_queue, _lanes):
            async for finding in check(connection, settings, place):
                yield finding
    except (*DRIVER_ERRORS, Refusal) as error:
        yield _trouble(place, error)
    finally:
        connection.terminate()


def _trouble(place: str, error: BaseException) -> Finding:
    sentence = str(error) if isinstance(error, Refusal) else sentence_on(error)
    said, _, remedy = sentence.rstrip(".").partition("; ")
    return Finding("FAIL", "database", f"{place}: {said}", remedy)


async def _lanes(connection: Connection, _settings: Settings, _place: str) -> AsyncIterator[Finding]:
    if not await migrate.is_current(connection):
        return
    for lane in await connection.fetch(_SQL["stopped_lanes"]):
        yield Finding(
            "FAIL",
            f"push {lane['name']}",
            f"has stopped: {lane['reason']}",
            "correct its key, its settings or the clock",
        )
    for service in await connection.fetch(_SQL["refusing_services"]):
        said = f"{service['origin']} has refused authentication since {service['refused_at']:%Y-%m-%d %H:%M:%S} UTC"
        remedy = f"check {PREFIX}VAPID_SUBJECT, {PREFIX}VAPID_KEY_FILE and the clock"
        yield Finding("FAIL", f"push {service['lane']}", f"{said}: {service['reason']}", remedy)


async def _server(connection: Connection, settings: Settings, place: str) -> AsyncIterator[Finding]:
    before = time.time()
    server = await connection.fetchrow(_SQL["server"])
    ours = (before + time.time()) / 2
    assert server is not None  # noqa: S101 - the statement returns one row
    version, off = server["version"], set(server["off"])
    if version < migrate.OLDEST_SERVER:
        remedy = f"take {migrate.OLDEST_SERVER} or newer"
        yield Finding("FAIL", "database", f"PostgreSQL {version} is too old", remedy)
    else:
        yield await _writes(connection, f"PostgreSQL {version} answers and takes writes: {place}")
    if server["encoding"] == "UTF8":
        yield Finding("ok", "encoding", "UTF8")
    else:
        yield Finding(
            "FAIL",
            "encoding",
            f"{server['encoding']} cannot store all text",
            "create a database with the encoding UTF8",
        )
    for finding in _durability(off, accepted=settings.database_durable == "yes"):
        yield finding
    skew = server["clock"] - ours
    if abs(skew) > MAX_CLOCK_SKEW:
        yield Finding(
            "warn", "clock", f"the database's clock differs by {skew:+.1f} s", "synchronize both clocks with NTP"
        )
    else:
        yield Finding("ok", "clock", "the database's clock agrees with this machine's")


async def _writes(connection: Connection, finding: str) -> Finding:
    """Write nothing that stays: to the disk of the database, and to its log."""
    try:
        await readiness.refuse_read_only(connection)
    except (*DRIVER_ERRORS, Unavailable) as error:
        reason = error.reason if isinstance(error, Unavailable) else first_line(error)
        remedy = {
            readiness.STANDBY: "connect to the primary",
            readiness.READ_ONLY: "grant write access to its role",
        }.get(reason, "correct the named problem")
        return Finding("FAIL", "database", f"it accepts no writes: {reason}", remedy)
    return Finding("ok", "database", finding)


def _durability(off: Iterable[str], *, accepted: bool) -> Iterator[Finding]:
    lossy = [name for name in ("synchronous_commit",) if name in off]
    risky = [name for name in ("fsync", "full_page_writes") if name in off]
    if lossy or (risky and not accepted):
        names = " and ".join([*risky, *lossy])
        yield Finding("FAIL", "durability", f"{names} off: a crash may lose accepted events", "turn them on")
    elif risky:
        yield Finding("ok", "durability", f"{' and '.join(risky)} off, which {PREFIX}DATABASE_DURABLE=yes accepts")
    else:
        yield Finding("ok", "durability", "fsync, full_page_writes and synchronous_commit are on")


async def _schema_and_queue(connection: Connection, _settings: Settings, _place: str) -> AsyncIterator[Finding]:
    missing = await migrate.missing(connection)
    if len(missing) == len(migrate.steps()):
        yield Finding("ok", "schema", "it is not there yet", "the first `tocsin serve` or `tocsin migrate` creates it")
        return
    if missing:
        yield Finding("FAIL", "schema", f"{len(missing)} migrations are pending", "run `tocsin migrate`")
        return
    yield Finding("ok", "schema", "it has every migration of this release")
    queue = await connection.fetchrow(_SQL["queue"])
    assert queue is not None  # noqa: S101 - the statement returns one row
    if dead := queue["dead_letters"]:
        remedy = "their reasons are in the table tocsin.dead_letters"
        yield Finding("warn", "dead letters", f"{dead}{' or more' if dead == 1000 else ''} failed", remedy)  # noqa: PLR2004 - the statement's limit
    else:
        yield Finding("ok", "dead letters", "none")
    alive = await connection.fetchval(_SQL["workers"], LEASE_TIMEOUT)
    waiting = queue["waiting"] or 0.0
    if waiting > MAX_QUEUE_WAIT:
        remedy = "run more `tocsin worker` processes" if alive else "start `tocsin worker`"
        level: Literal["warn", "FAIL"] = "warn" if alive else "FAIL"
        yield Finding(level, "queue", f"the oldest job has waited {waiting:.0f} s", remedy)
    else:
        yield Finding("ok", "queue", f"the oldest job has waited {waiting:.0f} s")
    if alive:
        yield Finding("ok", "workers", f"{alive} running")
    else:
        yield Finding("warn", "workers", "no worker is running", "start `tocsin serve` or `tocsin worker`")
    for name, problem in await readiness.problems(connection):
        yield Finding("FAIL", f"worker {name}", f"it is blocked: {problem}", "correct the named problem; see its log")
