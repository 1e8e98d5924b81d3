"""Rate limits of requests: what counts towards which limit, and the headers of responses."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from ipaddress import IPv6Address, ip_address
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from tocsin.api.state import app_state_of
from tocsin.auth.claims import ServiceCaller, UserCaller
from tocsin.rate_limits import Standing

STANDINGS = "standings"
"""The key in the state of a request of the limits that it counted towards."""

NETWORK_BITS = 64
"""Bits of an IPv6 address that identify a customer of a network provider."""

_MAX_ADDRESS_LENGTH = 100
_NOT_COUNTED = nullcontext()


async def count(request: Request, name: str, key: int | str, units: int = 1) -> Standing | None:
    """Count units towards a limit; return its standing, None if it is switched off.

    Raises `RateLimited` if fewer units are left.
    """
    limits = app_state_of(request).limits
    limit = limits.of(name)
    if limit is None:
        return None
    standing, refusal = await limits.take(limit, str(key), units)
    standings: dict[str, Standing] = request.scope["state"].setdefault(STANDINGS, {})
    standings[name] = standing
    if refusal:
        try:
            raise refusal
        finally:
            del refusal  # its traceback has this frame: a cycle, which only the garbage collector would free
    return standing


async def count_caller(request: Request, caller: UserCaller | ServiceCaller) -> None:
    """Count a request of a user or a service. Raises `RateLimited`."""
    if isinstance(caller, UserCaller):
        await count(request, "user-requests", caller.id)
    else:
        await count(request, "service-requests", caller.account)


async def count_refused_token(request: Request) -> None:
    """Count a request without a valid token from an address. Raises `RateLimited`.

    Requests with a valid token from the same address are not affected: many users can share an address.
    """
    await count(request, "failed-auth", address_of(request.scope))


def counted(request: Request, name: str, key: int | str, units: int = 1) -> AbstractAsyncContextManager[None]:
    """Count units for the effect of the block; give them back if it fails. Raises `RateLimited`."""
    is_counted = units and app_state_of(request).limits.of(name)
    return _counted(request, name, key, units) if is_counted else _NOT_COUNTED


@asynccontextmanager
async def _counted(request: Request, name: str, key: int | str, units: int) -> AsyncIterator[None]:
    standing = await count(request, name, key, units)
    try:
        yield
    except BaseException:
        if standing:
            app_state_of(request).limits.give_back(standing, units)
        raise


def headers_of(state: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the headers for the limits that a request counted towards (draft-ietf-httpapi-ratelimit-headers-11)."""
    standings = state[STANDINGS].values()
    return [
        (b"ratelimit-policy", ", ".join([standing.limit.policy for standing in standings]).encode()),
        (b"ratelimit", ", ".join([standing.item for standing in standings]).encode()),
    ]


def address_of(scope: Scope) -> str:
    """Return the address of the client, or the network of an IPv6 address, whose customer has all of its addresses."""
    client = scope.get("client")
    host = str(client[0])[:_MAX_ADDRESS_LENGTH] if client else ""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        network = IPv6Address(int(address) >> NETWORK_BITS << NETWORK_BITS)
        return f"{network}/{NETWORK_BITS}"
    return str(address)
