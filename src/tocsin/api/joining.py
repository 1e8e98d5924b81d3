"""The head of a response and the beginning of its body in one system call, and so in one packet."""

import asyncio

INTERIM = b"HTTP/1.1 1"
"""How a response begins that is followed by another one, such as 100 Continue."""


class Joining:
    """The transport of one response, as far as a request cycle uses it.

    The head is written with the first part of the body, or in the next turn of the event loop if that comes later.
    """

    __slots__ = ("_has_head", "_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""
        self._has_head = False

    def write(self, data: bytes) -> None:
        """Write a part of the response; keep it for the next part if it is the head."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif self._has_head or data.startswith(INTERIM):
            self._transport.write(data)
        else:
            self._head, self._has_head = data, True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Close the connection after all that was written."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or being closed."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""
