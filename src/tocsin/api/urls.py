"""The URL of the service for clients, from the settings or the request."""

from starlette.requests import Request

from tocsin.api.proxies import HOST
from tocsin.settings import Settings


def base_url_of(request: Request, settings: Settings) -> str:
    """Return the base url for the caller, including the path prefix."""
    return settings.base_url or f"{origin_of(request)}{settings.root_path}"


def origin_of(request: Request) -> str:
    """Return the scheme and the host that the caller used, as forwarded by a trusted proxy."""
    scheme = "https" if request.scope["scheme"] in {"https", "wss"} else "http"
    return f"{scheme}://{_host_of(request)}"


def _host_of(request: Request) -> str:
    """Return the Host header if it is valid, otherwise the address of the server."""
    host = request.headers.get("host", "")
    if HOST.fullmatch(host):
        return host
    address, port = request.scope["server"]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
