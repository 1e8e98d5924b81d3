"""The OpenAPI document, and the page that shows it."""

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from tocsin.api.assets import PAGE_HEADERS, asset
from tocsin.api.openapi import document
from tocsin.api.state import app_state_of
from tocsin.errors import NotFound
from tocsin.notifications import to_json

FILES = {
    "start.js": ("docs.js", "tocsin.web"),
    "swagger-ui-bundle.js": ("resources/swagger-ui-bundle.js", "fastapi_swagger"),
    "swagger-ui.css": ("resources/swagger-ui.css", "fastapi_swagger"),
}
"""The files of the page, by their names in its urls: each file and its package."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def openapi(request: Request) -> Response:
    """Return the OpenAPI document. It is cached, because generating it costs as much as ten other requests."""
    state = request.app.state
    if not hasattr(state, "document"):
        app_state = app_state_of(request)
        url = app_state.settings.base_url or app_state.settings.root_path
        routing = request.app.routing
        found = document(request.app, app_state.catalogue, url, routing.names if routing else ())
        state.document = to_json(found).encode()
    return Response(state.document, media_type="application/json")


async def page(_request: Request) -> Response:
    """Return the page. It loads no files from other servers."""
    return HTMLResponse(asset("docs.html").content, headers={"Content-Security-Policy": POLICY, **PAGE_HEADERS})


async def file(request: Request) -> Response:
    """Return a file of the page."""
    name = request.path_params["name"]
    if name not in FILES:
        raise NotFound
    found = asset(*FILES[name])
    return Response(found.content, media_type=found.media_type)


routes = [
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/docs", page, methods=["GET"]),
    Route("/docs/{name}", file, methods=["GET"]),
]
