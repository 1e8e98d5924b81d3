"""Checks of what the settings name: the catalogue, the lanes of pushes, the keys of tokens, the bus."""

import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tocsin.auth.jwks import FETCH_TIMEOUT, MAX_BYTES
from tocsin.auth.keys import ALL_SPEAKERS, SECRET_FILE, of_jwks, of_pem
from tocsin.catalogue import Catalogue
from tocsin.cli.doctor.finding import Finding, is_plain
from tocsin.errors import Refusal
from tocsin.http_client.fetch import FetchError, fetch
from tocsin.preferences import Operator
from tocsin.push import probe
from tocsin.push.apps import Planned, lacks_contact, lane_of, plan
from tocsin.push.channels import DeviceType, Stopped
from tocsin.push.content import Composer
from tocsin.secret_files import is_open_to_others
from tocsin.settings import PREFIX, Settings

HELD = "correct its key or settings; until then its pushes wait"
"""What to do about a lane that cannot send."""

_STATUS = re.compile(r"[1-5]\d\d\b")


def check_catalogue(settings: Settings) -> Iterator[Finding]:
    """Check the catalogue and the defaults of preferences."""
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


async def check_push(settings: Settings) -> AsyncIterator[Finding]:
    """Check the lanes that the settings make, and the credentials of each provider, without a push to a device."""
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
            yield Finding("warn", f"push {lane.name}", f"other users can read {file}", f"close it: chmod 600 {file}")
    if lacks_contact(planned, settings):
        said = f"{PREFIX}VAPID_SUBJECT is not set and there is no public https url: Apple refuses pushes to Safari"
        yield Finding("warn", "push web/default", said, f"set {PREFIX}VAPID_SUBJECT to mailto:you@example.com")
    yield Finding(
        "ok", "push", f"{len(planned)} lanes: {', '.join(lane.name for lane in planned) or 'no keys are set'}"
    )


def check_secret_files(settings: Settings) -> Iterator[Finding]:
    """Check that others cannot read the files with secrets, besides the keys of push services."""
    for name in ("cells_file", "nats_key_file", "nats_credentials_file", "oidc_client_secret_file"):
        path: Path | None = getattr(settings, name)
        if path is not None and _is_open(path):
            said = f"other users can read {path}, and it may contain secrets"
            yield Finding("warn", f"{PREFIX}{name.upper()}", said, f"close it: chmod 600 {path}")


def _is_open(path: Path) -> bool:
    try:
        return path.is_file() and is_open_to_others(path.stat().st_mode)
    except PermissionError:  # its folder is closed to others
        return False


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


def check_keys(settings: Settings) -> Iterator[Finding]:
    """Check the keys that verify tokens."""
    if settings.has_guessable_secret:
        remedy = "generate one with `openssl rand -hex 32`"
        yield Finding("warn", f"{PREFIX}JWT_SECRET", "a secret repeats a few characters and can be guessed", remedy)
    if not settings.has_keys:
        yield from _own_secret(settings)
        return
    try:
        for path in settings.jwt_public_key_files:
            of_pem(path, ALL_SPEAKERS)
    except Refusal as refusal:
        sentence, _, remedy = str(refusal).rstrip(".").partition(": ")
        yield Finding("FAIL", "keys of tokens", sentence, remedy)
    else:
        yield Finding("ok", "keys of tokens", f"tokens are verified by {' and '.join(_sources(settings))}")


def _own_secret(settings: Settings) -> Iterator[Finding]:
    path = settings.data_dir / SECRET_FILE
    try:
        if not settings.makes_keys:
            remedy = f"set {PREFIX}JWT_SECRET to at least 32 random bytes"
            yield Finding(
                "FAIL", "keys of tokens", "no keys are set, and none are created with an external database", remedy
            )
        elif not path.exists():
            yield Finding("warn", "keys of tokens", "no keys exist yet", "the first `tocsin serve` creates a secret")
        elif is_open_to_others(path.stat().st_mode):
            yield Finding("FAIL", "keys of tokens", f"other users can read {path}", f"close it: chmod 600 {path}")
        elif path.stat().st_uid != os.geteuid():
            said = f"{path} belongs to user {path.stat().st_uid}, who can replace it"
            yield Finding("FAIL", "keys of tokens", said, "run this as the user who runs Tocsin, or delete it")
        else:
            said = f"tokens are verified by the secret {path}, which other users cannot read"
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


async def check_jwks(settings: Settings) -> AsyncIterator[Finding]:
    """Check the published keys, if a JWKS is set."""
    if settings.jwt_jwks_url is None:
        return
    url = str(settings.jwt_jwks_url)
    try:
        keys = of_jwks(await fetch(url, seconds=FETCH_TIMEOUT, limit=MAX_BYTES), ALL_SPEAKERS)
    except (FetchError, ValueError) as error:
        remedy = f"make sure that it answers, or correct {PREFIX}JWT_JWKS_URL"
        yield Finding("FAIL", "JWKS", f"{url}: {str(error).rstrip('.')}", remedy)
        return
    if is_plain(url):
        yield Finding("warn", "JWKS", f"the keys at {url} can be forged on the way", "fetch them over https")
    else:
        yield Finding("ok", "JWKS", f"{len(keys)} key{'s' if len(keys) > 1 else ''} at {url} can verify tokens")


async def check_bus(settings: Settings) -> AsyncIterator[Finding]:
    """Check that NATS answers, if it is set."""
    if settings.nats_url is None:
        return
    from tocsin.nats_access import access_of  # noqa: PLC0415 - few services use NATS
    from tocsin.nats_bus import AWAY, failure_of  # noqa: PLC0415

    if reason := await failure_of(access_of(settings)):
        remedy = f"see that it runs, and that {PREFIX}NATS_URL leads there; until then processes poll"
        yield Finding("FAIL", "bus", f"{AWAY}: {reason}", remedy)
    else:
        yield Finding("ok", "bus", "NATS answers")
