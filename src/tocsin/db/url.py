"""The url of the database: checked, split into what the driver accepts, and masked for output."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from tocsin.errors import Refusal
from tocsin.files import content_of

ENCODE = "percent-encode # / ? @ [ ] in user and password (%23 %2F %3F %40 %5B %5D)"
"""What to do about an ambiguous url."""

MASK = "***"
"""Replaces a password."""

_DRIVER = (
    "host port dbname database user password passfile sslmode sslcert sslkey sslrootcert sslnegotiation sslcrl"
    " sslpassword ssl_min_protocol_version ssl_max_protocol_version target_session_attrs krbsrvname gsslib service"
    " options"
)
"""The parameters that asyncpg accepts in a url."""

_IGNORED = (
    "channel_binding client_encoding connect_timeout fallback_application_name gssdelegation gssencmode hostaddr"
    " keepalives keepalives_count keepalives_idle keepalives_interval load_balance_hosts max_protocol_version"
    " min_protocol_version oauth_client_id oauth_client_secret oauth_issuer oauth_scope replication require_auth"
    " requirepeer scram_client_key scram_server_key servicefile sslcertmode sslcompression sslcrldir sslkeylogfile"
    " sslsni tcp_user_timeout"
)
"""Other parameters of libpq, which asyncpg would send to the server as settings."""

_KINDS = ("primary", "read-write", "standby", "prefer-standby", "read-only", "any")
"""The values of `target_session_attrs`."""

_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%25\w+)?\]|[^\[\]:@/?#\s]*)(?::(\d{1,5}))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_PORT = re.compile(r"\d{1,5}")
_END_OF_AUTHORITY = re.compile(r"[/?#]")
_SECRETS = ("password", "secret", "scram_")
_LAST_PORT = 65535


READ_ONLY = "default_transaction_read_only"
"""The setting of a session that refuses all writes, also on a primary."""

SCHEMA = "tocsin"
"""The schema of all tables, so that the database can be shared with the host application, unless the url names one."""

SCHEMA_PARAMETER = "tocsin.schema"
"""The parameter of a url that names another schema."""


@dataclass(frozen=True, slots=True)
class Target:
    """One url per host, without parameters that the driver does not know, and the settings of the server in the url."""

    dsns: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]


def check(url: str) -> None:
    """Raise `ValueError` for an invalid url. The message contains no part of the url."""
    if not url.isprintable() or " " in url:
        raise ValueError("it has a space or a control character: percent-encode it")
    if not url.startswith(("postgres://", "postgresql://")):
        raise ValueError("write it like postgresql://user:password@host:5432/database")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(ENCODE) from None
    credentials, _, hosts = parts.netloc.rpartition("@")
    is_cut = bool(parts.netloc) and not credentials and "@" in parts.path + parts.query
    if "#" in url or set(credentials) & set("@[]") or set(parts.path[1:]) & set("@/") or is_cut:
        raise ValueError(ENCODE)
    parameters = _parameters(parts)
    for listed in (hosts, parameters.get("host", "")):
        if "," in listed and not all(each.partition(":")[0] for each in listed.split(",")):
            raise ValueError("it names an empty host")
    if parameters.get("target_session_attrs", "any") not in _KINDS:
        raise ValueError(f"its target_session_attrs must be one of {', '.join(_KINDS)}")
    ports = [(_HOST.fullmatch(host) or (None, "0"))[1] for host in hosts.split(",")]
    if not all(port is None or 0 < int(port) <= _LAST_PORT for port in [*ports, *_ports_of(parameters)]):
        raise ValueError(f"its host or port cannot be read: a port is 1 to {_LAST_PORT}; {ENCODE}")


@lru_cache(maxsize=16)
def target_of(url: str) -> Target:
    """Split a url into what the driver accepts, and settings of the server, without other parameters of libpq."""
    parts = urlsplit(url)
    given = _parameters(parts)
    taken = {name: value for name, value in given.items() if name in _DRIVER.split()}
    if "hostaddr" in given and "host" not in taken and not parts.netloc.rpartition("@")[2]:
        taken["host"] = given["hostaddr"]
    settings = tuple((name, value) for name, value in given.items() if name not in f"{_DRIVER} {_IGNORED}".split())
    return Target(
        tuple(_dsn(parts, {**taken, **changed}, netloc) for netloc, changed in _hosts(parts, taken)), settings
    )


def _hosts(parts: SplitResult, taken: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return the authority and the changed parameters of each host. The list of ports may be shorter or missing."""
    credentials, at, named = parts.netloc.rpartition("@")
    hosts = named.split(",") if named else taken.get("host", "").split(",")
    ports = taken.get("port", "").split(",")
    if len(ports) not in {1, len(hosts)}:
        return [(parts.netloc, {})]  # the driver explains it
    each = [{"port": port} if port else {} for port in (ports if len(ports) > 1 else ports * len(hosts))]
    if named:
        return [(f"{credentials}{at}{host}", port) for host, port in zip(hosts, each, strict=True)]
    return [
        (parts.netloc, {**({"host": host} if host else {}), **port}) for host, port in zip(hosts, each, strict=True)
    ]


def _dsn(parts: SplitResult, taken: Mapping[str, str], netloc: str) -> str:
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in taken.items())
    return parts._replace(netloc=netloc, query=query, fragment="").geturl()


def read_only(url: str) -> str:
    """Return the url of the same database for sessions that cannot write."""
    return url if is_read_only(url) else _with(url, READ_ONLY, "on")


def in_schema(url: str, schema: str) -> str:
    """Return the url of the same database for sessions whose tables are in a schema."""
    return url if schema_of(url) == schema else _with(url, SCHEMA_PARAMETER, schema)


def schema_of(url: str) -> str:
    """Return the schema of the tables for sessions of a url."""
    return dict(target_of(url).settings).get(SCHEMA_PARAMETER, SCHEMA)


def is_read_only(url: str) -> bool:
    """Return whether sessions of a url cannot write, also on a primary."""
    return (READ_ONLY, "on") in target_of(url).settings


def check_files(url: str) -> None:
    """Raise `Refusal` if a file in a url cannot be read: the error of the driver does not name it."""
    for name, value in _parameters(urlsplit(url)).items():
        if name in {"sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile"} and value != "system":
            try:
                content_of(Path(value))
            except OSError as error:
                raise Refusal(
                    f"The file {value}, which TOCSIN_DATABASE_URL names as {name}, cannot be read: {error.strerror}."
                ) from None


def place_of(url: str) -> str:
    """Return user, hosts with ports, and name of a database, without the password."""
    parts = urlsplit(url)
    given = _parameters(parts)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user = given.get("user") or unquote(credentials.partition(":")[0])
    host = given.get("host") or unquote(hosts) or given.get("hostaddr") or "the local socket"
    if port := given.get("port"):
        host += f":{port}"
    name = given.get("dbname") or given.get("database") or unquote(parts.path[1:])
    return f"{user}@{host}/{name}" if user else f"{host}/{name}"


def masked(url: str, *, user_too: bool = False) -> str:
    """Return a url with its passwords masked; with `user_too`, also the user, which may be a token."""
    scheme, mark, rest = url.partition("://")
    end = _END_OF_AUTHORITY.search(rest)
    authority, rest = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    credentials, at, host = authority.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        credentials = MASK if user_too or not (user or colon) else user + (f":{MASK}" if colon else "")
    path, question, query = rest.partition("?")
    shown = "&".join(
        f"{name}={MASK}" if equals and any(word in name.lower() for word in _SECRETS) else name + equals + value
        for name, equals, value in (each.partition("=") for each in query.split("&"))
    )
    return f"{scheme}{mark}{credentials}{at}{host}{path}{question}{shown}"


def _parameters(parts: SplitResult) -> dict[str, str]:
    """Return the parameters of a url, the last of each name. As in libpq, a plus is not a space."""
    found = {}
    for each in parts.query.split("&") if parts.query else ():
        name, equals, value = each.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ValueError(f"its parameters are not name=value: {ENCODE}")
        found[name] = unquote(value)
    return found


def _with(url: str, name: str, value: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{name}={value}"


def _ports_of(parameters: dict[str, str]) -> list[str]:
    port = parameters.get("port", "")
    return [each if _PORT.fullmatch(each) else "0" for each in port.split(",")] if port else []
