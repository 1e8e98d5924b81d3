"""Checks of the machine: files, disk, the port and proxies."""

import errno
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from pathlib import Path

from tocsin.api.connections import connections_with
from tocsin.cli.doctor.finding import Finding, is_plain
from tocsin.cli.send import local_url
from tocsin.disk_guard import free_and_needed
from tocsin.errors import Refusal
from tocsin.http_client.fetch import FetchError, fetch
from tocsin.postgres.data_dir import refuse_unusable_path
from tocsin.secret_files import is_open_to_others
from tocsin.settings import PREFIX, Settings

LOW_FACTOR = 2
"""How many times the space that must be free on the disk of the data folder is little enough for a warning."""

FEW_CONNECTIONS = 1_000
"""Connections of clients below which the limit of open files is reported."""

PORT_TIMEOUT = 3.0
"""Maximum seconds that a server on the port may take to identify itself as Tocsin."""

_BY_OTHERS = 0o067
"""Permissions of others on the data folder; as root, the server's user enters by the group's execute permission."""


def check_env_file(path: Path) -> Iterator[Finding]:
    """Check that others cannot read the file of variables."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        yield Finding("ok", ".env", "there is no such file in this folder")
        return
    except OSError as error:
        yield Finding("FAIL", ".env", f"it cannot be read: {error.strerror}", "start in another folder")
        return
    if is_open_to_others(mode):
        yield Finding(
            "warn", ".env", "other users can read it, and it may contain secrets", f"close it: chmod 600 {path}"
        )
    else:
        yield Finding("ok", ".env", "other users cannot read it")


def check_data_folder(folder: Path) -> Iterator[Finding]:
    """Check that the path of the data folder is usable, and that others cannot enter it."""
    try:
        refuse_unusable_path(Path(os.path.realpath(folder)))  # unlike `resolve`, it ends in a loop of links
        found = folder.stat()
        list(folder.iterdir())
    except Refusal as refusal:
        said, _, remedy = str(refusal).rstrip(".").partition("; ")
        yield Finding("FAIL", "data folder", said, remedy)
    except FileNotFoundError:
        yield Finding("warn", "data folder", f"{folder} does not exist yet", "the first `tocsin serve` creates it")
    except OSError as error:
        yield Finding("FAIL", "data folder", f"{folder}: {error.strerror}", f"become its user, or set {PREFIX}DATA_DIR")
    else:
        if found.st_mode & _BY_OTHERS:
            yield Finding("warn", "data folder", f"other users can enter {folder}", f"close it: chmod 700 {folder}")
        else:
            yield Finding("ok", "data folder", f"other users cannot enter {folder}")


def check_file_limit(soft: int, hard: int) -> Iterator[Finding]:
    """Check how many connections these limits of open files allow, for a service that is started from here."""
    most, _ = connections_with(hard)
    said = f"{hard} open files are allowed, for {most} connections (soft limit {soft}, which the service raises)"
    if most < FEW_CONNECTIONS:
        yield Finding("warn", "open files", said, "raise the hard limit: LimitNOFILE of systemd, or ulimit -Hn")
    else:
        yield Finding("ok", "open files", said)


def check_free_space(folder: Path, min_free: int | None) -> Iterator[Finding]:
    """Check the free space on the disk of the data folder."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if _is_there(path))
    free, needed = free_and_needed(place, min_free)
    said = f"{free // 2**20} MiB are free in {place}"
    if free < needed:
        remedy = f"free disk space now: new events are refused below {needed // 2**20} MiB"
        yield Finding("FAIL", "disk", said, remedy)
    elif free < needed * LOW_FACTOR:
        remedy = f"free disk space soon: new events are refused below {needed // 2**20} MiB"
        yield Finding("warn", "disk", said, remedy)
    else:
        yield Finding("ok", "disk", said)


def _is_there(path: Path) -> bool:
    """Return whether a path exists; False in a folder that this user cannot enter."""
    try:
        return path.exists()
    except PermissionError:
        return False


def check_network(settings: Settings) -> Iterator[Finding]:
    """Check the allowed origins and the trusted proxies."""
    if not settings.cors_origins:
        yield Finding("ok", "origins", "no other origin may call the service")
    elif plain := [origin for origin in settings.cors_origins if is_plain(origin)]:
        yield Finding("warn", "origins", f"{', '.join(plain)} can be forged on the way", "serve these pages over https")
    else:
        yield Finding("ok", "origins", f"pages of {', '.join(settings.cors_origins)} may call the service")
    wide = [network for network in settings.trusted_proxies if ip_network(network).prefixlen == 0]
    if wide:
        remedy = "list the addresses of the proxies"
        yield Finding("warn", "proxies", f"{', '.join(wide)} trusts X-Forwarded headers of any address", remedy)
    else:
        yield Finding("ok", "proxies", ", ".join(settings.trusted_proxies) or "no proxy is trusted")


async def check_port(settings: Settings) -> AsyncIterator[Finding]:
    """Check that the port is free, or that a Tocsin listens on it."""
    where = f"{settings.host}:{settings.port}"
    try:
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((settings.host, settings.port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            yield Finding("FAIL", "port", f"{where}: {error.strerror}", f"set {PREFIX}HOST or {PREFIX}PORT")
        elif await _is_tocsin(settings):
            yield Finding("ok", "port", f"a Tocsin listens on {where}")
        else:
            yield Finding("FAIL", "port", f"something else listens on {where}", f"stop it, or set {PREFIX}PORT")
    else:
        yield Finding("ok", "port", f"{where} is free")


async def _is_tocsin(settings: Settings) -> bool:
    try:
        answer = await fetch(f"{local_url(settings, settings.port)}/healthz", seconds=PORT_TIMEOUT, limit=1000)
        return bool(json.loads(answer) == {"status": "ok"})
    except (FetchError, ValueError):
        return False
