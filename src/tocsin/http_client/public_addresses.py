"""Checks of urls from users: their origin in normal form, and whether an address is public."""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_URL = re.compile(
    r"(https?)://([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::([1-9]\d{0,4}))?(/[!-~]*)?", re.ASCII | re.IGNORECASE
)
_ADDRESS = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}", re.ASCII)
_LETTER = re.compile(r"[a-z]", re.IGNORECASE)
_MAX_LABEL_LENGTH = 63
_NEVER_IN_A_PATH = re.compile(r"[\\#\"<>^`{|}]")
_DEFAULT_PORTS = {"https": "443", "http": "80"}
_UNICAST = IPv6Network("2000::/3")
_MAPPED, _NAT64, _6TO4 = IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"), IPv6Network("2002::/16")
_NOT_PUBLIC = tuple(
    IPv4Network(network)  # not every version of `ipaddress` knows all of them
    for network in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4")
)
_NOT_PUBLIC_6 = tuple(IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "3fff::/20"))


def origin_of(url: str) -> str | None:
    """Return the origin of an http or https url, in lower case and without a default port.

    Return None for a url with user info, a fragment, a number as host, or another form that parsers read differently.
    """
    whole = _URL.fullmatch(url)
    if whole is None or not _is_a_host(whole[2]) or _NEVER_IN_A_PATH.search(url):
        return None
    scheme, host, port = whole[1].lower(), whole[2].lower(), whole[3]
    return f"{scheme}://{host}" if port in (None, _DEFAULT_PORTS[scheme]) else f"{scheme}://{host}:{port}"


def _is_a_host(text: str) -> bool:
    """Return whether this is an address, or a name whose last label is not a number."""
    if text.startswith("[") or _ADDRESS.fullmatch(text):
        return True
    labels = text.split(".")
    return all(1 <= len(label) <= _MAX_LABEL_LENGTH for label in labels) and _LETTER.search(labels[-1]) is not None


@lru_cache(4096)
def is_public(address: str) -> bool:
    """Return whether an IP address, and the IPv4 address embedded in it, belong to the public internet."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)
    wrapped = _wrapped_in(ip)
    if wrapped is not None:
        return is_public(str(wrapped))
    return ip in _UNICAST and ip.is_global and not any(ip in network for network in _NOT_PUBLIC_6)


def _wrapped_in(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address embedded in an IPv6 address. Teredo addresses are never public."""
    if ip in _MAPPED or ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return IPv4Address(int(ip) >> 80 & 0xFFFFFFFF) if ip in _6TO4 else None
