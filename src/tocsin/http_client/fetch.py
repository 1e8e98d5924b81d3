"""Single requests over HTTP, for small answers: GET, or POST if there is a body."""

import asyncio
import threading
from collections.abc import Sequence

import pycurl

from tocsin.http_client.tls import Trust


class FetchError(Exception):
    """There is no successful answer; the message is the reason.

    `status` and `body` are those of the answer, 0 and empty if none came. `retry_after` is the number of seconds in its
    `Retry-After`, or 0.
    """

    def __init__(self, message: str, status: int = 0, body: bytes = b"", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after = retry_after


async def fetch(  # noqa: PLR0913 - what a request may have
    url: str,
    *,
    seconds: float,
    limit: int,
    body: bytes | None = None,
    headers: Sequence[str] = (),
    trust: Trust | None = None,
) -> bytes:
    """Return the body of the answer, if its status is 2xx. Raises `FetchError`.

    `seconds` limits the whole call and `limit` the bytes of the answer. Redirects, proxies, compression and schemes
    other than http and https are not supported.
    """
    given_up = threading.Event()
    try:
        curl = _curl(url, seconds, given_up, trust or Trust())
        curl.setopt(pycurl.HTTPHEADER, ["Accept: application/json", *headers])
        if body is not None:
            curl.setopt(pycurl.POSTFIELDS, body)
        # Looking up a name can take longer than curl's own limit: then the thread is left behind.
        async with asyncio.timeout(seconds + 1):
            return await asyncio.to_thread(_perform, curl, seconds, limit)
    except TimeoutError:
        raise FetchError(f"No answer came within {seconds:g} s.") from None
    finally:
        given_up.set()


def _perform(curl: pycurl.Curl, seconds: float, limit: int) -> bytes:
    body = bytearray()

    def take(part: bytes) -> int:
        if len(body) + len(part) > limit:
            return 0  # less than was given: curl ends the transfer
        body.extend(part)
        return len(part)

    curl.setopt(pycurl.WRITEFUNCTION, take)
    try:
        curl.perform()
        status, retry_after = curl.getinfo(pycurl.RESPONSE_CODE), curl.getinfo(pycurl.RETRY_AFTER)
    except pycurl.error as error:
        raise FetchError(_in_words(error, seconds, limit)) from None
    finally:
        curl.close()
    if not 200 <= status < 300:  # noqa: PLR2004 - success in HTTP
        raise FetchError(f"The answer has the status {status}.", status, bytes(body), retry_after)
    return bytes(body)


def _curl(url: str, seconds: float, given_up: threading.Event, trust: Trust) -> pycurl.Curl:
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    curl.setopt(pycurl.FOLLOWLOCATION, 0)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.NOPROXY, "*")
    curl.setopt(pycurl.NOSIGNAL, 1)  # only the main thread may handle signals
    curl.setopt(pycurl.TIMEOUT_MS, int(seconds * 1000))
    # Called about once a second, so that a process that ends does not wait for the thread.
    curl.setopt(pycurl.NOPROGRESS, 0)
    curl.setopt(pycurl.XFERINFOFUNCTION, lambda *_: int(given_up.is_set()))
    curl.setopt(pycurl.USERAGENT, "tocsin")
    trust.give(curl)
    return curl


def _in_words(error: pycurl.error, seconds: float, limit: int) -> str:
    match error.args[0]:
        case pycurl.E_OPERATION_TIMEDOUT:
            return f"No whole answer came within {seconds:g} s."
        case pycurl.E_WRITE_ERROR:
            return f"The answer has more than {limit} bytes."
        case _:
            return f"{str(error.args[-1]).rstrip('.')}."
