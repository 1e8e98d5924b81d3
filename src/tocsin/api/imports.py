"""The door of imports: lines of JSON, checked as a whole, then applied; the answer comes when all is done."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import idempotency
from tocsin.api.context import House, house_of, parts_of, service_of
from tocsin.api.idempotency import HEADER, again, digest_for, key_of
from tocsin.api.routes import door
from tocsin.auth.tokens import Service
from tocsin.errors import ContentType
from tocsin.idempotency import Answer, Key
from tocsin.notifications import to_json
from tocsin.transfer.imports import Import, applied

MAX_IMPORT_BYTES = 256 * 2**20
"""Bytes of the largest import."""

NDJSON = "application/x-ndjson"


def _writer_of(request: Request) -> Service:
    return service_of(request, "directory:write")


router = APIRouter(route_class=door(_writer_of, keeps_keys=False), tags=["directory"])


@router.post("/directory/import")
async def post_import(request: Request) -> Response:
    """Import users, teams, devices and history; nothing of it is applied where one line is wrong.

    Its lines wait in the database while its body is read, so that its key is looked at only when all of them are there.
    """
    service, house = _writer_of(request), house_of(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != NDJSON:
        raise ContentType(f"The body must be sent with Content-Type: {NDJSON}.")
    key = key_of(request, service) if HEADER in request.headers else None
    incoming = Import(house.database, house.doorbell, house.catalogue, service.company_id)
    await incoming.open()
    try:
        digest = digest_for(request)
        async for part in parts_of(request, MAX_IMPORT_BYTES):
            digest.update(part)
            await incoming.feed(part)
        await incoming.end()
        answer = await _accept_once(house, incoming, key, digest.digest())
    except BaseException:
        await incoming.discard()
        raise
    if answer.import_id != incoming.id:
        await incoming.discard()
    if answer.import_id:
        while await applied(house.database, house.doorbell, answer.import_id) is not None:
            pass
    return again(answer)


async def _accept_once(house: House, incoming: Import, key: Key | None, digest: bytes) -> Answer:
    """Accept an import and keep the answer under its key, or return what was kept: of the import that came first."""
    async with house.database.transaction() as connection:
        if key and (kept := await idempotency.begin(connection, key, digest)):
            return kept
        answer = Answer(200, to_json(await incoming.accept(connection)), incoming.id)
        if key:
            await idempotency.keep(connection, key, answer)
    house.doorbell.ring("bulk")
    return answer
