"""Trust anchors for curl are in a file that exists as long as they are used."""

import gc
import os
from pathlib import Path

import pytest

from tests.support.issuer import certificate, pair
from tocsin.http_client.tls import Trust


@pytest.mark.parametrize("in_memory", [True, False])
def test_further_anchors_are_added_to_those_of_the_system(
    *, in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create")  # as on macOS
    anchors = tmp_path / "anchors.pem"
    anchors.write_bytes(certificate(pair("ES256"), "push.example"))
    system = tmp_path / "system.pem"
    system.write_bytes(certificate(pair("ES384"), "system.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    trust = Trust(anchors)
    name = trust._file  # noqa: SLF001 - what curl is given
    assert name is not None
    assert Path(name).read_bytes() == anchors.read_bytes() + b"\n" + system.read_bytes()
    del trust
    gc.collect()
    assert not Path(name).exists()
