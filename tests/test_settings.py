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
            *[
                (name, f"https://{value}")
                for name in ("PUBLIC_URL", "APNS_URL", "APNS_SANDBOX_URL", "FCM_URL")
                for value in (
                    "u:p@x.example",
                    "u@x.example",
                    "x.example/?a=b",
                    "x.example/a?",
                    "x.example/#a",
                    "x.example#",
                )
            ],
            *[("RETENTION_DAYS", value) for value in ("0", "-1", "36501", "x", "1.5")],
        ],
    )
    def test_invalid_settings_are_rejected_by_name(self, name: str, value: str) -> None:
        with pytest.raises(Refusal, match=f"TOCSIN_{name} is not usable"):
            read_settings({f"TOCSIN_{name}": value}, Path("/nonexistent"))

    def test_two_ports_are_different(self) -> None:
        def ports(**values: str) -> dict[str, int]:
            return read_settings(
                {f"TOCSIN_{name}": value for name, value in values.items()}, Path("/nonexistent")
            ).ports

        with pytest.raises(Refusal, match="TOCSIN_PORT and TOCSIN_OPERATIONS_PORT are both 8080"):
            ports(OPERATIONS_PORT="8080")
        assert ports(PORT="81") == {"TOCSIN_PORT": 81}
        assert ports(PORT="0", OPERATIONS_PORT="0") == {"TOCSIN_PORT": 0, "TOCSIN_OPERATIONS_PORT": 0}

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
