"""Routes of preferences: a user reads and changes theirs."""

from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import inbox, preferences
from tocsin.api.auth import user_of
from tocsin.api.body import MERGE_PATCH, body_of
from tocsin.api.routes import guarded_by
from tocsin.api.state import app_state_of
from tocsin.notifications import to_json
from tocsin.preferences import Preferences

router = APIRouter(route_class=guarded_by(user_of), tags=["notifications"])


@router.get("/notifications/preferences")
async def get_preferences(request: Request) -> Response:
    """The caller's preferences, with the defaults of what they did not choose."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    return _shown(await preferences.get(app_state.database, app_state.operator, user.id))


@router.patch("/notifications/preferences")
async def patch_preferences(request: Request) -> Response:
    """Change some of the caller's preferences, and leave the others as they are."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    body = await body_of(request, types=MERGE_PATCH)
    return _shown(await preferences.patch(app_state.database, app_state.pubsub, app_state.operator, user.id, body))


def _shown(found: Preferences) -> Response:
    return Response(to_json(found.shown(datetime.now(UTC))), media_type="application/json")
