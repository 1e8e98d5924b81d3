"""A new push provider needs only a channel and a function that yields its lanes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.events import note
from tests.support.push_services import answering, files_in, push_service
from tests.support.pushes import becomes, push_report
from tests.support.service import serving
from tocsin import devices
from tocsin.catalogue import Catalogue
from tocsin.http_client.messages import Answer, Request
from tocsin.push import apps, device_formats
from tocsin.push.apps import AppEntry, Planned
from tocsin.push.channels import Channel, Delivered, Gone, Outcome, Push, Refused
from tocsin.push.channels.vapid import Vapid
from tocsin.push.lanes import lane_name
from tocsin.settings import Settings


class Pager(Channel):
    """Sends the title alone, to a url of the pager's own."""

    window = 10
    phones = ("Android",)

    @classmethod
    def stored_token(cls, text: str) -> str | None:
        return text if text.isdecimal() else None

    def __init__(self, url: str) -> None:
        self._url = url

    def request(self, push: Push) -> Request | Refused:
        if push.shown is None:
            return Refused("a pager shows text only")
        return Request(
            f"{self._url}/{push.address.token}", (("content-type", "text/plain"),), push.shown.title.encode()
        )

    def outcome(self, push: Push, answer: Answer) -> Outcome:
        return Delivered() if answer.status == 200 else Gone(f"{push.address.token} is gone")


async def test_custom_provider_delivers_without_changing_other_modules(
    url: str, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Vapid.make(tmp_path / "vapid.pem")
    async with push_service(tmp_path, answering(200)) as pagers:

        def lanes(app: str, _entry: AppEntry, _settings: Settings) -> Iterator[Planned]:
            yield Planned(lane_name("pager", app), Pager, lambda: Pager(pagers.url), (pagers.url,), ())

        monkeypatch.setattr(apps, "PROVIDERS", [*apps.PROVIDERS, lanes])
        monkeypatch.setitem(device_formats.PHONES, "pager", Pager)
        files: dict[str, Any] = {"push_ca_file": files_in(tmp_path)[0], "vapid_key_file": tmp_path / "vapid.pem"}
        async with serving(url, catalogue, **files) as api:
            await api.people(1)
            for token, status in (("0042", 204), ("x", 422)):
                pager = {"type": "Android", "provider": "pager", "token": token}
                assert (await api.as_user(1, "POST", "/notifications/devices", json=pager)).status_code == status
            await becomes(api, await api.post(note(1)), {"delivered": 1})
            pagers.behaviour = answering(404)
            id_ = await api.post(note(1))
            await becomes(api, id_, {"gone": 1})
            assert await push_report(api, id_) == ["gone: the device is gone: 0042 is gone"]
            assert not await devices.devices_of(api.app_state.database, 1)
    assert [(asked.path, asked.body) for asked in pagers.asked] == [("/0042", b"Mention")] * 2
