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
from tocsin.apps import web_push_key
from tocsin.demo_page import DemoPage
from tocsin.devices import Device
from tocsin.directory import Team, User
from tocsin.events import Reader
from tocsin.phones import Phones
from tocsin.serve import Running, serve
from tocsin.settings import PREFIX, Settings
from tocsin.tokens import Signer, mint_service, mint_user

PEOPLE = (
    User(1, 1, "John", "Doe", None, "john@example.com", "en", "Europe/Copenhagen", active=True),
    User(2, 1, "Sam", "Carter", None, "sam@example.com", "da", "Europe/Copenhagen", active=True),
    User(3, 1, "Jane", "Doe", None, "jane@example.com", "de", "Europe/Berlin", active=True),
    User(4, 1, "Bernita", "Kilback", None, "bernita@example.com", "en", "UTC", active=True),
    User(5, 1, "ليلى", "حداد", None, "layla@example.com", "en", "Africa/Cairo", active=True),
)
TEAMS = (Team(1, 1, "Sales", [1, 2, 3]), Team(2, 1, "Service", [3, 4]))
LIFETIME = timedelta(days=7)

IPHONE = "c0ffee0000" * 6 + "{:04}"
"""The token of a person's iPhone, by their id."""

ANDROID = "fake-android-phone-of-user-number-{:04}"
"""Likewise of their Android phone."""

LEFT_UNREAD = 5
"""How many of the first notifications nobody has read yet."""


async def demo(settings: Settings) -> None:
    """Serve until a signal ends it, with fake phones and a page that shows them, and say on stdout where it is.

    Raises `Refusal`, as `serve` does.
    """
    if settings.has_keys:
        signer_of(settings, "users", "services")
    with tempfile.TemporaryDirectory(prefix="tocsin-demo-") as folder:
        async with Phones() as phones:
            with_phones = not (settings.apns_key_file or settings.fcm_credentials_file or settings.apps_file)
            if with_phones:
                settings = _with_phones(settings, phones.credentials(Path(folder)))
            page = DemoPage(PEOPLE, TEAMS, phones, lambda: signer_of(settings, "users", "services"))

            async def introduce(running: Running) -> None:
                await _move_in(running.house)
                if with_phones:
                    await _hand_out_phones(running.house, page)
                await _begin(running.house, page)
                sys.stdout.write(_introduction(running, page.signer()))
                sys.stdout.flush()

            await serve(settings, when_ready=introduce, further=page.routes())


def _with_phones(settings: Settings, variables: Mapping[str, str]) -> Settings:
    """Return the settings with the keys of the fake phones."""
    given = {name.removeprefix(PREFIX).lower(): value for name, value in variables.items()}
    return Settings(**{**settings.model_dump(exclude_unset=True), **given})


async def _move_in(house: House) -> None:
    """Make the people and teams."""
    for person in PEOPLE:
        await directory.put_user(house.database, person, None)
    for team in TEAMS:
        await directory.put_team(house.database, team, None)


async def _hand_out_phones(house: House, page: DemoPage) -> None:
    """Give everybody an iPhone, an Android phone and a browser; those of an earlier start are no more."""
    key = web_push_key(house.lanes)
    for person in PEOPLE:
        iphone, android = IPHONE.format(person.id), ANDROID.format(person.id)
        own = [
            Device(iphone, "iOS", "apns", "production", "default"),
            Device(android, "Android", "fcm", "production", "default"),
        ]
        page.devices[person.id] = {"iphone": iphone, "android": android}
        if key:
            made = page.phones.subscribe(key)
            endpoint, keys = made["endpoint"], made["keys"]
            own.append(Device(endpoint, "Web", "web", "production", "default", keys["p256dh"], keys["auth"]))
            page.devices[person.id]["browser"] = endpoint
        await devices.detach_all(house.database, person.id)
        for device in own:
            await devices.register(house.database, person.id, device)


async def _begin(house: House, page: DemoPage) -> None:
    """The first time, let an event of every kind reach everybody, and most of them be read."""
    ids = [person.id for person in PEOPLE]
    if any(position for _, position, _ in (await inbox.heads(house.database, ids)).values()):
        return
    kinds = reversed(list(house.catalogue.samples))
    accepted = await house.intake.accept_batch([page.draft(house, name, ids) for name in kinds])
    await events.state(house.database, house.doorbell, accepted[-1].id, Reader(), seconds=10)
    for id_ in ids:
        await inbox.read_some(house.database, id_, [event.id for event in accepted[:-LEFT_UNREAD]])


def _introduction(running: Running, signer: Signer) -> str:
    url = running.url + running.house.settings.root_path
    sample = next(iter(running.house.catalogue.samples.values()))["event"]
    data = {**sample["data"], "user": PEOPLE[3].id}
    event = {"type": sample["type"], "notify": {"teams": [TEAMS[0].id]}, "data": data, "params": sample["params"]}
    crm = mint_service(signer, "demo", ["events:write", "directory:write"], LIFETIME)
    sam = mint_user(signer, PEOPLE[1].id, LIFETIME)
    return f"""
Open {url}/

It shows an inbox beside the phones and browsers that are told of it, and lets you make things happen.
The API documentation is at {url}/docs. For a shell, with tokens that are good for a week:

SAM={sam}
CRM={crm}

# Sam's inbox
curl -H "Authorization: Bearer $SAM" "{url}/notifications?per_page=3"

# an event for the Sales team, which Sam is in
curl -H "Authorization: Bearer $CRM" -H 'Content-Type: application/json' {url}/events \\
  -d @- <<'EVENT'
{json.dumps(event)}
EVENT

# what Sam's phones show; they clear when all is read
curl "{url}/demo/phones?user=2"
curl -X PUT -H "Authorization: Bearer $SAM" {url}/notifications/read
"""
