"""The timelines of an archive: each restore whose server archives begins one, and leaves its parent at a position."""

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from tocsin.errors import Refusal
from tocsin.postgres.segments import position_of

_HISTORY = re.compile(r"([0-9A-F]{8})\.history\.gz")
_BRANCH = re.compile(r"^(\d+)\t([0-9A-F]+/[0-9A-F]+)\t", re.MULTILINE)
_TIME_IN_GZIP = slice(4, 8)


@dataclass(frozen=True, slots=True)
class Timeline:
    """A timeline, when it began, and the positions at which it left those before it."""

    number: int
    began: datetime
    left: Mapping[int, int]

    @classmethod
    def read(cls, path: Path, number: int) -> Self:
        """Read the history of a timeline. Its time is that of the file that was archived, which copies keep."""
        content = path.read_bytes()
        began = int.from_bytes(content[_TIME_IN_GZIP], "little") or path.stat().st_mtime
        text = gzip.decompress(content).decode()
        left = {int(parent): position_of(position) for parent, position in _BRANCH.findall(text)}
        return cls(number, datetime.fromtimestamp(began, UTC), left)

    def has(self, timeline: int, position: int) -> bool:
        """Return whether a position of a timeline is in the past of this one."""
        return timeline == self.number or position <= self.left.get(timeline, -1)


def timeline_at(folder: Path, moment: datetime | None) -> Timeline | None:
    """Return the timeline that an archive had at a moment, or has; None for the first. Raises `Refusal`."""
    try:
        histories = [(path, name) for path in folder.iterdir() if (name := _HISTORY.fullmatch(path.name))]
        found = [Timeline.read(path, int(name[1], 16)) for path, name in histories]
    except (OSError, EOFError, ValueError) as error:
        raise Refusal(f"The archive {folder} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    begun = [each for each in found if moment is None or each.began <= moment]
    return max(begun, key=lambda each: each.number, default=None)
