"""The doors for whoever runs the service: is it alive, is it ready, what does it speak."""

from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tocsin import jobs, migrate
from tocsin.api.doors import house_of
from tocsin.api.openapi import document
from tocsin.errors import NotFound, Unavailable
from tocsin.notifications import to_json

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tocsin: the HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
"""
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null})\n'
POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'"

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> Response:
    """Whether this process answers."""
    return Response('{"status":"ok"}', media_type="application/json")


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Whether requests can be served: the database answers and its schema is this release's; and the queue."""
    database = house_of(request).database
    async with database.connection() as connection:
        current = await migrate.is_current(connection)
    if not current:
        raise Unavailable("The database lacks migrations of this release: run `tocsin migrate`.", retry_after=5)
    queue = {lane: {"due": due, "oldest": round(age, 3)} for lane, (due, age) in (await jobs.depth(database)).items()}
    answer = {"status": "ready", "database": "ok", "migrations": "ok", "queue": queue}
    return Response(to_json(answer), media_type="application/json")


async def openapi(request: Request) -> Response:
    """Answer this document."""
    app = request.app
    if app.openapi_schema is None:
        house = house_of(request)
        app.openapi_schema = document(app, house.catalogue, house.settings.base_url or house.settings.root_path)
    return Response(to_json(app.openapi_schema), media_type="application/json")


async def docs(_request: Request) -> Response:
    """Answer the page that shows the API document; everything that it loads comes from here."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


async def docs_asset(request: Request) -> Response:
    """Answer a file of that page."""
    name = request.path_params["name"]
    if name == "start.js":
        return Response(START, media_type="text/javascript")
    if name not in ASSETS:
        raise NotFound
    content = (files("fastapi_swagger") / "resources" / name).read_bytes()
    return Response(content, media_type=ASSETS[name])
