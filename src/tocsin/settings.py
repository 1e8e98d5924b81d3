"""The settings: one frozen object, read once from the environment and `.env`.

Every name starts with `TOCSIN_`. Unknown names are an error, except those that Kubernetes sets for a service named
tocsin.
"""

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AnyHttpUrl, Field, SecretStr, UrlConstraints, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from tocsin.db import url
from tocsin.environment import variables
from tocsin.errors import Refusal

PREFIX = "TOCSIN_"
MIN_SECRET_BYTES = 32
"""Minimum bytes of an HS256 secret (RFC 7518, section 3.2)."""

MAX_PATH_LENGTH, MAX_FILE_NAME_BYTES = 4000, 255
"""Maximum characters of a path, and maximum bytes of each name in it."""

Audience = Literal["users", "services", "both"]
Scope = Literal["events:write", "directory:write", "operations"]

_TIMES = frozenset({"exp", "nbf", "iat"})
_TAKEN_CLAIMS = frozenset({*_TIMES, "iss", "aud", "jti", "scope", "company_id"})
_OF_KUBERNETES = re.compile(r"TOCSIN_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_PREFIX_OF_PATHS = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORT = re.compile(r"^(https(?=.*:443$)|http(?=.*:80$))(://.*):\d+")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_PATHS = (
    *("data_dir", "catalogue_dir", "apps_file", "preferences_file", "push_ca_file", "vapid_key_file"),
    *("apns_key_file", "apns_sandbox_key_file", "fcm_credentials_file", "jwt_public_key_files"),
)
_NATS = re.compile(r"(nats|tls)://[^\s/]+")
_PUBLIC_NAME = r"(?=[a-z0-9.-]{1,253}(?:[:/]|$))(?:[a-z0-9-]{1,63}\.)+(?!localhost(?:[:/]|$))[a-z][a-z0-9-]{0,62}"
_CONTACT = re.compile(
    rf"mailto:[\w!#$%&'*+/=?^`{{|}}~.-]+@{_PUBLIC_NAME}|https://{_PUBLIC_NAME}(?::\d{{1,5}})?(?:/[!-~]*)?",
    re.ASCII | re.IGNORECASE,
)
_SCHEME = re.compile(r"\A[a-z]+:", re.ASCII | re.IGNORECASE)
_ADDRESS_OF_KUBERNETES = re.compile(r"(tcp|udp|sctp)://")


def default_data_dir() -> Path:
    """Return the default data folder: in `/var/lib` for root and users without a home, otherwise in the user's home."""
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111 - Path's raises
    return Path("/var/lib" if os.geteuid() == 0 or not home.startswith("/") else home) / "tocsin"


class Settings(BaseSettings):
    """All settings. The field `data_dir` has the variable `TOCSIN_DATA_DIR`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    database_url: SecretStr | None = Field(None, description="PostgreSQL 15 or newer; unset: an embedded one")
    database_durable: Literal["yes"] | None = Field(
        None, description="`yes` accepts a database that reports `fsync` or `full_page_writes` off"
    )
    nats_url: SecretStr | None = Field(
        None,
        description="NATS servers (nats://host:4222), separated by commas, that wake other processes",
    )
    data_dir: Path = Field(
        default_factory=default_data_dir, description="the folder of the embedded PostgreSQL and its secrets"
    )
    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="the port to listen on; 0: any free port")
    operations_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="a separate port for metrics and the console; unset: on the main port, with a token",
    )
    public_url: Annotated[AnyHttpUrl, UrlConstraints(max_length=500)] | None = Field(
        None, description="the url of the service for clients, used in answers; unset: taken from the request"
    )
    root_path: str = Field("", description="the path prefix of all routes, such as `/notify`")
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="addresses or networks, separated by commas, whose X-Forwarded headers count"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins, separated by commas, whose pages may call the service from a browser"
    )
    retention_days: int | None = Field(
        None, ge=1, le=36500, description="days after which notifications are deleted; unset: never"
    )
    catalogue_dir: Path | None = Field(None, description="a folder with your own kinds, languages and texts")
    push_content: Literal["full", "title", "none"] = Field(
        "full", description="what pushes show: all text, only the title of the kind, or a fixed text"
    )
    push_ca_file: Path | None = Field(None, description="an additional trust anchor, for push services in tests")
    apns_key_file: Path | None = Field(None, description="Apple's key (.p8) for pushes to iOS")
    apns_key_id: str | None = Field(None, max_length=200, description="the key's id")
    apns_team_id: str | None = Field(None, max_length=200, description="the id of the team at Apple")
    apns_topic: str | None = Field(None, max_length=200, description="the bundle id of the app")
    apns_url: AnyHttpUrl = Field(AnyHttpUrl("https://api.push.apple.com"), description="the url of APNs")
    apns_sandbox_url: AnyHttpUrl = Field(
        AnyHttpUrl("https://api.sandbox.push.apple.com"), description="the url of the sandbox of APNs"
    )
    apns_sandbox_key_file: Path | None = Field(
        None, description="the key for the sandbox, if one key is not valid for both"
    )
    apns_sandbox_key_id: str | None = Field(None, max_length=200, description="the id of that key")
    fcm_credentials_file: Path | None = Field(None, description="Google's service account for pushes over FCM")
    fcm_url: AnyHttpUrl = Field(AnyHttpUrl("https://fcm.googleapis.com"), description="the url of FCM")
    apps_file: Path | None = Field(None, description="a file with further apps and their keys (TOML)")
    vapid_key_file: Path | None = Field(
        None, description="the key for browsers (PEM, P-256); the embedded mode makes one"
    )
    vapid_subject: str | None = Field(
        None,
        description="the contact for push services, mailto:you@example.com or an https url; unset: the public url",
    )
    web_push_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins of push services in addition to the known ones"
    )
    preferences_file: Path | None = Field(
        None, description="a file with the defaults of preferences, and which of them users cannot change"
    )
    jwt_secret: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="HS256 secrets of at least 32 bytes, separated by commas: the first signs, all verify"
    )
    jwt_secret_for: Audience = Field("both", description="whose tokens the secrets verify: users, services or both")
    jwt_public_key_files: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="files, separated by commas, with a public key or certificate each: RSA, EC or Ed25519"
    )
    jwt_public_keys_for: Audience = Field("both", description="whose tokens these keys verify")
    jwt_jwks_url: Annotated[AnyHttpUrl, UrlConstraints(max_length=500)] | None = Field(
        None, description="the url of the issuer's published keys"
    )
    jwt_jwks_for: Audience = Field("both", description="whose tokens the published keys verify")
    jwt_issuer: str | None = Field(None, description="the required `iss`; unset: not checked")
    jwt_audience: str | None = Field(None, description="the required `aud`, or one of its values; unset: not checked")
    jwt_issuer_for: Literal["published", "all"] = Field(
        "all", description="which tokens must have that `iss` and `aud`: those signed by published keys, or all"
    )
    jwt_user_claim: str = Field("sub", description="the claim with the id of a user, or the path to it")
    jwt_service_claim: Annotated[tuple[str, ...], NoDecode] = Field(
        ("sub",), description="claims, separated by commas, with the name of a service; the first that exists is used"
    )
    jwt_scope_claim: Annotated[tuple[str, ...], NoDecode] = Field(
        ("scope",), description="claims, separated by commas, with scopes, each a string or a list"
    )
    jwt_scopes: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="scopes of the issuer by their names there: Events.Write=events:write, separated by commas"
    )
    log_format: Literal["console", "json"] = Field("console", description="the format of the log")

    @field_validator(
        "jwt_secret",
        "jwt_public_key_files",
        "jwt_service_claim",
        "jwt_scope_claim",
        "jwt_scopes",
        "trusted_proxies",
        "cors_origins",
        "web_push_origins",
        mode="before",
    )
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("host", mode="before")
    @classmethod
    def _check_host(cls, value: Any) -> Any:
        host = value.removeprefix("[").removesuffix("]") if isinstance(value, str) else value
        if not isinstance(host, str) or not (_is_address(host) or _HOST.fullmatch(host)):
            raise ValueError("write an address such as 127.0.0.1, 0.0.0.0 or ::1, or a host name")
        return host

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            url.check(value.get_secret_value())
        return value

    @field_validator(*_PATHS)
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        """Expand `~` to the home folder of the user."""
        return tuple(map(_at_home, value)) if isinstance(value, tuple) else value and _at_home(value)

    @property
    def has_keys(self) -> bool:
        """Whether keys for tokens are set. If not, the embedded mode creates a secret."""
        return bool(self.jwt_secret or self.jwt_public_key_files or self.jwt_jwks_url)

    @property
    def base_url(self) -> str | None:
        """The url of the service for clients, including the path prefix; None: taken from the request."""
        if self.public_url is None:
            return None
        has_prefix = (self.public_url.path or "").rstrip("/").endswith(self.root_path)
        return str(self.public_url).rstrip("/") + ("" if has_prefix else self.root_path)

    @property
    def push_contact(self) -> str | None:
        """The contact for web push: the setting or the public url. None if push services would reject it."""
        contact = self.vapid_subject or self.base_url or ""
        return contact if _CONTACT.fullmatch(contact) else None

    @property
    def catalogue_folders(self) -> tuple[Path, ...]:
        """The folder of the operator's catalogue, if it is set."""
        return () if self.catalogue_dir is None else (self.catalogue_dir,)

    @field_validator("nats_url")
    @classmethod
    def _check_nats_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not all(_is_nats(each.strip()) for each in value.get_secret_value().split(",")):
            raise ValueError("write nats://host:4222 or tls://host:4222, several of them separated by commas")
        return value

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        if value and not _PREFIX_OF_PATHS.fullmatch(value):
            raise ValueError(
                "a prefix starts with /, does not end with / and contains only A-Z, a-z, 0-9, /, ., _, ~ and -"
            )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ip_network(network)
            except ValueError:
                raise ValueError("each must be an address, or a network such as 10.0.0.0/8 without host bits") from None
        return value

    @field_validator("cors_origins", "web_push_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in value:
            raise ValueError("`*` would allow every web page; list each origin")
        origins = tuple(_DEFAULT_PORT.sub(r"\1\2", origin.lower()) for origin in value)
        if not all(_ORIGIN.fullmatch(origin) and _has_good_port(origin) for origin in origins):
            raise ValueError("an origin is scheme://host or scheme://host:port, without a path")
        return origins

    @field_validator("jwt_secret")
    @classmethod
    def _check_secrets(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in value:
            if len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
                raise ValueError(f"each secret needs at least {MIN_SECRET_BYTES} bytes")
            if len(set(secret.get_secret_value())) < 8:  # noqa: PLR2004 - placeholders repeat few characters
                raise ValueError("a secret repeats a few characters: generate one with `openssl rand -hex 32`")
        return value

    @field_validator("jwt_public_key_files")
    @classmethod
    def _check_file_names(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if Path() in value:
            raise ValueError("the name of a file is missing before or after a comma")
        return value

    @field_validator("vapid_subject")
    @classmethod
    def _check_vapid_subject(cls, value: str | None) -> str | None:
        if value is None:
            return None
        contact = _SCHEME.sub(lambda scheme: scheme[0].lower(), value.strip(), count=1)
        if not _CONTACT.fullmatch(contact):
            raise ValueError(
                "write mailto:you@example.com or an https url, with a public host name; Apple rejects others"
            )
        return contact

    @field_validator("jwt_jwks_url")
    @classmethod
    def _check_jwks_url(cls, value: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if value is not None and (value.username or value.password or value.fragment):
            raise ValueError("a JWKS is public: its url has no user, password or fragment")
        return value

    @field_validator("jwt_user_claim")
    @classmethod
    def _check_user_claim(cls, value: str) -> str:
        if value in _TAKEN_CLAIMS:
            raise ValueError("this claim already has another meaning")
        return value

    @field_validator("jwt_service_claim", "jwt_scope_claim")
    @classmethod
    def _check_claims(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("the name of a claim is missing before or after a comma")
        if not _TIMES.union({"company_id"}).isdisjoint(value):
            raise ValueError("one of these claims has another meaning")
        return value

    @field_validator("jwt_scopes")
    @classmethod
    def _check_scopes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name, _, scope in (pair.rpartition("=") for pair in value):
            if not name or scope not in get_args(Scope):
                raise ValueError(f"write Events.Write=events:write; the scopes are {', '.join(get_args(Scope))}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - as declared by the library
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the arguments of the constructor, which `read_settings` collects."""
        return (init_settings,)


def read_settings(
    environment: Mapping[str, str] = os.environ, env_file: Path = Path(".env"), **overrides: Any
) -> Settings:
    """Read the settings from `environment` and `env_file`. The environment takes precedence.

    Raises `Refusal`, which names all invalid variables without their values.
    """
    found = variables(PREFIX, environment, env_file)
    given = {name: value for name, value in found.items() if not _is_of_kubernetes(name, value)}
    unknown = sorted(name for name in given if name.removeprefix(PREFIX).lower() not in Settings.model_fields)
    if unknown:
        raise Refusal(f"Unknown setting {' or '.join(unknown)}; `tocsin config` lists all settings.")
    values = {name.removeprefix(PREFIX).lower(): value for name, value in given.items()}
    try:
        return Settings(**{**values, **overrides})
    except ValidationError as error:
        raise Refusal(
            "; ".join(_message_of(field_error) for field_error in error.errors(include_input=False))
        ) from None


def _at_home(path: Path) -> Path:
    try:
        whole = path.expanduser()
    except RuntimeError:
        raise ValueError("~ cannot be expanded, because the user has no home folder: write the full path") from None
    if len(str(whole)) > MAX_PATH_LENGTH or any(len(os.fsencode(part)) > MAX_FILE_NAME_BYTES for part in whole.parts):
        raise ValueError(
            f"a path has at most {MAX_PATH_LENGTH} characters, and a name in it {MAX_FILE_NAME_BYTES} bytes"
        )
    return whole


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


def _is_of_kubernetes(name: str, value: str) -> bool:
    if name == f"{PREFIX}PORT":
        return _ADDRESS_OF_KUBERNETES.match(value) is not None
    return _OF_KUBERNETES.fullmatch(name) is not None


def _message_of(field_error: Mapping[str, Any]) -> str:
    name = PREFIX + str(field_error["loc"][0]).upper()
    return f"{name} is not usable: {field_error['msg'].removeprefix('Value error, ')}."
