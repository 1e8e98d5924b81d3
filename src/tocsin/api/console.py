"""Routes of the operators' console: one page and its files. Its data comes from the other routes, with a token."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tocsin.api import sign_in
from tocsin.api.assets import serve
from tocsin.errors import NotFound

FILES = frozenset({"console.css", "console.js", "console.js.map"})

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""The page can load scripts and styles only from this service, call only this service, and cannot be embedded."""

REVALIDATED = "no-cache"
"""The page and its files must match, so a browser revalidates them each time."""


async def page(request: Request) -> Response:
    """Return the page."""
    return serve(request, "console.html", REVALIDATED, POLICY)


async def file(request: Request) -> Response:
    """Return a file of the page."""
    name = request.path_params["name"]
    if name not in FILES:
        raise NotFound
    return serve(request, name, REVALIDATED, POLICY)


routes = [
    Route("/console", page, methods=["GET"]),
    Route("/console/sign-in", sign_in.sign_in, methods=["GET"]),
    Route("/console/signed-in", sign_in.signed_in, methods=["GET"]),
    Route("/console/session", sign_in.session, methods=["PUT"]),
    Route("/console/session", sign_in.sign_out, methods=["DELETE"]),
    Route("/console/{name}", file, methods=["GET"]),
]
