"""Pushes per second of processor time, to nghttpd on the loopback, against bare loops of curl and h2load."""

import asyncio
import itertools
import json
import re
import resource
import select
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pycurl
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from bench.measure import Claim, medians, options, show
from tocsin.http_client.messages import Request
from tocsin.http_client.tls import Trust
from tocsin.http_client.transport import Transport
from tocsin.push.channels import Address, Push, Shown
from tocsin.push.channels.apns import Apns
from tocsin.push.channels.fcm import Fcm
from tocsin.push.channels.vapid import Vapid
from tocsin.push.channels.web_push import WebPush
from tocsin.push.channels.web_push_encryption import encoded

AT_ONCE = 100
"""Concurrent streams, the limit of nghttpd."""

TOKEN = "ab" * 32
PROJECT = "example-crm"
EXPIRES = datetime.now(UTC) + timedelta(days=1)
WORDS = Shown("note", "New note", "Ann wrote a note about the case 4711.", "{}", "", "case-6", "note", "", "normal")


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=3, seconds=3)
    async with _server() as (folder, port):
        url = f"https://localhost:{port}"
        apns, fcm, web_push = _apns(folder, url), await _fcm(folder, url), WebPush([_vapid()], [url])
        phones, androids, browsers = (_pushes(each) for each in (_phone(), _android(), _browser(url)))

        async def one_round() -> dict[str, float]:
            whole, thread = await _sent(folder, url, seconds, lambda: apns.request(next(phones)))
            to_fcm, _ = await _sent(folder, url, seconds, lambda: fcm.request(next(androids)))
            encrypted, _ = await _sent(folder, url, seconds, lambda: web_push.request(next(browsers)))
            bare = await asyncio.to_thread(_bare, folder, f"{url}/3/device/{TOKEN}", seconds)
            asking = _asking(_many(lambda: apns.request(next(phones))))
            same = await asyncio.to_thread(_bare, folder, url, seconds, asking)
            h2load = await _h2load(url, seconds)
            return {
                "h2load": h2load,
                "bare": bare,
                "same requests": same,
                "apns": whole,
                "thread": thread,
                "fcm": to_fcm,
                "web push": encrypted,
            }

        rates = await medians(rounds, one_round)
    bare = rates["bare"]
    show(
        Claim("pushes to APNs, a payload made for each", rates["apns"], "/CPU s", bare, at_least=0.7),
        Claim("the same, the sending thread alone", rates["thread"], "/CPU s", bare),
        Claim("the same, against a bare loop with these requests", rates["apns"], "/CPU s", rates["same requests"]),
        Claim("pushes to FCM, a message made for each", rates["fcm"], "/CPU s", bare, at_least=0.7),
        Claim("pushes to browsers, each encrypted", rates["web push"], "/CPU s", at_least=8_000),
        *([Claim("h2load's requests", rates["h2load"], "/CPU s", bare)] if rates["h2load"] else []),
    )


async def _sent(folder: Path, url: str, seconds: float, make: Callable[[], object]) -> tuple[float, float]:
    """Send for some seconds, with as many requests waiting as in flight.

    Returns pushes per second of processor time: of the whole process, and of the sending thread alone.
    """
    transport = Transport(AT_ONCE, ca_file=folder / "certificate.pem", allowed_origins=[url])
    answers: list[list[asyncio.Future[object]]] = []
    began, sent = time.perf_counter(), 0
    used, by_loop = time.process_time(), time.thread_time()
    while time.perf_counter() < began + seconds:
        answers.append(transport.submit_many(_many(make)))  # type: ignore[arg-type]
        if len(answers) > 1:
            sent += await _counted(answers.pop(0))
    sent += await _counted(answers.pop())
    used, by_loop = time.process_time() - used, time.thread_time() - by_loop
    await transport.close()
    return sent / used, sent / (used - by_loop)


def _many(make: Callable[[], object]) -> list[Request]:
    made = [make() for _ in range(AT_ONCE)]
    return [request for request in made if isinstance(request, Request)]


async def _counted(answers: Sequence[asyncio.Future[object]]) -> int:
    for coming in answers:
        answer = await coming
        if getattr(answer, "status", 0) != 200:
            raise RuntimeError(f"an answer that is not as asked for: {answer}")
    return len(answers)


def _bare(folder: Path, url: str, seconds: float, ask: Callable[[pycurl.Curl], None] | None = None) -> float:
    """Return the requests per second of processor time of a minimal loop around curl in Python.

    Always the same request, with no header of its own, and no look at the answer, unless `ask` prepares a handle before
    each request.
    """
    multi, ready = pycurl.CurlMulti(), select.poll()
    multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, AT_ONCE)
    multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, 1)
    watched = {pycurl.POLL_IN: select.POLLIN, pycurl.POLL_OUT: select.POLLOUT, pycurl.POLL_INOUT: 5}

    def watch(what: int, fd: int, *_: object) -> None:
        if what == pycurl.POLL_REMOVE:
            ready.unregister(fd)
        else:
            ready.register(fd, watched[what])

    multi.setopt(pycurl.M_SOCKETFUNCTION, watch)
    for _ in range(AT_ONCE):
        curl = pycurl.Curl()
        for option, value in (
            (pycurl.URL, url),
            (pycurl.CAINFO, str(folder / "certificate.pem")),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS),
            (pycurl.PIPEWAIT, 1),
            (pycurl.POSTFIELDS, b"x" * 300),
            (pycurl.WRITEFUNCTION, lambda _: None),
        ):
            curl.setopt(option, value)
        if ask:
            ask(curl)
        multi.add_handle(curl)
    began, used, sent = time.perf_counter(), time.thread_time(), 0
    while time.perf_counter() < began + seconds:
        multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        for fd, _ in ready.poll(1000):
            multi.socket_action(fd, 0)
        for curl in multi.info_read(AT_ONCE)[1]:
            multi.remove_handle(curl)
            if ask:
                ask(curl)
            multi.add_handle(curl)
            sent += 1
    used = time.thread_time() - used
    multi.close()
    return sent / used


def _asking(requests: Sequence[Request]) -> Callable[[pycurl.Curl], None]:
    """Return a function that reads the answer of a handle, headers and body included, and gives it the next request."""
    turns, answers = itertools.cycle(requests), dict[pycurl.Curl, list[bytes]]()

    def ask(curl: pycurl.Curl) -> None:
        if curl not in answers:
            answers[curl] = []
            curl.setopt(pycurl.HEADERFUNCTION, answers[curl].append)
            curl.setopt(pycurl.WRITEFUNCTION, answers[curl].append)
        elif curl.getinfo(pycurl.RESPONSE_CODE) != 200 or not answers[curl]:
            raise RuntimeError("an answer that is not as asked for")
        answers[curl].clear()
        request = next(turns)
        curl.setopt(pycurl.URL, request.url)
        curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in request.headers])
        curl.setopt(pycurl.POSTFIELDS, request.body)

    return ask


async def _h2load(url: str, seconds: float) -> float:
    """Return h2load's requests per second of processor time; 0 if it is not installed."""
    if not shutil.which("h2load"):
        print("  h2load is not installed: no comparison", file=sys.stderr)
        return 0.0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = await asyncio.create_subprocess_exec(
        *("h2load", "-c1", f"-m{AT_ONCE}", f"-D{round(seconds)}", f"{url}/3/device/{TOKEN}"),
        stdout=asyncio.subprocess.PIPE,
    )
    output = (await process.communicate())[0].decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = re.search(r"(\d+) succeeded", output)
    if done is None:
        raise RuntimeError(f"h2load failed: {output}")
    return int(done[1]) / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


@asynccontextmanager
async def _server() -> AsyncIterator[tuple[Path, int]]:
    if not shutil.which("nghttpd"):
        raise SystemExit("nghttpd is not installed: it comes with Debian's nghttp2-server.")
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as name:
        folder = Path(name)
        _certify(folder)
        for path in (f"3/device/{TOKEN}", f"v1/projects/{PROJECT}/messages:send", "token"):
            file = folder / "htdocs" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        token = {"access_token": "ya29." + "x" * 200, "expires_in": 3600, "token_type": "Bearer"}
        (folder / "htdocs/token").write_text(json.dumps(token), "utf-8")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *("nghttpd", "-d", folder / "htdocs", "-m", str(AT_ONCE), str(port)),
            *(folder / "key.pem", folder / "certificate.pem"),
        )
        try:
            await asyncio.sleep(0.5)
            yield folder, port
        finally:
            process.terminate()
            await process.wait()


def _certify(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(EXPIRES - timedelta(days=2))
        .not_valid_after(EXPIRES)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _apns(folder: Path, url: str) -> Apns:
    return Apns(
        environment="production",
        key_file=folder / "key.pem",
        key_id="ABC123DEFG",
        team_id="DEF123GHIJ",
        topic="com.example.crm",
        url=url,
    )


async def _fcm(folder: Path, url: str) -> Fcm:
    """Return a channel that has fetched its access token from the server, too."""
    key = rsa.generate_private_key(65537, 2048)
    account = {
        "project_id": PROJECT,
        "client_email": "push@example.com",
        "token_uri": f"{url}/token",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }
    file = folder / "account.json"
    file.write_text(json.dumps(account), "utf-8")
    fcm = Fcm(credentials_file=file, url=url, trust=Trust(folder / "certificate.pem"))
    if waits := await fcm.ready():
        raise RuntimeError(f"no access token: {waits}")
    return fcm


def _vapid() -> Vapid:
    return Vapid(ec.generate_private_key(ec.SECP256R1()), "mailto:push@example.com")


def _pushes(address: Address) -> Iterator[Push]:
    """Yield pushes of different events, again and again: they come from the database, not from this process."""
    return itertools.cycle([Push(uuid4(), address, 3, EXPIRES, WORDS) for _ in range(1_000)])


def _phone() -> Address:
    return Address(TOKEN, "iOS", "production", "default", EXPIRES)


def _android() -> Address:
    return Address(TOKEN, "Android", "production", "default", EXPIRES)


def _browser(url: str) -> Address:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = encoded(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
    endpoint = f"{url}/3/device/{TOKEN}"
    return Address(endpoint, "Web", "production", "default", EXPIRES, p256dh=point, auth=encoded(bytes(16)))


if __name__ == "__main__":
    uvloop.run(main())
