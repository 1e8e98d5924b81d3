"""Output of commands: control characters are escaped, and errors of writing are reported."""

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


def escaped(text: str, *, lines: bool = False) -> str:
    """Return text with control and direction characters as escapes; with `lines`, line breaks are kept."""
    return (_IN_LINES if lines else _IN_A_LINE).sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str, *, lines: bool = False, err: bool = False) -> None:
    """Print a line, or with `lines` a text of several. Raises `Refusal` if the output cannot be written."""
    with writing():
        typer.echo(escaped(text, lines=lines), err=err)


@contextlib.contextmanager
def writing(what: str = "Standard output") -> Iterator[None]:
    """Raise `Refusal` if an output is full or closed. `BrokenPipeError` ends the process silently, as usual."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Refusal(f"{what} cannot be written: {os.strerror(error.errno or errno.EIO)}.") from None


def open_standard_streams() -> None:
    """Replace closed standard streams, so that no other file gets their descriptors.

    Writing to a standard output that was closed fails, so that a loss of output is noticed.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the process ends
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the process ends


def discard_output() -> None:
    """Discard output that could not be written, or the interpreter would try again at exit and print an error."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
