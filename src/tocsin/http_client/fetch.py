"""Small documents from the network: one url, no way elsewhere, a limit of time and one of bytes."""

import asyncio
import threading
from collections.abc import Mapping
from urllib.parse import urlencode

import pycurl

from tocsin.http_client.tls import Trust


class Unfetched(Exception):  # noqa: N818 - it is no error of ours
    """A document was not there to be had, and why, in one sentence.

    `status` is what was answered, 0: nothing was; `body` is what came with it, which a stranger wrote. `retry_after`
    are the seconds that it asked for, 0: for none.
    """

    def __init__(self, message: str, status: int = 0, body: bytes = b"", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after = retry_after


async def fetch(url: str, *, seconds: float, limit: int) -> bytes:
    """Return what stands at a url (http or https), of at most `limit` bytes, within `seconds`.

    No redirect is followed, no proxy asked, nothing unpacked. Raises `Unfetched`.
    """
    return await _fetched(url, seconds, limit, None, Trust())


async def post(url: str, form: Mapping[str, str], *, seconds: float, limit: int, trust: Trust | None = None) -> bytes:
    """Send a form, and return what is answered by 200; everything else is as with `fetch`."""
    return await _fetched(url, seconds, limit, urlencode(form), trust or Trust())


async def _fetched(url: str, seconds: float, limit: int, form: str | None, trust: Trust) -> bytes:
    given_up = threading.Event()
    try:
        curl = _curl(url, seconds, given_up, trust)
        if form is not None:
            curl.setopt(pycurl.POSTFIELDS, form)
        # A look-up of a name can outlive curl's own limit: then nobody waits for it any more.
        async with asyncio.timeout(seconds + 1):
            return await asyncio.to_thread(_fetch, curl, seconds, limit)
    except TimeoutError:
        raise Unfetched(f"No answer came within {seconds:g} s.") from None
    finally:
        given_up.set()


def _fetch(curl: pycurl.Curl, seconds: float, limit: int) -> bytes:
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
        raise Unfetched(_in_words(error, seconds, limit)) from None
    finally:
        curl.close()
    if status != 200:  # noqa: PLR2004 - the one status that comes with the document
        raise Unfetched(f"The answer has the status {status}, not 200.", status, bytes(body), retry_after)
    return bytes(body)


def _curl(url: str, seconds: float, given_up: threading.Event, trust: Trust) -> pycurl.Curl:
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    curl.setopt(pycurl.FOLLOWLOCATION, 0)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.NOPROXY, "*")
    curl.setopt(pycurl.NOSIGNAL, 1)  # signals are no business of a thread
    curl.setopt(pycurl.TIMEOUT_MS, int(seconds * 1000))
    # Asked about once a second: a process that ends must not wait for the thread.
    curl.setopt(pycurl.NOPROGRESS, 0)
    curl.setopt(pycurl.XFERINFOFUNCTION, lambda *_: int(given_up.is_set()))
    curl.setopt(pycurl.USERAGENT, "tocsin")
    curl.setopt(pycurl.HTTPHEADER, ["Accept: application/json"])
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
