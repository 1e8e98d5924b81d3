"""Making tokens, for the commands `tocsin token`, `tocsin send` and `tocsin console`."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import jwt

from tocsin.auth.claims import MAX_NAME_LENGTH, Expected, is_service_name
from tocsin.errors import Refusal


@dataclass(frozen=True, slots=True)
class Signer:
    """The secret that signs tokens, and the claims of every token."""

    secret: str
    says: Expected = field(default_factory=Expected)


def mint_user(by: Signer | str, user_id: int, lifetime: timedelta) -> str:
    """Return a user token. `by` is a signer, or a secret."""
    signer = _signer(by)
    return _mint(signer, lifetime, {signer.says.user_claim: str(user_id)})


def mint_service(
    by: Signer | str, name: str, scopes: Iterable[str], lifetime: timedelta, company_id: int | None = None
) -> str:
    """Return a service token. `by` is a signer, or a secret. Raises `Refusal` for an invalid name."""
    if not is_service_name(name):
        raise Refusal(
            f"The name of a service must have 1 to {MAX_NAME_LENGTH} characters, none of them a control character, and"
            " must not be a number."
        )
    signer = _signer(by)
    bound = {} if company_id is None else {"company_id": company_id}
    said = {signer.says.service_claims[0]: name, signer.says.scope_claims[0]: " ".join(sorted(scopes))}
    return _mint(signer, lifetime, {**said, **bound})


def _signer(by: Signer | str) -> Signer:
    return Signer(by) if isinstance(by, str) else by


def _mint(signer: Signer, lifetime: timedelta, claims: Mapping[str, Any]) -> str:
    now = int(time.time())
    said = {} if signer.says.only_published else {"iss": signer.says.issuer, "aud": signer.says.audience}
    said = {name: value for name, value in said.items() if value is not None}
    times = {"iat": now, "exp": now + int(lifetime.total_seconds())}
    return jwt.encode({**said, **claims, **times}, signer.secret, algorithm="HS256")
