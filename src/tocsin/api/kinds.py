"""Routes of the catalogue: the kinds, for a screen of preferences."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import inbox
from tocsin.api.auth import user_of
from tocsin.api.routes import guarded_by
from tocsin.api.state import app_state_of
from tocsin.catalogue import Catalogue, Kind
from tocsin.notifications import to_json
from tocsin.preferences import CHANNELS, SWITCHES, Operator

router = APIRouter(route_class=guarded_by(user_of), tags=["notifications"])


@router.get("/notifications/kinds")
async def list_kinds(request: Request) -> Response:
    """All kinds in the caller's language, group by group."""
    user, app_state = user_of(request), app_state_of(request)
    language = app_state.catalogue.language_of((await inbox.owner(app_state.database, user))["locale"])
    groups = list(dict.fromkeys(kind.group for kind in app_state.catalogue.kinds.values()))
    kinds = sorted(app_state.catalogue.kinds.values(), key=lambda kind: groups.index(kind.group))
    found = [shown(app_state.catalogue, app_state.operator, kind, language) for kind in kinds]
    return Response(to_json({"data": found}), media_type="application/json")


def shown(catalogue: Catalogue, operator: Operator, kind: Kind, language: str) -> dict[str, Any]:
    """Return what a screen of preferences is told of a kind."""
    return {
        "name": kind.name,
        "label": kind.wordings[language].title,
        "group": kind.group,
        "group_label": catalogue.group_of(kind.group, language),
        "channels": list(CHANNELS),
        "default": asdict(operator.kinds[kind.name]),
        "locked": {switch: switch in operator.locked_of[kind.name] for switch in SWITCHES},
    }
