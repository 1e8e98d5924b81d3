"""An APNs channel with a test key."""

from pathlib import Path
from typing import Any

from tests.support.issuer import pair
from tocsin.push.channels.apns import Apns

KEY = pair("ES256", "apns")


def made(folder: Path, **more: Any) -> Apns:
    path = folder / "key.p8"
    path.write_bytes(KEY.private_pem)
    values: dict[str, Any] = {
        "environment": "production",
        "key_file": path,
        "key_id": "ABC123DEFG",
        "team_id": "DEF123GHIJ",
        "topic": "com.example.crm",
    }
    return Apns(**values | more)
