"""What the doctor finds."""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, and what to do about it."""

    level: Literal["ok", "warn", "FAIL"]
    what: str
    finding: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the finding as a line."""
        finding = "; ".join(line.rstrip(".") for line in self.finding.splitlines())
        return f"{self.level:4} {self.what}: {finding}" + (f"; {self.remedy}" if self.remedy else "")


def is_plain(url: str) -> bool:
    """Return whether a url uses an unencrypted connection over a network."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in _LOOPBACK
