"""How NATS servers are reached: their urls, the certificates of TLS, and the credentials of a client."""

import base64
import binascii
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tocsin.errors import Refusal
from tocsin.settings import Settings

_SEED = slice(2, 34)
"""The bytes of a private key in the decoded seed: two of the kind of key are before it, and two of a checksum after."""


@dataclass(frozen=True, slots=True)
class Access:
    """Urls of servers, separated by commas, and files: a CA, a certificate with its key, and credentials (`.creds`).

    The files are read at each connection, so that they can be replaced.
    """

    url: str
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    credentials_file: Path | None = None

    def options(self) -> dict[str, Any]:
        """Return the options of the client. Raises `Refusal` for an unusable file."""
        servers = [each.strip() for each in self.url.split(",")]
        found: dict[str, Any] = {"servers": servers}
        if self.ca_file or self.cert_file or any(each.startswith("tls://") for each in servers):
            found["tls"] = self._tls()
        if self.credentials_file:
            self._credentials()
            found["user_jwt_cb"] = lambda: self._credentials()[0]
            found["signature_cb"] = lambda nonce: base64.b64encode(self._credentials()[1].sign(nonce.encode()))
        return found

    def check(self) -> None:
        """Raise `Refusal` for an unusable file."""
        self.options()

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ValueError) as error:
            raise Refusal(f"The certificates of NATS cannot be used: {error}.") from None
        return context

    def _credentials(self) -> tuple[bytes, Ed25519PrivateKey]:
        """Return the token and the key of the credentials."""
        path = self.credentials_file
        try:
            lines = path.read_text("ascii").splitlines() if path else []
        except (OSError, ValueError) as error:
            raise Refusal(f"The credentials of NATS cannot be read: {error}.") from None
        begins = [number for number, line in enumerate(lines) if line.startswith("-----BEGIN ")]
        try:
            token, seed = (lines[number + 1].strip() for number in begins)
            raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
            return token.encode(), Ed25519PrivateKey.from_private_bytes(raw[_SEED])
        except (IndexError, ValueError, binascii.Error):
            raise Refusal(f"{path} has no credentials of NATS: a user's token and seed, as written by nsc.") from None


def access_of(settings: Settings) -> Access:
    """Return the access of the settings."""
    url = settings.nats_url.get_secret_value() if settings.nats_url else ""
    files = settings.nats_ca_file, settings.nats_cert_file, settings.nats_key_file, settings.nats_credentials_file
    return Access(url, *files)
