"""Routes of the web inbox: files that pages of any origin load, without a token."""

import hashlib
from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from tocsin import __version__
from tocsin.api.assets import ALIAS, IMMUTABLE, asset, serve
from tocsin.errors import NotFound

COMPONENT = "inbox.js"
FILES = (
    COMPONENT,
    "inbox.js.map",
    "inbox.d.ts",
    "inbox-words-da.json",
    "inbox-words-de.json",
    "inbox-worker.js",
    "inbox-worker.js.map",
)
"""Files without a version in their names: the component, its types and languages, and the script for workers."""

EVERYWHERE = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
"""Headers that allow pages of other origins to load these files, also with `integrity`."""


async def file(request: Request) -> Response:
    """Return a file without a version in its name."""
    return _open(request, request.url.path.rpartition("/")[2])


async def inbox_of_version(request: Request) -> Response:
    """Return the component of a version, which clients can cache forever."""
    if request.path_params["version"] != version():
        raise NotFound("This version of the inbox is not available.")
    return _open(request, COMPONENT, IMMUTABLE)


@cache
def version() -> str:
    """Return the version of the component: that of the package, and a hash of the content."""
    return f"{__version__}-{hashlib.sha256(asset(COMPONENT).content).hexdigest()[:8]}"


def script_of(base_url: str) -> str:
    """Return the script element that loads the component."""
    source = f"{base_url}/inbox-{version()}.js"
    return f'<script type="module" src="{source}" integrity="{asset(COMPONENT).integrity}" crossorigin></script>'


def _open(request: Request, name: str, cache_control: str = ALIAS) -> Response:
    response = serve(request, name, cache_control)
    response.headers.update(EVERYWHERE)
    return response
