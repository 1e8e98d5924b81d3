"""The command `tocsin-phones`: run the stand-ins until a signal, and write the variables to set for the service."""

import asyncio
import shlex
import signal
import sys
from pathlib import Path

from tocsin_phones.running import Phones, Ports

ENVIRONMENT = "environment"
"""The file for a shell to source; it exists while the stand-ins run."""


class StartError(Exception):
    """The stand-ins could not be started; the message has the reason."""


async def serve(folder: Path, port: int) -> None:
    """Serve until SIGTERM or SIGINT; `port` is the first of five in a row, 0 chooses free ones. Raises `StartError`."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    file = folder / ENVIRONMENT
    try:
        file.unlink(missing_ok=True)
        async with Phones(Ports.counted_from(port)) as phones:
            exports = _exports({**phones.credentials(folder), "PHONES_URL": phones.control_url})
            _publish(file, exports)
            sys.stdout.write(f"{exports}# control port: {phones.control_url}\n")
            sys.stdout.flush()
            await ended.wait()
    except OSError as error:
        raise StartError(f"The fake phones cannot be started: {error.strerror or error}.") from None
    finally:
        file.unlink(missing_ok=True)


def _exports(variables: dict[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def _publish(file: Path, content: str) -> None:
    """Write the file atomically, so that a process that waits for it never reads a part of it."""
    draft = file.with_suffix(".draft")
    draft.write_text(content, encoding="utf-8")
    draft.replace(file)
