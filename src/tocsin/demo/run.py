"""The demo: the service on the embedded database, with users, simulated phones, and each kind of notification."""

import json
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from tocsin import devices, directory, event_status, inbox, marks
from tocsin.api.state import AppState
from tocsin.auth.claims import UserCaller
from tocsin.auth.from_settings import signer_of
from tocsin.auth.minting import Signer, mint_service, mint_user
from tocsin.demo.page import DemoPage
from tocsin.devices import Device
from tocsin.directory import Team
from tocsin.errors import Refusal
from tocsin.event_status import Viewer
from tocsin.formats import User
from tocsin.push.apps import web_push_key
from tocsin.serve import Running, serve
from tocsin.settings import PREFIX, Settings
from tocsin_phones import Phones

_FIELDS = ("id", "first_name", "last_name", "email", "locale", "time_zone")
PEOPLE = tuple(
    User.model_validate({"company_id": 1, **dict(zip(_FIELDS, row, strict=True))})
    for row in (
        (1, "John", "Doe", "john@example.com", "en", "Europe/Copenhagen"),
        (2, "Sam", "Carter", "sam@example.com", "da", "Europe/Copenhagen"),
        (3, "Jane", "Doe", "jane@example.com", "de", "Europe/Berlin"),
        (4, "Bernita", "Kilback", "bernita@example.com", "en", "UTC"),
        (5, "ليلى", "حداد", "layla@example.com", "en", "Africa/Cairo"),
    )
)
TEAMS = (Team(1, 1, "Sales", [1, 2, 3]), Team(2, 1, "Service", [3, 4]))
LIFETIME = timedelta(days=7)

IPHONE = "c0ffee0000" * 6 + "{:04}"
"""The token of the iPhone of a user, by id."""

ANDROID = "fake-android-phone-of-user-number-{:04}"
"""The token of the Android phone of a user, by id."""

LEFT_UNREAD = 5
"""The number of first notifications that stay unread."""

PASSED_SETTINGS = frozenset(
    {
        *("host", "port", "operations_port", "public_url", "root_path", "trusted_proxies", "cors_origins"),
        *("catalogue_dir", "preferences_file", "push_content", "log_format"),
    }
)
"""The settings that the demo uses. Database, keys, push services and bus are its own, so that it does not affect a
service with the same settings."""

MARK = "made-by-demo"
"""The file that marks the data folder of the demo."""


async def demo(settings: Settings) -> None:
    """Serve until a signal, with simulated phones and a page that shows them; print the URL to stdout.

    Raises `Refusal`, as `serve` does.
    """
    data = _own_folder(settings)
    with tempfile.TemporaryDirectory(prefix="tocsin-demo-") as folder:
        async with Phones() as phones:
            own = _own_settings(settings, data, phones.credentials(Path(folder)))
            page = DemoPage(PEOPLE, TEAMS, phones, lambda: signer_of(own, "users", "services"))

            async def introduce(running: Running) -> None:
                await _create_users(running.app_state)
                await _register_devices(running.app_state, page)
                await _post_first_events(running.app_state, page)
                sys.stdout.write(_introduction(running, page.signer()))
                sys.stdout.flush()

            await serve(own, when_ready=introduce, further=page.routes())


def _own_folder(settings: Settings) -> Path:
    """Return the data folder of the demo, and mark it. Raises `Refusal` if it is not one of the demo."""
    if settings.database_url is not None:
        raise Refusal("The demo writes sample users and needs its own database: unset TOCSIN_DATABASE_URL.")
    folder = settings.data_dir / "demo"
    mark = folder / MARK
    if (folder / "postgres").exists() and not mark.exists():
        raise Refusal(
            f"The database in {folder} was not made by the demo, and the demo would overwrite its users: set"
            " TOCSIN_DATA_DIR to another folder."
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark.touch()
    return folder


def _own_settings(settings: Settings, data: Path, phones: Mapping[str, str]) -> Settings:
    """Return the settings of the demo, with its own data folder and the keys of the simulated phones."""
    given = {name.removeprefix(PREFIX).lower(): value for name, value in phones.items()}
    return Settings(
        **{**settings.model_dump(include=set(PASSED_SETTINGS), exclude_unset=True), **given, "data_dir": data}
    )


async def _create_users(app_state: AppState) -> None:
    """Create the users and teams."""
    for person in PEOPLE:
        await directory.put_user(app_state.database, person, None)
    for team in TEAMS:
        await directory.put_team(app_state.database, team, None)


async def _register_devices(app_state: AppState, page: DemoPage) -> None:
    """Give each user an iPhone, an Android phone and a browser, and remove those of an earlier start."""
    key = web_push_key(app_state.lanes)
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
        await devices.detach_all(app_state.database, person.id)
        for device in own:
            await devices.register(app_state.database, person.id, device)


async def _post_first_events(app_state: AppState, page: DemoPage) -> None:
    """At the first start, post an event of each kind to all users, and mark most of them as read."""
    ids = [person.id for person in PEOPLE]
    if any(position for _, position, _ in (await inbox.heads(app_state.database, ids)).values()):
        return
    kinds = reversed(list(app_state.catalogue.samples))
    accepted = await app_state.intake.accept_batch([page.draft(app_state, name, ids) for name in kinds])
    await event_status.state(app_state.database, app_state.pubsub, accepted[-1].id, Viewer(), seconds=10)
    for id_ in ids:
        await marks.read_some(app_state.database, UserCaller(id_, 0), [event.id for event in accepted[:-LEFT_UNREAD]])


def _introduction(running: Running, signer: Signer) -> str:
    url = running.url + running.app_state.settings.root_path
    sample = next(iter(running.app_state.catalogue.samples.values()))["event"]
    data = {**sample["data"], "user": PEOPLE[3].id}
    event = {"type": sample["type"], "notify": {"teams": [TEAMS[0].id]}, "data": data, "params": sample["params"]}
    crm = mint_service(signer, "demo", ["events:write", "directory:write"], LIFETIME)
    sam = mint_user(signer, PEOPLE[1].id, LIFETIME)
    return f"""
Open {url}/

It shows an inbox beside its phones and browser, and buttons that post events.
The API documentation is at {url}/docs. To use the API from a shell, with tokens valid for a week:

SAM={sam}
CRM={crm}

# list Sam's inbox
curl -H "Authorization: Bearer $SAM" "{url}/notifications?per_page=3"

# post an event for the Sales team, which includes Sam
curl -H "Authorization: Bearer $CRM" -H 'Content-Type: application/json' {url}/events \\
  -d @- <<'EVENT'
{json.dumps(event)}
EVENT

# see what Sam's phones show, then mark all as read to clear them
curl "{url}/demo/phones?user=2"
curl -X PUT -H "Authorization: Bearer $SAM" {url}/notifications/read
"""
