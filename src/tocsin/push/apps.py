"""The apps to push to: the lanes that the settings define, each with its channel and its transport."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import BaseModel, Field, ValidationError

from tocsin import secret_files
from tocsin.errors import Refusal
from tocsin.files import content_of, setting_tables
from tocsin.http_client.messages import Answer, Request
from tocsin.http_client.tls import Trust
from tocsin.http_client.transport import Transport
from tocsin.push.channels import Channel, Environment, Later, Outcome, Push, Refused, Stopped
from tocsin.push.channels.apns import Apns
from tocsin.push.channels.fcm import Fcm
from tocsin.push.channels.vapid import Vapid
from tocsin.push.channels.web_push import WebPush
from tocsin.push.lanes import Lane, lane_name
from tocsin.setting_types import MAX_PATH_LENGTH
from tocsin.settings import Settings

DEFAULT = "default"
"""The app of the environment variables."""

VAPID_FILE = "vapid.pem"
"""The file in the data folder with the VAPID key of the embedded mode."""

NO_CONTACT = "mailto:postmaster@localhost"
"""The contact in VAPID tokens if none is set. All services except Apple's accept it."""

log = structlog.get_logger(__name__)

_Text = Annotated[str, Field(min_length=1, max_length=200)]
_File = Annotated[str, Field(min_length=1, max_length=MAX_PATH_LENGTH)]


class _App(BaseModel, strict=True, extra="forbid", frozen=True):
    """A table in a file."""


class ApnsEntry(_App):
    """The key of an app at Apple. The sandbox has its own key if `key_file` is not valid for both environments."""

    key_file: _File
    key_id: _Text
    team_id: _Text
    topic: _Text
    sandbox_key_file: _File | None = None
    sandbox_key_id: _Text | None = None


class FcmEntry(_App):
    """The service account of an app at Google."""

    credentials_file: _File


class AppEntry(_App):
    """An app in TOCSIN_APPS_FILE."""

    apns: ApnsEntry | None = None
    fcm: FcmEntry | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A lane that the settings define: its channel and how to make it, and the files that it depends on."""

    name: str
    provider: type[Channel]
    make: Callable[[], Channel]
    settings: tuple[str, ...]
    files: tuple[Path, ...]
    origins: tuple[str, ...] = ()

    @property
    def configuration(self) -> str:
        """A digest of the settings and files of the lane."""
        digest = hashlib.sha256("\0".join(self.settings).encode())
        for file in self.files:
            with contextlib.suppress(OSError):  # making the channel reports it
                digest.update(content_of(file))
        return digest.hexdigest()


class Broken(Channel):
    """The channel of a lane whose settings are wrong: it sends nothing, and returns the reason."""

    window = 1

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def ready(self) -> Stopped | Later | None:
        """Return why nothing is sent."""
        return Stopped(self._reason)

    def request(self, push: Push) -> Request | Refused:  # noqa: ARG002 - as declared by Channel
        """Refuse every push."""
        return Refused(self._reason)

    def outcome(self, push: Push, answer: Answer) -> Outcome:  # noqa: ARG002 - as declared by Channel
        """Return why nothing is sent."""
        return Stopped(self._reason)


def lanes_of(settings: Settings) -> list[Lane]:
    """Make the lanes of all apps, in a running loop. A lane with an unusable key is logged; the others work.

    Raises `Refusal` if the settings contradict each other, or the file of apps has errors.
    """
    planned = plan(settings)
    if lacks_contact(planned, settings):
        log.warning(
            "web pushes to Safari will be refused: no contact is set",
            lane=lane_name("web", DEFAULT),
            hint="set TOCSIN_VAPID_SUBJECT to mailto:you@example.com",
        )
    return [lane_of(each, settings) for each in planned]


def lacks_contact(planned: Iterable[Planned], settings: Settings) -> bool:
    """Return whether there is a lane for browsers, and no contact that Apple accepts. Stand-ins accept any contact."""
    has_browsers = any(each.provider is WebPush for each in planned)
    return has_browsers and settings.push_contact is None and settings.push_ca_file is None


def plan(settings: Settings) -> list[Planned]:
    """Return the lanes that the settings define. Raises `Refusal` if the settings contradict each other."""
    apps = {DEFAULT: _of_variables(settings), **_of_file(settings.apps_file)}
    return [lane for provider in PROVIDERS for app, entry in apps.items() for lane in provider(app, entry, settings)]


def reload_keys(lanes: Sequence[Lane], settings: Settings) -> bool:
    """Reload the keys of lanes from their files, in a running loop; return whether any has changed.

    An unusable key is logged, and the lane keeps the previous one. A lane that has stopped tries again at once, even
    with the same keys, because the provider may have been reconfigured. Lanes are not added or removed before the next
    start. Raises `Refusal` if the settings contradict each other, or the file of apps has errors.
    """
    planned = {plan.name: plan for plan in plan(settings)}
    if planned.keys() != {lane.name for lane in lanes}:
        log.warning("app list changed; restart to apply it")
    renewed = [_renew(lane, planned[lane.name], settings) for lane in lanes if lane.name in planned]
    for lane in lanes:
        lane.try_now()
    return any(renewed)


def _renew(lane: Lane, planned: Planned, settings: Settings) -> bool:
    if lane.configuration == planned.configuration and not isinstance(lane.channel, Broken):
        return False
    try:
        channel = planned.make()
    except Refusal as refusal:
        log.error("key reload failed; the previous key stays in use", lane=lane.name, reason=str(refusal))  # noqa: TRY400
        return False
    lane.renew(channel, planned.configuration, _transport_of(planned, settings))
    log.info("lane keys reloaded", lane=lane.name)
    return True


def web_push_key(lanes: Iterable[Lane]) -> str | None:
    """Return the key that pages subscribe with, in base64url; None without a lane for browsers."""
    return next((lane.channel.public for lane in lanes if isinstance(lane.channel, WebPush)), None)


def _vapid(settings: Settings, file: Path) -> list[Vapid]:
    """Return the VAPID keys. The embedded mode makes one if there is none."""
    subject = settings.push_contact or NO_CONTACT
    if settings.vapid_key_file is None and not file.exists():
        return Vapid.make(file, subject)
    if settings.vapid_key_file is None:
        _claim(file)
    return Vapid.load(file, subject)


def _claim(file: Path) -> None:
    try:
        secret_files.claim(file)
    except OSError as error:
        raise Refusal(f"The key for web pushes {file} cannot be read: {error.strerror}.") from None


def _vapid_file(settings: Settings) -> Path | None:
    if settings.vapid_key_file or not settings.makes_keys:
        return settings.vapid_key_file
    try:
        return settings.data_dir / VAPID_FILE if settings.data_dir.exists() else None
    except PermissionError as error:
        raise Refusal(f"The data folder {settings.data_dir} cannot be read: {error.strerror}.") from None


def lane_of(planned: Planned, settings: Settings) -> Lane:
    """Make a lane, in a running loop. If its key is unusable, the error is logged and the lane sends nothing."""
    try:
        channel = planned.make()
    except Refusal as refusal:
        channel = Broken(str(refusal))
        log.error("lane cannot send: its settings are invalid", lane=planned.name, reason=str(refusal))  # noqa: TRY400
    return Lane(planned.name, planned.configuration, channel, _transport_of(planned, settings))


def _transport_of(planned: Planned, settings: Settings) -> Transport:
    return Transport(
        planned.provider.window,
        lone_first=planned.provider.lone_first,
        ca_file=settings.push_ca_file,
        allowed_origins=planned.origins,
    )


def _apns(app: str, entry: AppEntry, settings: Settings) -> Iterator[Planned]:
    if entry.apns:
        yield _apns_lane(app, entry.apns, "production", str(settings.apns_url))
        yield _apns_lane(app, entry.apns, "sandbox", str(settings.apns_sandbox_url))


def _apns_lane(app: str, entry: ApnsEntry, environment: Environment, url: str) -> Planned:
    is_sandbox = environment == "sandbox"
    key_file = Path((entry.sandbox_key_file if is_sandbox else None) or entry.key_file)
    key_id = (entry.sandbox_key_id if is_sandbox else None) or entry.key_id

    def make() -> Channel:
        return Apns(
            environment=environment, key_file=key_file, key_id=key_id, team_id=entry.team_id, topic=entry.topic, url=url
        )

    name = lane_name("apns", app, environment)
    return Planned(name, Apns, make, (url, key_id, entry.team_id, entry.topic), (key_file,))


def _fcm(app: str, entry: AppEntry, settings: Settings) -> Iterator[Planned]:
    if entry.fcm:
        file, url, ca_file = Path(entry.fcm.credentials_file), str(settings.fcm_url), settings.push_ca_file

        def make() -> Channel:
            return Fcm(credentials_file=file, url=url, trust=Trust(ca_file))

        yield Planned(lane_name("fcm", app), Fcm, make, (url,), (file,))


def _web(app: str, _entry: AppEntry, settings: Settings) -> Iterator[Planned]:
    file = _vapid_file(settings)
    if file is not None and app == DEFAULT:
        yield Planned(
            lane_name("web", app),
            WebPush,
            lambda: WebPush(_vapid(settings, file), settings.web_push_origins),
            (settings.vapid_subject or "",),
            (file,),
            settings.web_push_origins,
        )


PROVIDERS: list[Callable[[str, AppEntry, Settings], Iterator[Planned]]] = [_apns, _fcm, _web]
"""What yields the lanes of an app, by its name, its entry and the settings: one function for each provider."""


def _of_variables(settings: Settings) -> AppEntry:
    """Return the app of the environment variables. Raises `Refusal` if only some of those for APNs are set."""
    names = ("key_file", "key_id", "team_id", "topic")
    given = {
        name: str(value)
        for name in (*names, "sandbox_key_file", "sandbox_key_id")
        if (value := getattr(settings, f"apns_{name}"))
    }
    missing = [f"TOCSIN_APNS_{name.upper()}" for name in names if name not in given]
    has_apns = len(missing) < len(names)
    if has_apns and missing:
        raise Refusal(f"For pushes to iOS, set {' and '.join(missing)} too.")
    file = settings.fcm_credentials_file
    return AppEntry(
        apns=ApnsEntry(**given) if has_apns else None, fcm=FcmEntry(credentials_file=str(file)) if file else None
    )


def _of_file(file: Path | None) -> Mapping[str, AppEntry]:
    if file is None:
        return {}
    found, field_errors = {}, []
    for app, table in setting_tables(file, "The file of apps").items():
        try:
            found[app] = AppEntry.model_validate(table)
        except ValidationError as error:
            field_errors += [
                f"{file}: [{app}] {'.'.join(map(str, field_error['loc']))}: {field_error['msg']}."
                for field_error in error.errors(include_url=False, include_input=False)
            ]
    if field_errors:
        raise Refusal("\n".join(field_errors))
    return found
