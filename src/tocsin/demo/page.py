"""Routes of the page of the demo: its users, its events, and what their phones and browsers show.

They return tokens without authentication, so they answer only requests to this machine, and none from other pages.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from random import SystemRandom
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tocsin.acceptance import Draft
from tocsin.api import assets
from tocsin.api.body import body_of
from tocsin.api.parameters import NewId
from tocsin.api.state import AppState, app_state_of
from tocsin.auth.minting import Signer, mint_service, mint_user
from tocsin.catalogue import ENGLISH
from tocsin.demo.events import event_of
from tocsin.directory import Team
from tocsin.errors import FieldError, Invalid, NotFound, Unauthorized
from tocsin.formats import Ids, User
from tocsin.notifications import to_json
from tocsin.validation import RequestModel, field_error
from tocsin_phones import Phones
from tocsin_phones.local_calls import is_local

FILES = ("demo.css", "demo.js", "demo.js.map")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LIFETIME = timedelta(minutes=15)
"""The lifetime of the page's tokens; the page renews them."""

CONSOLE_LIFETIME = timedelta(hours=8)
"""The lifetime of the token in the link to the console."""

COLLEAGUE = User(id=90, company_id=1, first_name="Noah", last_name="Peters")
"""The acting user of events for all sample users."""

Handler = Callable[[Request], Awaitable[Response]]


class DemoEvent(RequestModel):
    """A request of the page: post an event of a kind for some of the users."""

    kind: str
    to: Ids


class DemoUser(RequestModel):
    """The query for the devices of a user."""

    user: NewId = 0


@dataclass(frozen=True, slots=True)
class DemoPage:
    """The state of the page: users, their simulated devices, and the signer of their tokens.

    `devices` are the tokens of each person's `iphone`, `android` and `browser`, by their id.
    """

    people: Sequence[User]
    teams: Sequence[Team]
    phones: Phones
    signer: Callable[[], Signer]
    devices: dict[int, dict[str, str]] = field(default_factory=dict)
    dice: SystemRandom = field(default_factory=SystemRandom)

    def routes(self) -> list[BaseRoute]:
        """Return the routes of the page, its files and its requests."""
        return [
            Route("/", _guarded(_page), methods=["GET"]),
            *(Route(f"/demo/{name}", _guarded(_file), methods=["GET"]) for name in FILES),
            Route("/demo/people", _guarded(self.list_people), methods=["GET"]),
            Route("/demo/kinds", _guarded(self.list_kinds), methods=["GET"]),
            Route("/demo/phones", _guarded(self.show_phones), methods=["GET"]),
            Route("/demo/events", _guarded(self.post_event), methods=["POST"]),
        ]

    async def list_people(self, request: Request) -> Response:
        """The sample users, each with a token, a token of a service and, if there is a console, one for that."""
        signer = self.signer()
        has_console = any(getattr(route, "path", None) == "/console" for route in request.app.routes)
        answer = {
            "data": [
                {
                    "id": person.id,
                    "first_name": person.first_name,
                    "last_name": person.last_name,
                    "locale": person.locale,
                    "teams": [team.name for team in self.teams if person.id in team.users],
                    "token": mint_user(signer, person.id, LIFETIME),
                }
                for person in self.people
            ],
            "crm": mint_service(signer, "demo", ["events:write", "directory:write"], LIFETIME),
            "console": mint_service(signer, "demo", ["operations"], CONSOLE_LIFETIME) if has_console else None,
            "lifetime": int(LIFETIME.total_seconds()),
        }
        return _json(answer)

    async def list_kinds(self, request: Request) -> Response:
        """All kinds with a sample, by group."""
        catalogue = app_state_of(request).catalogue
        kinds = [catalogue.kinds[name] for name in catalogue.samples]
        groups = list(dict.fromkeys(kind.group for kind in kinds))
        found = [
            {
                "name": kind.name,
                "label": kind.wordings[ENGLISH].title,
                "group": catalogue.group_of(kind.group, ENGLISH),
                "preset": kind.preset,
            }
            for kind in sorted(kinds, key=lambda kind: groups.index(kind.group))
        ]
        return _json({"data": found})

    async def show_phones(self, request: Request) -> Response:
        """What the devices of a user show now.

        The page requests this every second, so it is not logged.
        """
        request.state.is_quiet = True
        field_errors: list[FieldError] = []
        asked = DemoUser.checked(dict(request.query_params), field_errors)
        if not asked:
            raise Invalid(field_errors)
        if all(person.id != asked.user for person in self.people):
            raise NotFound
        return _json({name: self.phones.screen(token) for name, token in self.devices.get(asked.user, {}).items()})

    async def post_event(self, request: Request) -> Response:
        """Post an event of a kind for some of the users, as the service of the demo."""
        app_state, field_errors = app_state_of(request), list[FieldError]()
        posted = DemoEvent.checked(await body_of(request), field_errors)
        if posted and posted.kind not in app_state.catalogue.samples:
            field_errors.append(field_error("kind", "in", "must be a kind with a sample"))
        if posted and not (posted.to and set(posted.to) <= {person.id for person in self.people}):
            field_errors.append(field_error("to", "unknown", "must be ids of sample users"))
        if field_errors or not posted:
            raise Invalid(field_errors)
        accepted = await app_state.intake.accept(self.draft(app_state, posted.kind, posted.to))
        return _json({"queued": True, "id": str(accepted.id)}, status=202)

    def draft(self, app_state: AppState, name: str, to: Sequence[int]) -> Draft:
        """Return an event of a kind, whose acting user is not among the recipients."""
        actor = self.dice.choice([person for person in self.people if person.id not in to] or [COLLEAGUE])
        kinds, samples = app_state.catalogue.kinds, app_state.catalogue.samples
        event = event_of(kinds[name], samples[name]["event"], actor, self.dice)
        checked = app_state.catalogue.check(event["type"], event.get("data"), event.get("params"))
        return Draft(checked, list(to), [], service="demo", company_id=1)


async def _page(request: Request) -> Response:
    return assets.serve(request, "demo.html", "no-cache", POLICY)


async def _file(request: Request) -> Response:
    return assets.serve(request, request.url.path.rpartition("/")[2], "no-cache")


def _guarded(handler: Handler) -> Handler:
    """Return a handler that answers only requests to a name of this machine, and none from other pages."""

    async def guard(request: Request) -> Response:
        peer = request.client.host if request.client else ""
        if not is_local(request.headers, app_state_of(request).settings.host, peer):
            raise Unauthorized(
                "The demo answers only to localhost and the address that it listens on, and its own page."
            )
        return await handler(request)

    return guard


def _json(answer: Mapping[str, Any], status: int = 200) -> Response:
    return Response(to_json(answer), status_code=status, media_type="application/json")
