"""The door of imports: lines of JSON, checked as a whole, then applied; the answer comes when all is done."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin.api.doors import door, house_of, parts_of, service_of
from tocsin.errors import ContentType
from tocsin.imports import Import
from tocsin.notifications import to_json
from tocsin.tokens import Service

LARGEST_IMPORT = 256 * 2**20
"""Bytes of the largest import."""

NDJSON = "application/x-ndjson"


def _writer_of(request: Request) -> Service:
    return service_of(request, "directory:write")


router = APIRouter(route_class=door(_writer_of), tags=["directory"])


@router.post("/directory/import")
async def post_import(request: Request) -> Response:
    """Import users, teams, devices and history; nothing of it is applied where one line is wrong."""
    service, house = _writer_of(request), house_of(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != NDJSON:
        raise ContentType(f"The body must be sent with Content-Type: {NDJSON}.")
    incoming = Import(house.database, house.doorbell, house.catalogue, service.company_id)
    await incoming.open()
    try:
        async for part in parts_of(request, LARGEST_IMPORT):
            await incoming.feed(part)
        counts = await incoming.close()
    except BaseException:
        await incoming.discard()
        raise
    while await incoming.applied() is not None:
        pass
    return Response(to_json(counts), media_type="application/json")
