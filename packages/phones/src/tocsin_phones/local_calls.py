"""Which requests a route without authentication may answer: those of programs and pages of this machine.

A page of another site in a browser on this machine can call too. It may point its own name here (DNS rebinding),
which `Host` tells, or post without reading the answer, which `Origin` tells.
"""

import ipaddress
import re
from collections.abc import Mapping

_HOST = re.compile(r"(?P<name>[\w.-]+|\[[\da-fA-F:.]+\])(?P<port>:\d{1,5})?", re.ASCII)
"""A host name or address with an optional port."""


def is_local(headers: Mapping[str, str], bound: str, peer: str) -> bool:
    """Return whether a request is for the bound address, or within this machine, and not from a page of another origin.

    A request without `Origin` is not a POST from a page of another origin: browsers send it with each POST.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    return _is_named_right(host, bound, peer) and (origin is None or origin.partition("://")[2] == host)


def _is_named_right(host: str, bound: str, peer: str) -> bool:
    named = _HOST.fullmatch(host)
    if not named:
        return False
    name = named["name"].strip("[]").lower()
    try:
        if name == bound.lower() and name not in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not listened on
            return True
        return ipaddress.ip_address(peer).is_loopback and (
            name == "localhost" or ipaddress.ip_address(name).is_loopback
        )
    except ValueError:
        return False
