"""Fixtures: the built-in catalogue is loaded once, not by each command that runs in this process."""

import pytest

from tests.support.built_in import CATALOGUE
from tocsin.catalogue import Catalogue


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Catalogue.load
    monkeypatch.setattr(Catalogue, "load", lambda *folders: load(*folders) if folders else CATALOGUE)
