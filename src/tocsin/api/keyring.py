"""Middleware that fetches the issuer's public key for a request's token before the request is routed."""

from starlette.types import ASGIApp, Receive, Scope, Send

from tocsin.api.errors import answer_to
from tocsin.auth.tokens import Verifier, bearer_of
from tocsin.errors import Problem


class Keyring:
    """ASGI middleware that waits for the key of a token; handlers verify tokens without waiting."""

    def __init__(self, app: ASGIApp, verifier: Verifier) -> None:
        self._app = app
        self._verifier = verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on when the key of its token is there, or answer that it can't be had."""
        if scope["type"] == "http" and (token := _token_of(scope)):
            try:
                await self._verifier.prepare(token)
            except Problem as problem:
                await answer_to(problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _token_of(scope: Scope) -> str | None:
    """Return the bearer token of a request; several headers are refused by the handler."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    return bearer_of(str(given[0], "latin-1").strip()) if len(given) == 1 else None
