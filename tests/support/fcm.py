"""An FCM channel with a test account."""

import json
from pathlib import Path
from typing import Any

from tests.support.issuer import pair
from tocsin.push.channels.fcm import Fcm

KEY = pair("RS256", "fcm")


def account(**more: Any) -> bytes:
    said: dict[str, Any] = {
        "type": "service_account",
        "project_id": "crm-1",
        "private_key_id": "key-1",
        "private_key": KEY.private_pem.decode(),
        "client_email": "push@crm-1.example",
        "token_uri": "https://localhost:1/token",
    }
    return json.dumps({name: value for name, value in (said | more).items() if value is not None}).encode()


def made(folder: Path, content: bytes | None = None, **more: Any) -> Fcm:
    path = folder / "account.json"
    path.write_bytes(content or account())
    return Fcm(credentials_file=path, **more)
