"""Trust anchors: those of the system, of `SSL_CERT_FILE`, and of an additional file."""

import os
import ssl
import tempfile
import weakref
from pathlib import Path

import pycurl
from cryptography import x509

from tocsin.errors import Refusal
from tocsin.files import setting_file


class Trust:
    """Trust anchors for curl, whose own paths are those of its build. Raises `Refusal` for an unusable file."""

    def __init__(self, further: Path | None = None) -> None:
        system = ssl.get_default_verify_paths()
        self._folder = system.capath
        self._file = system.cafile
        if further is not None:
            parts = [_anchors_in(further), Path(system.cafile).read_bytes() if system.cafile else b""]
            self._file = _kept_for(self, b"\n".join(parts))

    def give(self, curl: pycurl.Curl) -> None:
        """Set the anchors of a curl handle."""
        if self._file:
            curl.setopt(pycurl.CAINFO, self._file)
        if self._folder:
            curl.setopt(pycurl.CAPATH, self._folder)


def _kept_for(owner: object, content: bytes) -> str:
    """Write a file that exists as long as its owner, and return its name: curl reads anchors only from files.

    On Linux the file is in memory, so that it is also removed if the process is killed.
    """
    if hasattr(os, "memfd_create"):
        kept = os.memfd_create("tocsin-anchors")
        weakref.finalize(owner, os.close, kept)
        with os.fdopen(os.dup(kept), "wb") as file:
            file.write(content)
        return f"/proc/self/fd/{kept}"
    opened, name = tempfile.mkstemp(prefix="tocsin-", suffix=".pem")
    weakref.finalize(owner, Path(name).unlink, missing_ok=True)
    with os.fdopen(opened, "wb") as file:
        file.write(content)
    return name


def _anchors_in(path: Path) -> bytes:
    content = setting_file(path, "The file of trust anchors")
    try:
        x509.load_pem_x509_certificates(content)
    except ValueError:
        raise Refusal(f"The file of trust anchors {path} contains no certificates in PEM.") from None
    return content
