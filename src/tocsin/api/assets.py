"""The files of our own pages, which are part of the package: read once, with a tag for browsers that have them."""

import gzip
import hashlib
import re
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "map": "application/json",
    "ts": "text/plain",
    "svg": "image/svg+xml",
}

LEAN = {"inbox.js"}
"""Those that strangers' pages load, which are spared what only their readers need."""

ALIAS = "public, max-age=300"
"""How long a browser keeps a file whose name says no version."""

_COMMENTS = re.compile(rb"^[ \t]*+(?:/\*\*.*?(?:\*/\n|\Z)|//[^\n]*+\n)", re.MULTILINE | re.DOTALL)

_INDENTATION = re.compile(rb"^\s+", re.MULTILINE)

FOR_EVER = "public, max-age=31536000, immutable"
"""The same, where the name says it."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of a package; `integrity` is what a page may write into its `script` (SRI)."""

    content: bytes
    packed: bytes
    media_type: str
    tag: str
    integrity: str


@cache
def asset(name: str, package: str = "tocsin.web") -> Asset:
    """Return a file of a package. Raises `FileNotFoundError`."""
    content = files(package).joinpath(name).read_bytes()
    if name in LEAN:
        content = lean(content)
    digest = hashlib.sha384(content).digest()
    return Asset(
        content,
        gzip.compress(content, 9, mtime=0),
        TYPES[name.rpartition(".")[2]],
        f'"{digest.hex()[:32]}"',
        f"sha384-{b64encode(digest).decode()}",
    )


def lean(content: bytes) -> bytes:
    """Return a script without the comments that have lines of their own, and without its indentation."""
    return _INDENTATION.sub(b"", _COMMENTS.sub(b"", content))


def serve(request: Request, name: str, cache_control: str = ALIAS, policy: str | None = None) -> Response:
    """Answer a file, packed where the browser takes that; `policy` is its Content-Security-Policy."""
    found = asset(name)
    headers = {
        "Cache-Control": cache_control,
        "ETag": found.tag,
        "Vary": "Accept-Encoding",
        **({"Content-Security-Policy": policy} if policy else {}),
    }
    if found.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.packed, media_type=found.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(found.content, media_type=found.media_type, headers=headers)
