"""The route of imports: lines of JSON, which are validated together and then applied before the response."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from tocsin import idempotency
from tocsin.api.answers import Imported
from tocsin.api.auth import Acting, DirectoryWriter
from tocsin.api.body import parts_of, refuse_encoded
from tocsin.api.documented import problems
from tocsin.api.idempotency import HEADER, again, digest_for, key_of
from tocsin.api.routes import StreamedRoute, router
from tocsin.api.slots import leave_early
from tocsin.api.state import AppState, State, in_other_cells
from tocsin.errors import ContentType
from tocsin.idempotency import IdempotencyKey, StoredAnswer
from tocsin.notifications import to_json
from tocsin.transfer.imports import Import, applied
from tocsin.validation import field_error

MAX_IMPORT_BYTES = 256 * 2**20
"""Maximum bytes of an import."""

NDJSON = "application/x-ndjson"


routes = router("directory", StreamedRoute)

LINES = """{"user": {"id": 4, "first_name": "Bernita", "last_name": "Kilback"}}
{"team": {"id": 7, "name": "Sales", "users": [4]}}
"""


@routes.post(
    "/directory/import",
    response_model=Imported,
    responses=problems(
        field_error("lines.2.team.users.1", "unknown", "is not a known user"),
        field_error("lines.17.user.first_name", "required", "is required"),
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                NDJSON: {
                    "schema": {
                        "type": "string",
                        "description": "Lines of JSON. Each line is an object with one field: `user` (`UserBody` and"
                        " `id`), `team` (`TeamBody` and `id`), `device` (`DeviceWithToken` and `user_id`) or"
                        " `notification` (`OldNotification`).",
                    },
                    "examples": {"two": {"value": LINES}},
                }
            },
        }
    },
)
async def import_lines(request: Request, service: DirectoryWriter, actor: Acting, app_state: State) -> Response:
    """Import users, teams, devices and history.

    Validates all lines first. If one is invalid, nothing is imported.
    """
    # The lines are staged in the database while the body is read. The key is checked when all lines are staged.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != NDJSON:
        raise ContentType(f"The body must be sent with Content-Type: {NDJSON}.")
    refuse_encoded(request)
    app_state.disk.check()
    key = key_of(request, service) if HEADER in request.headers else None
    in_others = partial(in_other_cells, request.scope, app_state) if request.scope["app"].routing else None
    incoming = Import(app_state.database, app_state.pubsub, app_state.catalogue, actor, in_others)
    await incoming.open()
    try:
        digest = digest_for(request)
        async for part in parts_of(request, MAX_IMPORT_BYTES):
            digest.update(part)
            await incoming.feed(part)
        await incoming.end()
        answer = await _accept_once(app_state, incoming, key, digest.digest())
    except BaseException:
        await incoming.discard()
        raise
    if answer.import_id != incoming.id:
        await incoming.discard()
    if answer.import_id:
        leave_early(request.scope["state"])
        while await applied(app_state.database, app_state.pubsub, answer.import_id) is not None:
            pass
    return again(answer)


async def _accept_once(
    app_state: AppState, incoming: Import, key: IdempotencyKey | None, digest: bytes
) -> StoredAnswer:
    """Accept an import and store the response under its key, or return the stored response of an earlier import."""
    async with app_state.database.transaction() as connection:
        if key and (kept := await idempotency.begin(connection, key, digest)):
            return kept
        answer = StoredAnswer(200, to_json(await incoming.accept(connection)), incoming.id)
        if key:
            await idempotency.keep(connection, key, answer)
    app_state.pubsub.publish("bulk")
    return answer
