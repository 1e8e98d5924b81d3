"""The sockets on which a service listens."""

import contextlib
import errno
import socket
from collections.abc import Iterator

from tocsin.errors import Refusal

MAX_UNSENT_BYTES = 2**17
"""Bytes of responses that the kernel buffers for a connection beyond what its client receives. By default it buffers up
to 4 MiB for a client that does not read, and copying them blocks the event loop."""


@contextlib.contextmanager
def bound(host: str, port: int, setting: str, *, shared: bool = False) -> Iterator[socket.socket]:
    """Bind the port of a setting without listening, so that connections are refused until the service is ready.

    With `shared`, other processes of the same user can bind it too. Raises `Refusal`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as taken:  # asyncio sets TCP_NODELAY on these
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)  # connections inherit it
        try:
            taken.bind((host, port))
        except OSError as error:
            is_of_port = error.errno in {errno.EADDRINUSE, errno.EACCES}
            remedy = f"set {setting} to another" if is_of_port else "set TOCSIN_HOST to an address of this machine"
            raise Refusal(f"Cannot listen on {_address(host, port)}: {error.strerror}; {remedy}.") from error
        yield taken


def listen(taken: socket.socket) -> None:
    """Listen on a bound port. Raises `Refusal` if another service does since it was bound; uvloop ignores that."""
    try:
        taken.listen()
    except OSError as error:
        where = _address(*taken.getsockname()[:2])
        reason = f"{error.strerror}; another service started at the same time"
        raise Refusal(f"Cannot listen on {where}: {reason}.") from error


def port_of(taken: socket.socket) -> int:
    """Return the bound port."""
    port: int = taken.getsockname()[1]
    return port


def url_of(taken: socket.socket) -> str:
    """Return the url of a bound socket."""
    return f"http://{_address(*taken.getsockname()[:2])}"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
