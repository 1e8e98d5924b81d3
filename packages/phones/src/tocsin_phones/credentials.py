"""The credentials of the stand-ins, in the formats of Apple and Google, and the variables that point to them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

APNS_KEY_ID = "PHONES0KEY"
APNS_TEAM_ID = "PHONESTEAM"
APNS_TOPIC = "com.example.crm"
FCM_KEY_ID = "6f6e65206b6579206f66207468652070686f6e65"
PROJECT = "tocsin-phones"
EMAIL = f"firebase-adminsdk@{PROJECT}.iam.gserviceaccount.com"


@dataclass(frozen=True, slots=True)
class Urls:
    """The addresses of the stand-ins."""

    apns: str
    apns_sandbox: str
    fcm: str
    browser: str
    token: str


def write(
    folder: Path, apns_key: EllipticCurvePrivateKey, fcm_key: RSAPrivateKey, authority: bytes, urls: Urls
) -> dict[str, str]:
    """Write the files, readable only for this user, and return the variables. Raises `OSError`."""
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    p8, account, ca = folder / f"AuthKey_{APNS_KEY_ID}.p8", folder / "service-account.json", folder / "phones-ca.pem"
    _write(p8, _pem(apns_key))
    _write(account, json.dumps(_account(_pem(fcm_key).decode(), urls.token), indent=2).encode())
    _write(ca, authority)
    return {
        "TOCSIN_APNS_KEY_FILE": str(p8),
        "TOCSIN_APNS_KEY_ID": APNS_KEY_ID,
        "TOCSIN_APNS_TEAM_ID": APNS_TEAM_ID,
        "TOCSIN_APNS_TOPIC": APNS_TOPIC,
        "TOCSIN_APNS_URL": urls.apns,
        "TOCSIN_APNS_SANDBOX_URL": urls.apns_sandbox,
        "TOCSIN_FCM_CREDENTIALS_FILE": str(account),
        "TOCSIN_FCM_URL": urls.fcm,
        "TOCSIN_PUSH_CA_FILE": str(ca),
        "TOCSIN_WEB_PUSH_ORIGINS": urls.browser,
    }


def _account(private_key: str, token_uri: str) -> dict[str, str]:
    return {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": FCM_KEY_ID,
        "private_key": private_key,
        "client_email": EMAIL,
        "client_id": "100000000000000000000",
        "token_uri": token_uri,
        "universe_domain": "googleapis.com",
    }


def _pem(key: EllipticCurvePrivateKey | RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """Replace the file atomically, so that no process reads half a key."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)
