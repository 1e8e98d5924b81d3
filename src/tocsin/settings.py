"""The settings: one frozen object, read once from the environment and `.env`.

Every name starts with `TOCSIN_`. Unknown names are an error, except those that Kubernetes sets for a service named
tocsin.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AnyHttpUrl, BaseModel, Field, PrivateAttr, ValidationError

from tocsin import setting_types as types
from tocsin.db.url import SCHEMA, in_schema
from tocsin.environment import variables
from tocsin.errors import Refusal
from tocsin.postgres.archive import Archive

PREFIX = "TOCSIN_"
OPERATIONS_PORT = f"{PREFIX}OPERATIONS_PORT"

_OF_KUBERNETES = re.compile(r"TOCSIN_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_ADDRESS_OF_KUBERNETES = re.compile(r"(tcp|udp|sctp)://")


def default_data_dir() -> Path:
    """Return the default data folder: in `/var/lib` for root and users without a home, otherwise in the user's home."""
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111 - Path's raises
    return Path("/var/lib" if os.geteuid() == 0 or not home.startswith("/") else home) / "tocsin"


class Settings(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """All settings. The field `data_dir` has the variable `TOCSIN_DATA_DIR`; `docstring_of` reads its description."""

    database_url: types.DatabaseUrl | None = None
    """PostgreSQL 15 or newer; unset: an embedded one"""
    database_durable: Literal["yes"] | None = None
    """`yes` accepts a database that reports `fsync` or `full_page_writes` off"""
    database_schema: types.Schema = SCHEMA
    """the schema of all tables in that database"""
    cells_file: types.File | None = None
    """a file with further databases, of a group of companies each (TOML)"""
    replica_url: types.DatabaseUrl | None = None
    """a standby of the database, from which lists and changes of inboxes are read if it has their current state"""
    replica_max_lag: int = Field(10, ge=1, le=3600)
    """seconds that the replica may be behind; later than that, all is read from the primary"""
    read_only: Literal["yes"] | None = None
    """`yes` serves reads only, as `tocsin serve --read-only` does; the database may be a standby"""
    nats_url: types.NatsUrl | None = None
    """NATS servers (nats://host:4222), separated by commas, that wake other processes"""
    nats_ca_file: types.File | None = None
    """the CA of their certificates, if the system does not trust it"""
    nats_cert_file: types.File | None = None
    """the client certificate for them"""
    nats_key_file: types.File | None = None
    """the key of the client certificate, if it is in a file of its own"""
    nats_credentials_file: types.File | None = None
    """the credentials for them (`.creds`)"""
    data_dir: types.File = Field(default_factory=default_data_dir)
    """the folder of the embedded PostgreSQL and its secrets"""
    min_free_disk: types.Size | None = None
    """free space on its disk, such as 2GiB, below which new events are refused; unset: at most 1 GiB; `none`: off"""
    archive_dir: types.ArchiveFolder | None = None
    """a folder that gets copies of the embedded PostgreSQL's write-ahead log, for restores"""
    archive_command: types.ArchiveCommand | None = None
    """a command that copies a file (%p) of that log under a name (%f), instead of a folder"""
    host: types.Host = "127.0.0.1"
    """the address to listen on"""
    port: types.Port = 8080
    """the port to listen on; 0: any free port"""
    operations_port: types.Port | None = None
    """a separate port for metrics and the console; unset: on the main port, with a token"""
    public_url: types.BaseUrl | None = None
    """the url of the service for clients, used in answers; unset: taken from the request"""
    root_path: types.RootPath = ""
    """the path prefix of all routes, such as `/notify`"""
    trusted_proxies: types.Networks = ()
    """addresses or networks, separated by commas, whose X-Forwarded headers count"""
    cors_origins: types.Origins = ()
    """origins, separated by commas, whose pages may call the service from a browser"""
    retention_days: int | None = Field(None, ge=1, le=36500)
    """days after which notifications are deleted; unset: never"""
    audit_retention_days: int = Field(365, ge=1, le=36500)
    """days after which entries of the audit log are deleted"""
    catalogue_dir: types.File | None = None
    """a folder with your own kinds, languages and texts"""
    push_content: Literal["full", "title", "none"] = "full"
    """what pushes show: all text, only the title of the kind, or a fixed text"""
    push_ca_file: types.File | None = None
    """an additional trust anchor, for push services in tests"""
    apns_key_file: types.File | None = None
    """Apple's key (.p8) for pushes to iOS"""
    apns_key_id: types.Name | None = None
    """the key's id"""
    apns_team_id: types.Name | None = None
    """the id of the team at Apple"""
    apns_topic: types.Name | None = None
    """the bundle id of the app"""
    apns_url: types.BaseUrl = AnyHttpUrl("https://api.push.apple.com")
    """the url of APNs"""
    apns_sandbox_url: types.BaseUrl = AnyHttpUrl("https://api.sandbox.push.apple.com")
    """the url of the sandbox of APNs"""
    apns_sandbox_key_file: types.File | None = None
    """the key for the sandbox, if one key is not valid for both"""
    apns_sandbox_key_id: types.Name | None = None
    """the id of that key"""
    fcm_credentials_file: types.File | None = None
    """Google's service account for pushes over FCM"""
    fcm_url: types.BaseUrl = AnyHttpUrl("https://fcm.googleapis.com")
    """the url of FCM"""
    apps_file: types.File | None = None
    """a file with further apps and their keys (TOML)"""
    vapid_key_file: types.File | None = None
    """the key for browsers (PEM, P-256); the embedded mode makes one"""
    vapid_subject: types.Contact | None = None
    """the contact for push services, mailto:you@example.com or an https url; unset: the public url"""
    web_push_origins: types.Origins = ()
    """origins of push services in addition to the known ones"""
    preferences_file: types.File | None = None
    """a file with the defaults of preferences, and which of them users cannot change"""
    jwt_secret: types.Secrets = ()
    """HS256 secrets of at least 32 bytes, separated by commas: the first signs, all verify"""
    jwt_secret_for: types.Audience = "both"  # noqa: S105 - not a secret
    """whose tokens the secrets verify: users, services or both"""
    jwt_public_key_files: types.Files = ()
    """files, separated by commas, with a public key or certificate each: RSA, EC or Ed25519"""
    jwt_public_keys_for: types.Audience = "both"
    """whose tokens these keys verify"""
    jwt_jwks_url: types.JwksUrl | None = None
    """the url of the issuer's published keys"""
    jwt_jwks_for: types.Audience = "both"
    """whose tokens the published keys verify"""
    jwt_issuer: str | None = None
    """the required `iss`; unset: not checked"""
    jwt_audience: str | None = None
    """the required `aud`, or one of its values; unset: not checked"""
    jwt_issuer_for: Literal["published", "all"] = "all"
    """which tokens must have that `iss` and `aud`: those signed by published keys, or all"""
    jwt_user_claim: types.UserClaim = "sub"
    """the claim with the id of a user, or the path to it"""
    jwt_service_claim: types.Claims = ("sub",)
    """claims, separated by commas, with the name of a service; the first that exists is used"""
    jwt_scope_claim: types.Claims = ("scope",)
    """claims, separated by commas, with scopes, each a string or a list"""
    jwt_scopes: types.Scopes = ()
    """scopes of the issuer by their names there: Events.Write=events:write, separated by commas"""
    oidc_issuer: types.SafeUrl | None = None
    """the OpenID provider at which operators sign in to the console; unset: they need a link or a token"""
    oidc_client_id: types.Name | None = None
    """the id of Tocsin at that provider"""
    oidc_client_secret_file: types.File | None = None
    """a file with its secret, if the provider demands one"""
    oidc_scopes: types.OidcScopes = "openid profile"
    """the scopes that are requested, separated by spaces"""
    oidc_role_claim: types.Name = "roles"
    """the claim of the ID token with the roles of a person, or the path to it"""
    oidc_roles: types.Roles = ()
    """roles by their names at the provider: crm-admins=operator, separated by commas; unset: the same names"""
    oidc_company_claim: types.Name | None = None
    """the required claim with the company of a person, or `*` for all; unset: `company_id` if it is there"""
    console_url: types.ConsoleUrl | None = None
    """the url of the console; unset: /console at the public url"""
    limit_user_requests: types.Limit = types.Rate(3000, "minute")
    """requests with the tokens of one user, such as 3000/minute; `none`: no limit"""
    limit_service_requests: types.Limit = None
    """requests with the tokens of one service"""
    limit_service_events: types.Limit = None
    """events that one service posts"""
    limit_custom_calls: types.Limit = types.Rate(60, "minute")
    """`POST /notifications` of one user"""
    limit_custom_recipients: types.Limit = types.Rate(5000, "hour")
    """recipients of the custom notifications of one user, members of teams included"""
    limit_devices: types.Limit = types.Rate(60, "hour")
    """registrations of devices and browsers by one user"""
    limit_failed_auth: types.Limit = types.Rate(600, "minute")
    """requests without a valid token from one address, or one /64 of IPv6"""
    log_format: Literal["console", "json"] = "console"
    """the format of the log"""

    @property
    def has_keys(self) -> bool:
        """Whether keys for tokens are set. If not, the embedded mode creates a secret."""
        return bool(self.jwt_secret or self.jwt_public_key_files or self.jwt_jwks_url)

    @property
    def has_guessable_secret(self) -> bool:
        """Whether a secret of tokens has fewer than eight different characters, as placeholders have."""
        return any(len(set(secret.get_secret_value())) < 8 for secret in self.jwt_secret)  # noqa: PLR2004

    @property
    def ports(self) -> dict[str, int]:
        """The ports of a server by the names of their settings. Raises `Refusal` if they are the same."""
        ports = {f"{PREFIX}PORT": self.port}
        if self.operations_port is not None:
            ports[OPERATIONS_PORT] = self.operations_port
        if self.port and self.port == self.operations_port:
            raise Refusal(f"{' and '.join(ports)} are both {self.port}; set one of them to another port.")
        return ports

    @property
    def own_database_url(self) -> str | None:
        """The url of a database that is not embedded, for sessions in its schema."""
        if self.database_url is None:
            return None
        return in_schema(self.database_url.get_secret_value(), self.database_schema)

    @property
    def url_setting(self) -> str | None:
        """The name of the setting with the url of the database; None: it is embedded."""
        if self.database_url is None:
            return None
        return f"{PREFIX}CELLS_FILE" if self.cell else f"{PREFIX}DATABASE_URL"

    @property
    def archive(self) -> Archive | None:
        """The archive of the embedded PostgreSQL. Raises `Refusal` if it is set twice or for another server."""
        if self.archive_dir is None and self.archive_command is None:
            return None
        if self.archive_dir and self.archive_command:
            raise Refusal(f"{PREFIX}ARCHIVE_DIR and {PREFIX}ARCHIVE_COMMAND exclude each other; set one of them.")
        if self.database_url is not None:
            raise Refusal(
                f"{PREFIX}ARCHIVE_DIR and {PREFIX}ARCHIVE_COMMAND are for the embedded PostgreSQL; unset them, and"
                " configure the archive of your own PostgreSQL there."
            )
        return Archive(self.archive_dir and self.archive_dir.resolve(), self.archive_command)

    _cell: str = PrivateAttr("")
    _is_beside_embedded: bool = PrivateAttr(default=False)

    def of_cell(self, name: str, changed: Mapping[str, Any]) -> Self:
        """Return the settings of one of several cells."""
        found = self.model_copy(update=changed)
        found._cell, found._is_beside_embedded = name, self.makes_keys  # noqa: SLF001 - of the same class
        return found

    @property
    def makes_keys(self) -> bool:
        """Whether keys are made in the data folder: in embedded mode, also for cells in other databases."""
        return self.database_url is None or self._is_beside_embedded

    @property
    def cell(self) -> str:
        """The name of the cell of which these are; empty for the default one, and without cells."""
        return self._cell

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
        return contact if types.is_contact(contact) else None

    @property
    def catalogue_folders(self) -> tuple[Path, ...]:
        """The folder of the operator's catalogue, if it is set."""
        return () if self.catalogue_dir is None else (self.catalogue_dir,)


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


def _is_of_kubernetes(name: str, value: str) -> bool:
    if name == f"{PREFIX}PORT":
        return _ADDRESS_OF_KUBERNETES.match(value) is not None
    return _OF_KUBERNETES.fullmatch(name) is not None


def _message_of(field_error: Mapping[str, Any]) -> str:
    name = PREFIX + str(field_error["loc"][0]).upper()
    return f"{name} is not usable: {field_error['msg'].removeprefix('Value error, ')}."
