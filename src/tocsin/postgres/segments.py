"""The names of the segments of the write-ahead log: timeline, and number in two parts, in hexadecimal."""

import re

SEGMENT_BYTES = 16 * 2**20
"""Bytes of a segment, as `initdb` sets them."""

_IN_A_PART = 2**32 // SEGMENT_BYTES


_NAME = re.compile("[0-9A-F]{24}")


def is_segment(name: str) -> bool:
    """Return whether a file in an archive is a segment, or belongs to one, and is not the history of a timeline."""
    return _NAME.match(name) is not None


def name_of(timeline: int, number: int) -> str:
    """Return the name of a segment."""
    return f"{timeline:08X}{number // _IN_A_PART:08X}{number % _IN_A_PART:08X}"


def number_of(name: str) -> int:
    """Return the number of a segment, which continues in the next timeline."""
    return int(name[8:16], 16) * _IN_A_PART + int(name[16:24], 16)


def number_at(position: str) -> int:
    """Return the number of the segment that has the byte before a position, such as 0/2000028."""
    return (position_of(position) - 1) // SEGMENT_BYTES


def position_of(text: str) -> int:
    """Return a position in the log, such as 0/2000028, as a number of bytes."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def timeline_of(name: str) -> int:
    """Return the timeline of a segment."""
    return int(name[:8], 16)
