"""The demo: the whole service on the embedded database, with people, teams and every kind of notification."""

import json
import sys
from datetime import timedelta

from tocsin import directory, events, inbox
from tocsin.api.doors import House
from tocsin.directory import Team, User
from tocsin.events import Draft, Reader
from tocsin.serve import Running, serve, signer_of
from tocsin.settings import Settings
from tocsin.tokens import Signer, mint_service, mint_user

PEOPLE = (
    User(1, 1, "John", "Doe", None, "john@example.com", "en", "Europe/Copenhagen", active=True),
    User(2, 1, "Sam", "Carter", None, "sam@example.com", "en", "Europe/Copenhagen", active=True),
    User(3, 1, "Jane", "Doe", None, "jane@example.com", "en", "Europe/Berlin", active=True),
    User(4, 1, "Bernita", "Kilback", None, "bernita@example.com", "en", "UTC", active=True),
)
TEAMS = (Team(1, 1, "Sales", [1, 2, 3]), Team(2, 1, "Service", [3, 4]))
LIFETIME = timedelta(days=7)


async def demo(settings: Settings) -> None:
    """Serve until a signal ends it, and say on stdout what there is to see. Raises `Refusal`, as `serve` does."""
    if settings.has_keys:
        signer_of(settings, "users", "services")

    async def introduce(running: Running) -> None:
        await _fill(running.house)
        sys.stdout.write(_introduction(running, signer_of(settings, "users", "services")))
        sys.stdout.flush()

    await serve(settings, when_ready=introduce)


async def _fill(house: House) -> None:
    """Make the people and teams, and, the first time, post an event of every kind for all of them."""
    for person in PEOPLE:
        await directory.put_user(house.database, person, None)
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


def _introduction(running: Running, signer: Signer) -> str:
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

# Jane has read everything
curl -X PUT -H "Authorization: Bearer $JANE" {url}/notifications/read
"""
