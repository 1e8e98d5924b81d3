"""The types of settings: how the text of a variable is checked and converted."""

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, AnyHttpUrl, BeforeValidator, ByteSize, Field, SecretStr, UrlConstraints

from tocsin.db import url

MIN_SECRET_BYTES = 32
"""Minimum bytes of an HS256 secret (RFC 7518, section 3.2)."""

MAX_PATH_LENGTH, MAX_FILE_NAME_BYTES = 4000, 255
"""Maximum characters of a path, and maximum bytes of each name in it."""

MAX_URL_LENGTH = 500

Audience = Literal["users", "services", "both"]
Role = Literal["operator", "support", "viewer"]
Scope = Literal["events:write", "directory:write", "operations", "operations:support", "operations:read"]

SECONDS = {"second": 1, "minute": 60, "hour": 3600}
"""The windows of rate limits, in seconds."""

_RATE = re.compile(rf"([1-9][0-9]{{0,8}})/({'|'.join(SECONDS)})")
_BYTES = re.compile(r"[0-9]{1,15}(\.[0-9]{1,3})? ?([kmgt]i?)?b?", re.ASCII | re.IGNORECASE)
_TIMES = frozenset({"exp", "nbf", "iat"})
_TAKEN_CLAIMS = frozenset({*_TIMES, "iss", "aud", "jti", "scope", "company_id"})
_PREFIX_OF_PATHS = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORT = re.compile(r"^(https(?=.*:443$)|http(?=.*:80$))(://.*):\d+")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_NATS = re.compile(r"(nats|tls)://[^\s/]+")
_PUBLIC_NAME = r"(?=[a-z0-9.-]{1,253}(?:[:/]|$))(?:[a-z0-9-]{1,63}\.)+(?!localhost(?:[:/]|$))[a-z][a-z0-9-]{0,62}"
_CONTACT = re.compile(
    rf"mailto:[\w!#$%&'*+/=?^`{{|}}~.-]+@{_PUBLIC_NAME}|https://{_PUBLIC_NAME}(?::\d{{1,5}})?(?:/[!-~]*)?",
    re.ASCII | re.IGNORECASE,
)
_INTERPRETED = "'\"\\$`%"
"""Characters that a shell or PostgreSQL would interpret in the path of an archive."""

_SAFE_URL = re.compile(
    r"(https://[A-Za-z0-9.:\[\]-]{1,260}|http://(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?)([/?][!\"$-~]*)?",
    re.ASCII,
)
_SCHEMA = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SCHEME = re.compile(r"\A[a-z]+:", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate limit: at most `quota` per `unit`."""

    quota: int
    unit: str

    @property
    def seconds(self) -> int:
        """The length of the window."""
        return SECONDS[self.unit]

    def __str__(self) -> str:
        """Return the rate as it is written in a setting."""
        return f"{self.quota}/{self.unit}"


def is_contact(text: str) -> bool:
    """Return whether push services accept this contact."""
    return _CONTACT.fullmatch(text) is not None


def is_safe_url(text: str) -> bool:
    """Return whether this is an https URL, or one of http on this machine, without a user and a fragment."""
    return len(text) <= MAX_URL_LENGTH and _SAFE_URL.fullmatch(text) is not None


def _split_at_commas(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _host(value: Any) -> Any:
    host = value.removeprefix("[").removesuffix("]") if isinstance(value, str) else value
    if not isinstance(host, str) or not (_is_address(host) or _HOST.fullmatch(host)):
        raise ValueError("write an address such as 127.0.0.1, 0.0.0.0 or ::1, or a host name")
    return host


def _rate(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text == "none":
        return None
    if not (found := _RATE.fullmatch(text)):
        raise ValueError(
            f"write a number and one of {', '.join(SECONDS)}, such as 60/minute, or none to switch the limit off"
        )
    return Rate(int(found[1]), found[2])


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.strip().lower() == "none":
        return 0
    if not _BYTES.fullmatch(value.strip()):  # pydantic ignores what follows the unit
        raise ValueError("write a number of bytes such as 500MB or 2GiB, or none to switch the limit off")
    return value


def _database_url(value: SecretStr) -> SecretStr:
    url.check(value.get_secret_value())
    return value


def _schema(value: str) -> str:
    if not _SCHEMA.fullmatch(value) or value.startswith("pg_") or value in {"public", "information_schema"}:
        raise ValueError("write up to 40 of a-z, 0-9 and _, with a letter first; not public, and no name of PostgreSQL")
    return value


def _nats_url(value: SecretStr) -> SecretStr:
    if not all(_is_nats(each.strip()) for each in value.get_secret_value().split(",")):
        raise ValueError("write nats://host:4222 or tls://host:4222, several of them separated by commas")
    return value


def _root_path(value: str) -> str:
    if value and not _PREFIX_OF_PATHS.fullmatch(value):
        raise ValueError(
            "a prefix starts with /, does not end with / and contains only A-Z, a-z, 0-9, /, ., _, ~ and -"
        )
    return value


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for network in value:
        try:
            ip_network(network)
        except ValueError:
            raise ValueError("each must be an address, or a network such as 10.0.0.0/8 without host bits") from None
    return value


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    if "*" in value:
        raise ValueError("`*` would allow every web page; list each origin")
    origins = tuple(_DEFAULT_PORT.sub(r"\1\2", origin.lower()) for origin in value)
    if not all(_ORIGIN.fullmatch(origin) and _has_good_port(origin) for origin in origins):
        raise ValueError("an origin is scheme://host or scheme://host:port, without a path")
    return origins


def _secrets(value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    for secret in value:
        if len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"each secret needs at least {MIN_SECRET_BYTES} bytes")
    return value


def _file_names(value: tuple[Path, ...]) -> tuple[Path, ...]:
    if Path() in value:
        raise ValueError("the name of a file is missing before or after a comma")
    return value


def _contact(value: str) -> str:
    contact = _SCHEME.sub(lambda scheme: scheme[0].lower(), value.strip(), count=1)
    if not is_contact(contact):
        raise ValueError("write mailto:you@example.com or an https url, with a public host name; Apple rejects others")
    return contact


def _base_url(value: AnyHttpUrl) -> AnyHttpUrl:
    if value.username or value.password or value.query is not None or value.fragment is not None:
        raise ValueError("paths are appended to this url: it has no user, password, query or fragment")
    return value


def _jwks_url(value: AnyHttpUrl) -> AnyHttpUrl:
    if value.username or value.password or value.fragment:
        raise ValueError("a JWKS is public: its url has no user, password or fragment")
    return value


def _user_claim(value: str) -> str:
    if value in _TAKEN_CLAIMS:
        raise ValueError("this claim already has another meaning")
    return value


def _claims(value: tuple[str, ...]) -> tuple[str, ...]:
    if "" in value:
        raise ValueError("the name of a claim is missing before or after a comma")
    if not _TIMES.union({"company_id"}).isdisjoint(value):
        raise ValueError("one of these claims has another meaning")
    return value


def _renaming(example: str, known: tuple[str, ...]) -> AfterValidator:
    """Return the validator of pairs: a name of the issuer, and one of the known names."""

    def check(value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(theirs and name in known for theirs, _, name in (pair.rpartition("=") for pair in value)):
            raise ValueError(f"write {example} are {', '.join(known)}")
        return value

    return AfterValidator(check)


def _safe_url(value: str) -> str:
    if not is_safe_url(value) or "?" in value:
        raise ValueError(
            "write an https URL without a user, a query and a fragment; http is allowed on this machine only"
        )
    return value


def _console_url(value: str) -> str:
    url = value.rstrip("/")
    if not url.endswith("/console"):
        raise ValueError("the url of the console ends with /console, such as https://ops.example.com/console")
    return url


def _oidc_scopes(value: str) -> str:
    if "openid" not in value.split(" ") or not value.isprintable():
        raise ValueError("write scopes separated by spaces, with openid among them")
    return value


def _at_home(path: Path) -> Path:
    """Expand `~` to the home folder of the user."""
    try:
        whole = path.expanduser()
    except RuntimeError:
        raise ValueError("~ cannot be expanded, because the user has no home folder: write the full path") from None
    if len(str(whole)) > MAX_PATH_LENGTH or any(len(os.fsencode(part)) > MAX_FILE_NAME_BYTES for part in whole.parts):
        raise ValueError(
            f"a path has at most {MAX_PATH_LENGTH} characters, and a name in it {MAX_FILE_NAME_BYTES} bytes"
        )
    return whole


def _archive_folder(value: Path) -> Path:
    if not str(value).isprintable() or set(str(value)) & set(_INTERPRETED):
        raise ValueError(f"its path must be printable and have none of {_INTERPRETED}")
    return value


def _archive_command(value: str) -> str:
    if not value.isprintable() or "%p" not in value:
        raise ValueError("write one line that has %p (the file to copy) and %f (its name)")
    return value


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_nats(url: str) -> bool:
    return _NATS.fullmatch(url) is not None and _has_good_port(url)


def _has_good_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


_Words = Annotated[tuple[str, ...], BeforeValidator(_split_at_commas)]

Host = Annotated[str, BeforeValidator(_host)]
Limit = Annotated[Rate | None, BeforeValidator(_rate)]
"""A rate limit; None: there is no limit."""
Size = Annotated[ByteSize, BeforeValidator(_size)]
"""A number of bytes, such as 500MB or 2GiB; `none` is 0."""
Port = Annotated[int, Field(ge=0, le=65535)]
_Url = Annotated[AnyHttpUrl, UrlConstraints(max_length=MAX_URL_LENGTH)]
BaseUrl = Annotated[_Url, AfterValidator(_base_url)]
"""A URL to which paths are appended."""
Schema = Annotated[str, AfterValidator(_schema)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
NatsUrl = Annotated[SecretStr, AfterValidator(_nats_url)]
JwksUrl = Annotated[_Url, AfterValidator(_jwks_url)]
RootPath = Annotated[str, AfterValidator(_root_path)]
Networks = Annotated[_Words, AfterValidator(_networks)]
Origins = Annotated[_Words, AfterValidator(_origins)]
SafeUrl = Annotated[str, AfterValidator(_safe_url)]
"""An https URL, or one of http on this machine."""
ConsoleUrl = Annotated[SafeUrl, AfterValidator(_console_url)]
Roles = Annotated[_Words, _renaming("crm-admins=operator; the roles", get_args(Role))]
OidcScopes = Annotated[str, Field(max_length=500), AfterValidator(_oidc_scopes)]
Name = Annotated[str, Field(max_length=200)]
File = Annotated[Path, AfterValidator(_at_home)]
ArchiveFolder = Annotated[File, AfterValidator(_archive_folder)]
ArchiveCommand = Annotated[str, Field(max_length=1000), AfterValidator(_archive_command)]
Files = Annotated[tuple[File, ...], BeforeValidator(_split_at_commas), AfterValidator(_file_names)]
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_split_at_commas), AfterValidator(_secrets)]
Contact = Annotated[str, AfterValidator(_contact)]
UserClaim = Annotated[str, AfterValidator(_user_claim)]
Claims = Annotated[_Words, AfterValidator(_claims)]
Scopes = Annotated[_Words, _renaming("Events.Write=events:write; the scopes", get_args(Scope))]
