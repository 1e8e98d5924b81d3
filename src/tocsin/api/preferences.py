"""Routes of preferences: the kinds of notification and the preferences of a user."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tocsin import preferences
from tocsin.api.answers import Kinds, PreferencesAnswer
from tocsin.api.auth import User
from tocsin.api.documented import problems
from tocsin.api.requests import PreferencesPatch
from tocsin.api.routes import OPTIONAL, Given, router
from tocsin.api.state import State
from tocsin.catalogue import Catalogue, Kind
from tocsin.preferences import CHANNELS, SWITCHES, Operator, Preferences
from tocsin.validation import field_error

routes = router("notifications")


@routes.get("/notifications/kinds")
async def list_kinds(user: User, app_state: State) -> Kinds:
    """List kinds of notification.

    Returns all kinds by group, with labels in the caller's language, for a preferences page.
    """
    language = app_state.catalogue.language_of(user.locale)
    groups = list(dict.fromkeys(kind.group for kind in app_state.catalogue.kinds.values()))
    kinds = sorted(app_state.catalogue.kinds.values(), key=lambda kind: groups.index(kind.group))
    found = [shown(app_state.catalogue, app_state.operator, kind, language) for kind in kinds]
    return Kinds.model_validate({"data": found})


@routes.get("/notifications/preferences")
async def get_preferences(user: User, app_state: State) -> PreferencesAnswer:
    """Get preferences.

    Returns the caller's preferences, including defaults.
    """
    return _answer(await preferences.get(app_state.database, app_state.operator, user.id))


@routes.patch(
    "/notifications/preferences",
    responses=problems(
        field_error("kinds.note.push", "boolean", "must be true or false"),
        field_error("kinds.nothing", "prohibited", "is not a known kind"),
        field_error("quiet_hours.0.to", "in", "must not be the same as from"),
    ),
)
async def patch_preferences(
    user: User, app_state: State, body: Given[PreferencesPatch] = OPTIONAL
) -> PreferencesAnswer:
    """Change preferences.

    Accepts a merge patch (RFC 7396): missing fields do not change, `null` restores the default. Returns the result.
    The answer of `GET` is a valid patch.
    """
    changed = await preferences.patch(app_state.database, app_state.pubsub, app_state.operator, user.id, body.given)
    return _answer(changed)


def shown(catalogue: Catalogue, operator: Operator, kind: Kind, language: str) -> dict[str, Any]:
    """Return a kind for a preferences page."""
    return {
        "name": kind.name,
        "label": kind.wordings[language].title,
        "group": kind.group,
        "group_label": catalogue.group_of(kind.group, language),
        "channels": list(CHANNELS),
        "default": asdict(operator.kinds[kind.name]),
        "locked": {switch: switch in operator.locked_of[kind.name] for switch in SWITCHES},
    }


def _answer(found: Preferences) -> PreferencesAnswer:
    return PreferencesAnswer.model_validate(found.shown(datetime.now(UTC)))
