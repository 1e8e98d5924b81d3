"""The VAPID subject: an invalid one is rejected at start, a missing one causes a warning."""

from pathlib import Path
from typing import Any

import jwt
import pytest
from structlog.testing import capture_logs

from tests.support.push_services import push, shown
from tests.support.service import settings_for
from tests.support.web_push import browser
from tocsin.cli import doctor
from tocsin.errors import Refusal
from tocsin.http_client.messages import Request
from tocsin.push.apps import lanes_of, plan
from tocsin.push.channels.vapid import Vapid


def set_to(subject: str) -> Any:
    return settings_for(environment={"TOCSIN_VAPID_SUBJECT": subject})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("mailto:a@example.com", "mailto:a@example.com"),
        ("mailto:first.last+push@mail.example.co.uk", "mailto:first.last+push@mail.example.co.uk"),
        (" mailto:a@example.com ", "mailto:a@example.com"),
        ("MAILTO:a@example.com", "mailto:a@example.com"),
        ("https://example.com", "https://example.com"),
        ("HTTPS://crm.example.com:8443/contact?x=1", "https://crm.example.com:8443/contact?x=1"),
        ("https://localhost.example.com/", "https://localhost.example.com/"),
    ],
)
def test_valid_vapid_subject_is_kept(given: str, kept: str) -> None:
    assert set_to(given).push_contact == kept


@pytest.mark.parametrize(
    "given",
    [
        *("a@example.com", "mailto:", "mailto:a", "mailto:@example.com", "mailto: a@example.com"),
        *("mailto:<a@example.com>", "mailto:Ops <a@example.com>", "mailto:a@localhost", "mailto:a@b.localhost"),
        *("mailto:a@127.0.0.1", "mailto:a@[::1]", "mailto:a@example.com,b@example.com", "mailto:a@example..com"),
        *("http://example.com", "https://", "https://localhost", "https://localhost:8080/", "https://127.0.0.1/"),
        *(
            "https://[::1]/",
            "https://crm",
            "https://user@example.com",
            "https://example.com/a b",
            "example.com",
            "tel:1",
        ),
        "mailto:a@" + "x" * 300 + ".example.com",
    ],
)
def test_invalid_vapid_subject_is_rejected_at_start_in_one_sentence(given: str) -> None:
    with pytest.raises(Refusal) as refused:
        set_to(given)
    [line] = str(refused.value).splitlines()
    assert line.startswith("TOCSIN_VAPID_SUBJECT is not usable: write mailto:you@example.com or an https url")


@pytest.mark.parametrize(
    ("public_url", "subject"),
    [
        ("https://crm.example.com/notify", "https://crm.example.com/notify"),
        ("http://crm.example.com", "mailto:postmaster@localhost"),
        ("https://localhost:8080", "mailto:postmaster@localhost"),
        ("", "mailto:postmaster@localhost"),
    ],
)
async def test_vapid_subject_defaults_to_https_public_url_or_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public_url: str, subject: str
) -> None:
    Vapid.make(tmp_path / "vapid.pem")
    variables = {"TOCSIN_VAPID_KEY_FILE": str(tmp_path / "vapid.pem"), "TOCSIN_PUBLIC_URL": public_url}
    settings = settings_for(environment=variables, database_url="postgresql://127.0.0.1:1/none")
    with capture_logs() as logs:
        for lane in lanes_of(settings):
            await lane.transport.close()
    is_warned = not public_url.startswith("https://crm")
    warnings = [each for each in logs if each["event"].startswith("web pushes to Safari will be refused")]
    assert len(warnings) == is_warned
    request = plan(settings)[0].make().request(push(browser("https://web.push.apple.com/x"), shown()))
    assert isinstance(request, Request)
    token = dict(request.headers)["authorization"].removeprefix("vapid t=").split(",")[0]
    assert jwt.decode(token, options={"verify_signature": False})["sub"] == subject
    for name, value in {**variables, "TOCSIN_DATABASE_URL": "postgresql://127.0.0.1:1/none"}.items():
        monkeypatch.setenv(name, value)
    said = [str(finding) for finding in await doctor.examine(tmp_path / "none")]
    warned = [line for line in said if line.startswith("warn push web/default") and "VAPID_SUBJECT" in line]
    assert len(warned) == is_warned
