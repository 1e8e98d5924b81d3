"""The files of the package that browsers load. They are cached in memory, with compressed versions and ETags."""

import gzip
import hashlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "json": "application/json",
    "map": "application/json",
    "ts": "text/plain",
    "svg": "image/svg+xml",
}

COMPRESSED = {"br": "br", "gzip": "gz"}
"""Content codings, the smallest output first, and the suffixes of files that the build compressed."""

ALIAS = "public, max-age=300"
"""The `Cache-Control` of a file without a version in its name."""

IMMUTABLE = "public, max-age=31536000, immutable"
"""The `Cache-Control` of a file with a version in its name."""

UNUSED_FEATURES = ("camera", "display-capture", "geolocation", "hid", "microphone", "midi", "payment", "serial", "usb")

PAGE_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in UNUSED_FEATURES),
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
"""The headers of every page, beside its Content-Security-Policy. `Strict-Transport-Security` is set by the proxy."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of a package. `integrity` is the value for subresource integrity (SRI)."""

    content: bytes
    encoded: Mapping[str, bytes]
    """The compressed content by content coding, the smallest first."""
    media_type: str
    tag: str
    integrity: str


@cache
def asset(name: str, package: str = "tocsin.web") -> Asset:
    """Return a file of a package. Raises `FileNotFoundError`."""
    content = files(package).joinpath(name).read_bytes()
    compressed = {coding: files(package).joinpath(f"{name}.{suffix}") for coding, suffix in COMPRESSED.items()}
    digest = hashlib.sha384(content).digest()
    return Asset(
        content,
        {coding: file.read_bytes() for coding, file in compressed.items() if file.is_file()}
        or {"gzip": gzip.compress(content, 9, mtime=0)},
        TYPES[name.rpartition(".")[2]],
        f'"{digest.hex()[:32]}"',
        f"sha384-{b64encode(digest).decode()}",
    )


def serve(request: Request, name: str, cache_control: str = ALIAS, policy: str | None = None) -> Response:
    """Return a file, compressed if the browser accepts that. A page has a `policy`, its Content-Security-Policy."""
    found = asset(name)
    headers = {
        "Cache-Control": cache_control,
        "ETag": found.tag,
        "Vary": "Accept-Encoding",
        **({"Content-Security-Policy": policy, **PAGE_HEADERS} if policy else {}),
    }
    if found.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    accepted = accepted_codings(request.headers.get("accept-encoding", ""))
    for coding, content in found.encoded.items():
        if coding in accepted:
            headers["Content-Encoding"] = coding
            return Response(content, media_type=found.media_type, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


def accepted_codings(header: str) -> set[str]:
    """Return the codings in an `Accept-Encoding` header, without those with quality 0."""
    accepted = set()
    for part in header.lower().split(","):
        coding, _, quality = part.replace(" ", "").partition(";q=")
        if quality.strip("0.") or not quality:
            accepted.add(coding)
    return accepted
