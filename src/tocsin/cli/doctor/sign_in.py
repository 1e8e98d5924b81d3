"""Checks of the OpenID provider at which operators sign in to the console."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from tocsin.auth.from_settings import provider_of
from tocsin.auth.jwks import FETCH_TIMEOUT, MAX_BYTES
from tocsin.auth.keys import ALL_SPEAKERS, of_jwks
from tocsin.auth.oidc import DISCOVERY, fetch_metadata, unusable_urls
from tocsin.cli.doctor.finding import Finding
from tocsin.errors import Malformed, Refusal
from tocsin.http_client.fetch import FetchError, fetch
from tocsin.settings import PREFIX, Settings

WHAT = "console sign-in"

_METHOD = "S256"


async def check_sign_in(settings: Settings) -> AsyncIterator[Finding]:
    """Check the settings, the metadata and the keys of the provider, if one is set. Each fetch takes 5 s at most."""
    if settings.oidc_issuer is None:
        return
    issuer = settings.oidc_issuer
    try:
        provider_of(settings)
    except Refusal as refusal:
        yield Finding("FAIL", WHAT, str(refusal).rstrip("."), "correct the named setting or file")
        return
    try:
        metadata = await fetch_metadata(issuer)
    except (FetchError, Malformed) as error:
        remedy = f"make sure that it answers, or correct {PREFIX}OIDC_ISSUER"
        yield Finding("FAIL", WHAT, f"{issuer.rstrip('/')}{DISCOVERY}: {str(error).rstrip('.')}", remedy)
        return
    yield Finding("ok", WHAT, f"{issuer} publishes its metadata")
    for check in (_issuer(metadata, issuer), _endpoints(metadata), _pkce(metadata)):
        yield check
    if "jwks_uri" not in dict(unusable_urls(metadata)):
        yield await _keys(metadata["jwks_uri"])


def _issuer(metadata: Mapping[str, Any], issuer: str) -> Finding:
    what, given = f"{WHAT} issuer", metadata.get("issuer")
    if given == issuer:
        return Finding("ok", what, f"{issuer} is that of the metadata")
    said = f"{issuer} is not that of the metadata, {str(given)[:200]!r}: sign-ins fail"
    return Finding(
        "FAIL", what, said, f"set {PREFIX}OIDC_ISSUER to exactly the metadata's issuer, also in its last slash"
    )


def _endpoints(metadata: Mapping[str, Any]) -> Finding:
    what = f"{WHAT} endpoints"
    if wrong := [f"{name} is {reason}" for name, reason in unusable_urls(metadata)]:
        return Finding(
            "FAIL", what, f"in the metadata, {', '.join(wrong)}", "correct the configuration of the provider"
        )
    return Finding("ok", what, "the metadata names those for the sign-in, the code and the keys")


def _pkce(metadata: Mapping[str, Any]) -> Finding:
    what, methods = f"{WHAT} PKCE", metadata.get("code_challenge_methods_supported")
    if isinstance(methods, list) and _METHOD in methods:
        return Finding("ok", what, f"the provider supports {_METHOD}")
    if methods is None:
        said = f"the metadata do not say whether the provider supports {_METHOD}, which every sign-in uses"
        return Finding("warn", what, said, "look it up in the provider's documentation")
    said = f"the provider does not support {_METHOD}, which every sign-in uses"
    return Finding("FAIL", what, said, f"permit {_METHOD} for this client at the provider")


async def _keys(url: str) -> Finding:
    what = f"{WHAT} keys"
    try:
        keys = of_jwks(await fetch(url, seconds=FETCH_TIMEOUT, limit=MAX_BYTES), ALL_SPEAKERS)
    except (FetchError, ValueError) as error:
        remedy = "make sure that this machine can reach it, and that it has a signing key"
        return Finding("FAIL", what, f"{url}: {str(error).rstrip('.')}", remedy)
    return Finding("ok", what, f"{len(keys)} key{'s' if len(keys) > 1 else ''} at {url} can verify ID tokens")
