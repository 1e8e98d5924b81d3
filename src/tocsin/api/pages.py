"""Routes of the web inbox: files that pages of any origin load, without a token."""

import hashlib
from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from tocsin import __version__
from tocsin.api.assets import ALIAS, FOR_EVER, asset, serve
from tocsin.errors import NotFound

COMPONENT = "inbox.js"

EVERYWHERE = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
"""What lets pages of other origins load these files, those with an integrity too."""


async def inbox(request: Request) -> Response:
    """The component under a name that stays."""
    return _open(request, COMPONENT)


async def inbox_of_version(request: Request) -> Response:
    """The component under the name of its version, to be kept for ever; it is never another one."""
    if request.path_params["version"] != version():
        raise NotFound("This version of the inbox is not available.")
    return _open(request, COMPONENT, FOR_EVER)


async def inbox_map(request: Request) -> Response:
    """The component's source map, for the developer tools of browsers."""
    return _open(request, f"{COMPONENT}.map")


async def inbox_types(request: Request) -> Response:
    """The component's types."""
    return _open(request, "inbox.d.ts")


async def inbox_worker(request: Request) -> Response:
    """What a page's own service worker takes in to show pushes."""
    return _open(request, "inbox-worker.js")


@cache
def version() -> str:
    """Return the version of the component: the package's, and what the content hashes to."""
    return f"{__version__}-{hashlib.sha256(asset(COMPONENT).content).hexdigest()[:8]}"


def script_of(base_url: str) -> str:
    """Return the line that takes the component, and nothing else, into a page."""
    source = f"{base_url}/inbox-{version()}.js"
    return f'<script type="module" src="{source}" integrity="{asset(COMPONENT).integrity}" crossorigin></script>'


def _open(request: Request, name: str, cache_control: str = ALIAS) -> Response:
    response = serve(request, name, cache_control)
    response.headers.update(EVERYWHERE)
    return response
