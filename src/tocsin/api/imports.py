"""The route of imports: lines of JSON, checked as a whole, then applied; the answer comes when all is done."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import idempotency
from tocsin.api.auth import service_of
from tocsin.api.body import parts_of
from tocsin.api.idempotency import HEADER, again, digest_for, key_of
from tocsin.api.routes import guarded_by
from tocsin.api.state import AppState, app_state_of
from tocsin.auth.claims import ServiceCaller
from tocsin.errors import ContentType
from tocsin.idempotency import IdempotencyKey, StoredAnswer
from tocsin.notifications import to_json
from tocsin.transfer.imports import Import, applied

MAX_IMPORT_BYTES = 256 * 2**20
"""Bytes of the largest import."""

NDJSON = "application/x-ndjson"


def _writer_of(request: Request) -> ServiceCaller:
    return service_of(request, "directory:write")


router = APIRouter(route_class=guarded_by(_writer_of, keeps_keys=False), tags=["directory"])


@router.post("/directory/import")
async def post_import(request: Request) -> Response:
    """Import users, teams, devices and history; nothing of it is applied where one line is wrong.

    Its lines wait in the database while its body is read, so that its key is looked at only when all of them are there.
    """
    service, app_state = _writer_of(request), app_state_of(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != NDJSON:
        raise ContentType(f"The body must be sent with Content-Type: {NDJSON}.")
    key = key_of(request, service) if HEADER in request.headers else None
    incoming = Import(app_state.database, app_state.pubsub, app_state.catalogue, service.company_id)
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
        while await applied(app_state.database, app_state.pubsub, answer.import_id) is not None:
            pass
    return again(answer)


async def _accept_once(
    app_state: AppState, incoming: Import, key: IdempotencyKey | None, digest: bytes
) -> StoredAnswer:
    """Accept an import and keep the answer under its key, or return what was kept: of the import that came first."""
    async with app_state.database.transaction() as connection:
        if key and (kept := await idempotency.begin(connection, key, digest)):
            return kept
        answer = StoredAnswer(200, to_json(await incoming.accept(connection)), incoming.id)
        if key:
            await idempotency.keep(connection, key, answer)
    app_state.pubsub.publish("bulk")
    return answer
