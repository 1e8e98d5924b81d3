"""The keys that verify and sign tokens, from the settings."""

from collections.abc import Sequence
from pathlib import Path

from tocsin.auth.claims import ROLES, Expected
from tocsin.auth.jwks import Jwks
from tocsin.auth.keys import ALL_SPEAKERS, Key, Speaker, hs256, of_pem, own_secret
from tocsin.auth.minting import Signer
from tocsin.auth.oidc import Client, SignInProvider
from tocsin.auth.tokens import Verifier
from tocsin.errors import Refusal
from tocsin.files import setting_file
from tocsin.setting_types import Audience
from tocsin.settings import Settings


def verifier_of(settings: Settings) -> Verifier:
    """Return a verifier with the keys in the settings. The embedded mode makes its own secret.

    Raises `Refusal` if there is no key, or one cannot be used.
    """
    url = settings.jwt_jwks_url
    return Verifier(
        keys_of(settings),
        jwks=Jwks(str(url), _speakers(settings.jwt_jwks_for)) if url else None,
        expected=_expected(settings),
    )


def keys_of(settings: Settings) -> list[Key]:
    """Return the secrets and public keys in the settings, and read their files. Raises `Refusal`."""
    secrets = [] if settings.has_keys and not settings.jwt_secret else secrets_of(settings)
    public = _speakers(settings.jwt_public_keys_for)
    return [
        *(hs256(secret, _speakers(settings.jwt_secret_for)) for secret in secrets),
        *(of_pem(path, public) for path in settings.jwt_public_key_files),
    ]


def provider_of(settings: Settings) -> SignInProvider | None:
    """Return the OpenID provider at which operators sign in, or None. Raises `Refusal` for incomplete settings."""
    if settings.oidc_issuer is None:
        return None
    if settings.oidc_client_id is None:
        raise Refusal("TOCSIN_OIDC_ISSUER needs TOCSIN_OIDC_CLIENT_ID, the id of Tocsin at that provider.")
    pairs = (pair.rpartition("=") for pair in settings.oidc_roles)
    client = Client(
        settings.oidc_issuer,
        settings.oidc_client_id,
        _client_secret(settings.oidc_client_secret_file),
        settings.oidc_scopes,
        settings.oidc_role_claim,
        {theirs: role for theirs, _, named in pairs for role in ROLES if role == named},
        settings.oidc_company_claim,
    )
    return SignInProvider(client)


def _client_secret(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        secret = setting_file(path, "The file of the client secret").decode().strip()
    except UnicodeDecodeError:
        secret = ""
    if not secret or not secret.isprintable():
        raise Refusal(f"The file of the client secret {path} must contain one line of text in UTF-8.")
    return secret


def signer_of(settings: Settings, *speakers: Speaker) -> Signer:
    """Return a signer of tokens for these speakers. Raises `Refusal` if the secret is not for them."""
    for speaker in speakers:
        if speaker not in _speakers(settings.jwt_secret_for):
            raise Refusal(
                f"The secret does not sign tokens of {speaker}; their issuer does: see TOCSIN_JWT_SECRET_FOR."
            )
    return Signer(secrets_of(settings)[0], _expected(settings))


def secrets_of(settings: Settings) -> Sequence[str]:
    """Return the secrets; the embedded mode makes its own. Raises `Refusal` if there is none."""
    if settings.jwt_secret:
        return [secret.get_secret_value() for secret in settings.jwt_secret]
    if settings.has_keys:
        raise Refusal("Public keys cannot sign tokens: get a token from the issuer, or set TOCSIN_JWT_SECRET too.")
    if not settings.makes_keys:
        raise Refusal(
            "With a database of your own, set TOCSIN_JWT_SECRET to at least 32 random bytes, "
            "or TOCSIN_JWT_PUBLIC_KEY_FILES or TOCSIN_JWT_JWKS_URL to the keys of your tokens' issuer."
        )
    folder = settings.data_dir
    try:
        if not (folder / "postgres").exists():
            raise Refusal(f"There is no secret in {folder} yet: start `tocsin serve` once, or set TOCSIN_JWT_SECRET.")
        return [own_secret(folder)]
    except PermissionError:
        raise Refusal(f"{folder} belongs to another user: become that user, or set TOCSIN_JWT_SECRET.") from None


def _speakers(audience: Audience) -> frozenset[Speaker]:
    return ALL_SPEAKERS if audience == "both" else frozenset({audience})


def _expected(settings: Settings) -> Expected:
    scopes: dict[str, frozenset[str]] = {}
    for pair in settings.jwt_scopes:
        theirs, _, ours = pair.rpartition("=")
        scopes[theirs] = scopes.get(theirs, frozenset()) | {ours}
    return Expected(
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        only_published=settings.jwt_issuer_for == "published",
        user_claim=settings.jwt_user_claim,
        service_claims=settings.jwt_service_claim,
        scope_claims=settings.jwt_scope_claim,
        scopes=scopes,
    )
