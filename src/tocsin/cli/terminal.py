"""What commands print: nothing in it moves the cursor, forges a line or turns text around, and a full disk is told."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator

import typer

from tocsin.errors import Refusal

_UNSEEN = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff"
)
_IN_LINES = re.compile(f"[{_UNSEEN}]")
_IN_A_LINE = re.compile(rf"[\t\n{_UNSEEN}]")


def spelt_out(text: str, *, lines: bool = False) -> str:
    """Return text with control and direction characters written as escapes; with `lines`, it may have several."""
    return (_IN_LINES if lines else _IN_A_LINE).sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str, *, lines: bool = False, err: bool = False) -> None:
    """Print a line, or with `lines` a text of several. Raises `Refusal` where the output cannot be written."""
    with writing():
        typer.echo(spelt_out(text, lines=lines), err=err)


@contextlib.contextmanager
def writing(what: str = "Standard output") -> Iterator[None]:
    """Turn an output that is full or closed into a `Refusal`; a reader that has gone ends us quietly, as ever."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Refusal(f"{what} cannot be written: {os.strerror(error.errno or errno.EIO)}.") from None


def open_standard_streams() -> None:
    """Put something in the place of standard streams that are closed, so that no other file takes their numbers.

    Nothing can be written to a standard output that was closed, so that what it should have got is not lost unnoticed.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as we run
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - likewise


def forget_unwritten() -> None:
    """Let what could not be written to standard output go, or the interpreter tries and complains once more."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
