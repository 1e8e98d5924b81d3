"""An OpenID provider on the loopback that checks client, redirect URI, PKCE, and that a code is used once."""

import asyncio
import base64
import hashlib
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.support.issuer import Pair, jwks, pair
from tests.support.waiting import until

CLIENT_ID = "tocsin console"


@dataclass(frozen=True)
class Grant:
    """What a code stands for."""

    redirect_uri: str
    challenge: str
    claims: dict[str, Any]


@dataclass
class OpenIdProvider:
    """The provider. `person` are the claims of who is signed in there; `sign` makes an ID token of all claims."""

    issuer: str
    redirect_uris: set[str] = field(default_factory=set)
    secret: str | None = None
    posts_secret: bool = False
    person: dict[str, Any] = field(default_factory=dict)
    key: Pair = field(default_factory=lambda: pair("ES256"))
    sign: Callable[[dict[str, Any]], str] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    exchanged: int = 0
    grants: dict[str, Grant] = field(default_factory=dict)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._configuration),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
                Route("/jwks.json", lambda _: Response(jwks(self.key), media_type="application/json")),
            ]
        )

    async def _configuration(self, _: Request) -> Response:
        method = "client_secret_post" if self.posts_secret else "client_secret_basic"
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/jwks.json",
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": [method if self.secret else "none"],
                "authorization_response_iss_parameter_supported": True,
                **self.metadata,
            }
        )

    async def _authorize(self, request: Request) -> Response:
        given = request.query_params
        if given.get("client_id") != CLIENT_ID or given.get("redirect_uri") not in self.redirect_uris:
            return PlainTextResponse("unknown client or redirect URI", 400)
        wanted = {"response_type": "code", "code_challenge_method": "S256"}
        wrong = [name for name, value in wanted.items() if given.get(name) != value]
        wrong += [name for name in ("state", "nonce", "code_challenge") if not given.get(name)]
        wrong += [] if "openid" in given.get("scope", "").split() else ["scope"]
        answer = {"state": given.get("state", ""), "iss": self.issuer}
        if wrong or not self.person:
            answer["error"] = "invalid_request" if wrong else "access_denied"
        else:
            code = secrets.token_urlsafe()
            claims = {"nonce": given["nonce"], "aud": CLIENT_ID, **self.person}
            self.grants[code] = Grant(given["redirect_uri"], given["code_challenge"], claims)
            answer["code"] = code
        return RedirectResponse(f"{given['redirect_uri']}?{urlencode(answer)}", 303)

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        self.exchanged += 1
        grant = self.grants.pop(form.get("code", ""), None)  # a code is used once, also by who fails
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        wrong = {
            "client": not self._is_client(request, form),
            "grant_type": form.get("grant_type") != "authorization_code",
            "code": grant is None,
            "redirect_uri": grant is not None and form.get("redirect_uri") != grant.redirect_uri,
            "verifier": grant is not None and base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != grant.challenge,
        }
        if refused := [name for name, is_wrong in wrong.items() if is_wrong]:
            self.refusals += refused
            return JSONResponse({"error": "invalid_grant"}, 400)
        assert grant
        now = int(time.time())
        claims = {"iss": self.issuer, "iat": now, "exp": now + 60, **grant.claims}
        token = self.sign(claims) if self.sign else self.signed(claims)
        return JSONResponse({"access_token": "unused", "token_type": "Bearer", "id_token": token})

    def signed(self, claims: dict[str, Any], by: Pair | None = None) -> str:
        return (by or self.key).sign({}, **claims)

    def _is_client(self, request: Request, form: dict[str, str]) -> bool:
        if not self.secret:
            return form.get("client_id") == CLIENT_ID and "client_secret" not in form
        if self.posts_secret:
            return (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, self.secret)
        named = f"{quote(CLIENT_ID)}:{quote(self.secret, safe='')}"
        return request.headers.get("authorization") == f"Basic {base64.b64encode(named.encode()).decode()}"


@asynccontextmanager
async def openid_provider(**more: Any) -> AsyncIterator[OpenIdProvider]:
    """Run a provider on a free port of the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        provider = OpenIdProvider(f"http://127.0.0.1:{listening.getsockname()[1]}", **more)
        server = uvicorn.Server(uvicorn.Config(provider.app(), log_config=None, lifespan="off"))
        serving = asyncio.create_task(server._serve([listening]))  # noqa: SLF001 - serve() would install signal handlers
        await until(lambda: server.started)
        try:
            yield provider
        finally:
            server.should_exit = True
            await serving


def unsigned(claims: dict[str, Any]) -> str:
    """Return a token with the algorithm `none`."""
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."
