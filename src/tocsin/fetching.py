"""Small documents from the network: one url, no way elsewhere, a limit of time and one of bytes."""

import asyncio
import ssl
import threading

import pycurl


class Unfetched(Exception):  # noqa: N818 - it is no error of ours
    """A document was not there to be had, and why, in one sentence."""


async def fetch(url: str, *, seconds: float, limit: int) -> bytes:
    """Return what stands at a url (http or https), of at most `limit` bytes, within `seconds`.

    No redirect is followed, no proxy asked, nothing unpacked. Raises `Unfetched`.
    """
    given_up = threading.Event()
    try:
        # A look-up of a name can outlive curl's own limit: then nobody waits for it any more.
        async with asyncio.timeout(seconds + 1):
            return await asyncio.to_thread(_fetch, _curl(url, seconds, given_up), seconds, limit)
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
        status = curl.getinfo(pycurl.RESPONSE_CODE)
    except pycurl.error as error:
        raise Unfetched(_in_words(error, seconds, limit)) from None
    finally:
        curl.close()
    if status != 200:  # noqa: PLR2004 - the one status that comes with the document
        raise Unfetched(f"The answer has the status {status}, not 200.")
    return bytes(body)


def _curl(url: str, seconds: float, given_up: threading.Event) -> pycurl.Curl:
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
    # Those of the system, and of SSL_CERT_FILE: curl's own are where it was built.
    trusted = ssl.get_default_verify_paths()
    if trusted.cafile:
        curl.setopt(pycurl.CAINFO, trusted.cafile)
    if trusted.capath:
        curl.setopt(pycurl.CAPATH, trusted.capath)
    return curl


def _in_words(error: pycurl.error, seconds: float, limit: int) -> str:
    match error.args[0]:
        case pycurl.E_OPERATION_TIMEDOUT:
            return f"No whole answer came within {seconds:g} s."
        case pycurl.E_WRITE_ERROR:
            return f"The answer has more than {limit} bytes."
        case _:
            return f"{str(error.args[-1]).rstrip('.')}."
