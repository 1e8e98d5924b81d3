"""A browser that decrypts its pushes."""

import json
from typing import Any

import http_ece  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.issuer import pair
from tests.support.push_services import phone
from tocsin.push.channels.web_push_encryption import encoded

BROWSER = ec.generate_private_key(ec.SECP256R1())


POINT = BROWSER.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


SECRET = bytes(range(16))


P256DH, AUTH = encoded(POINT), encoded(SECRET)


MOZILLA = "https://updates.push.services.mozilla.com/wpush/v2/abc"


OURS = pair("ES256", "vapid")


def browser(endpoint: str = MOZILLA, p256dh: str = P256DH, auth: str = AUTH) -> Any:
    return phone("Web", endpoint, p256dh=p256dh, auth=auth)


def opened(body: bytes) -> Any:
    plain = http_ece.decrypt(body, private_key=BROWSER, auth_secret=SECRET, version="aes128gcm")
    return json.loads(plain)
