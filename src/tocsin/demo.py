"""The demo: the whole service on the embedded database, with people, fake phones, and every kind of notification."""

import json
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from tocsin import devices, directory, events, inbox
from tocsin.access import signer_of
from tocsin.api.doors import House
from tocsin.directory import Team, User
from tocsin.events import Draft, Reader
from tocsin.phones import Phones
from tocsin.serve import Running, serve
from tocsin.settings import PREFIX, Settings
from tocsin.tokens import Signer, mint_service, mint_user

PEOPLE = (
    User(1, 1, "John", "Doe", None, "john@example.com", "en", "Europe/Copenhagen", active=True),
    User(2, 1, "Sam", "Carter", None, "sam@example.com", "en", "Europe/Copenhagen", active=True),
    User(3, 1, "Jane", "Doe", None, "jane@example.com", "en", "Europe/Berlin", active=True),
    User(4, 1, "Bernita", "Kilback", None, "bernita@example.com", "en", "UTC", active=True),
)
TEAMS = (Team(1, 1, "Sales", [1, 2, 3]), Team(2, 1, "Service", [3, 4]))
LIFETIME = timedelta(days=7)


IPHONE = "c0ffee0000" * 6 + "{:04}"
"""The token of a person's iPhone, by their id."""

ANDROID = "fake-android-phone-of-user-number-{:04}"
"""Likewise of their Android phone."""


async def demo(settings: Settings) -> None:
    """Serve until a signal ends it, with fake phones, and say on stdout what there is to see.

    Raises `Refusal`, as `serve` does.
    """
    if settings.has_keys:
        signer_of(settings, "users", "services")
    with tempfile.TemporaryDirectory(prefix="tocsin-demo-") as folder:
        async with Phones() as phones:
            settings = _with_phones(settings, phones.credentials(Path(folder)))

            async def introduce(running: Running) -> None:
                await _fill(running.house)
                signer = signer_of(settings, "users", "services")
                sys.stdout.write(_introduction(running, signer, phones.control_url))
                sys.stdout.flush()

            await serve(settings, when_ready=introduce)


def _with_phones(settings: Settings, variables: Mapping[str, str]) -> Settings:
    """Return the settings with the keys of the fake phones, where no keys for push are set."""
    if settings.apns_key_file or settings.fcm_credentials_file or settings.apps_file:
        return settings
    given = {name.removeprefix(PREFIX).lower(): value for name, value in variables.items()}
    return Settings(**{**settings.model_dump(exclude_unset=True), **given})


async def _fill(house: House) -> None:
    """Make the people and teams, and, the first time, post an event of every kind for all of them."""
    for person in PEOPLE:
        await directory.put_user(house.database, person, None)
        for text, fields in ((IPHONE, {}), (ANDROID, {"type": "Android"})):
            device = devices.device_of({"token": text.format(person.id), **fields}, [])
            assert device is not None  # noqa: S101 - the tokens above are good ones
            await devices.register(house.database, person.id, device)
    for team in TEAMS:
        await directory.put_team(house.database, team, None)
    if (await inbox.page(house.database, PEOPLE[0].id, unread=False, limit=1)).total:
        return
    last = None
    for sample in house.catalogue.samples.values():
        event = sample["event"]
        checked = house.catalogue.check(event["type"], event.get("data"), event.get("params"))
        draft = Draft(checked, [person.id for person in PEOPLE], [], service="demo", company_id=1)
        last = (await house.intake.accept(draft)).id
    if last:
        await events.state(house.database, house.doorbell, last, Reader(), seconds=10)


def _introduction(running: Running, signer: Signer, phones: str) -> str:
    url = running.url
    event = {**next(iter(running.house.catalogue.samples.values()))["event"], "notify": {"teams": [TEAMS[0].id]}}
    crm = mint_service(signer, "demo", ["events:write", "directory:write"], LIFETIME)
    people = "".join(
        f"\n# {person.first_name} {person.last_name}, user {person.id}\n"
        f"{person.first_name.upper()}={mint_user(signer, person.id, LIFETIME)}\n"
        for person in PEOPLE
    )
    return f"""
Tocsin is at {url}, and its API documentation at {url}/docs

Paste these into another shell; the tokens are good for a week.
{people}
# the CRM's back end
CRM={crm}

# Sam's inbox
curl -H "Authorization: Bearer $SAM" "{url}/notifications?per_page=3"

# an event for the Sales team
curl -H "Authorization: Bearer $CRM" -H 'Content-Type: application/json' {url}/events \\
  -d @- <<'EVENT'
{json.dumps(event, indent=2)}
EVENT

# Sam writes to Jane
curl -H "Authorization: Bearer $SAM" -H 'Content-Type: application/json' {url}/notifications \\
  -d '{{"message": "Coffee?", "notify": {{"users": [3]}}}}'

# what was pushed to Jane's iPhone, and what it shows
curl "{phones}/pushes?token={IPHONE.format(3)}"
curl "{phones}/screen?token={IPHONE.format(3)}"

# a test push to Jane's iPhone, and what its push service said
curl -X POST -H "Authorization: Bearer $JANE" {url}/notifications/devices/{IPHONE.format(3)}/test

# Jane has read everything, and a moment later her phones show nothing
curl -X PUT -H "Authorization: Bearer $JANE" {url}/notifications/read
"""
