"""Settings: invalid values are rejected by name."""

from pathlib import Path

import pytest

from tocsin.errors import Refusal
from tocsin.settings import read_settings

ORIGIN = "https://crm.example.com"


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[
                ("ROOT_PATH", value)
                for value in ("notify", "/notify/", "/", "//a", "/a b", "/../a", "/a/.", "/%41", "/ü")
            ],
            *[
                ("CORS_ORIGINS", value)
                for value in ("*", f"{ORIGIN},*", f"{ORIGIN}/", f"{ORIGIN}/x", "crm", "null", "a://")
            ],
            *[
                ("CORS_ORIGINS", value)
                for value in (f"{ORIGIN},", "https://*.example.com", "https://a@b", "https://a:x")
            ],
            *[
                ("TRUSTED_PROXIES", value)
                for value in ("*", "proxy", "10.0.0.1/8", "10.0.0.0/33", "127.0.0.1,", "1.2.3")
            ],
            *[("RETENTION_DAYS", value) for value in ("0", "-1", "36501", "x", "1.5")],
        ],
    )
    def test_invalid_settings_are_rejected_by_name(self, name: str, value: str) -> None:
        with pytest.raises(Refusal, match=f"TOCSIN_{name} is not usable"):
            read_settings({f"TOCSIN_{name}": value}, Path("/nonexistent"))

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("HTTPS://CRM.example.com:443", "https://crm.example.com"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:443", "http://localhost:443"),
            ("http://[::1]:5173", "http://[::1]:5173"),
            ("capacitor://localhost", "capacitor://localhost"),
        ],
    )
    def test_origins_are_stored_as_browsers_send_them(self, given: str, kept: str) -> None:
        assert read_settings({"TOCSIN_CORS_ORIGINS": given}, Path("/nonexistent")).cors_origins == (kept,)
