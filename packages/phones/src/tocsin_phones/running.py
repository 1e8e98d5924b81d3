"""All stand-ins together: start, stop, and the environment variables that point the service to them."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as new_ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as new_rsa

from tocsin_phones import credentials
from tocsin_phones.answers import demand_of
from tocsin_phones.apns import ApnsService
from tocsin_phones.book import Book
from tocsin_phones.browser import STREAMS as STREAMS_OF_BROWSERS
from tocsin_phones.browser import Browser
from tocsin_phones.control import Control
from tocsin_phones.fcm import STREAMS as STREAMS_OF_FCM
from tocsin_phones.fcm import FcmService
from tocsin_phones.listening import Authority, Listener
from tocsin_phones.oauth import OAuth, OAuthAccount


@dataclass(frozen=True, slots=True)
class Ports:
    """The port of each stand-in; 0 chooses a free one."""

    control: int = 0
    apns: int = 0
    apns_sandbox: int = 0
    fcm: int = 0
    browser: int = 0

    @classmethod
    def counted_from(cls, first: int) -> Self:
        """Return five ports in a row, or free ones for 0."""
        return cls(*range(first, first + 5)) if first else cls()


HOST = "127.0.0.1"


class Phones:
    """Stand-ins for APNs, its sandbox, FCM and a browser push service, with a control port, on the loopback interface.

    New keys and certificates are made with the object. The urls are there when it has started.
    """

    def __init__(self, ports: Ports | None = None) -> None:
        self._ports = ports or Ports()
        self._authority = Authority()
        self._listener = Listener(self._authority, HOST)
        self._apns_key = new_ec(SECP256R1())
        self._fcm_key = new_rsa(65537, 2048)
        account = OAuthAccount(
            credentials.EMAIL, credentials.FCM_KEY_ID, self._fcm_key.public_key(), credentials.PROJECT
        )
        ids = (credentials.APNS_KEY_ID, credentials.APNS_TEAM_ID, credentials.APNS_TOPIC)
        self._book = Book()
        self._apns = ApnsService(self._book, "apns", self._apns_key.public_key(), ids)
        self._sandbox = ApnsService(self._book, "apns-sandbox", self._apns_key.public_key(), ids)
        self._oauth = OAuth(self._book, account)
        self._fcm = FcmService(self._book, self._oauth, credentials.PROJECT)
        self._browser = Browser(self._book)
        self.control_url = self.apns_url = self.apns_sandbox_url = self.fcm_url = self.browser_url = ""

    async def start(self) -> None:
        """Listen on all ports; after a stop, on the same ports again.

        Raises `OSError` if a port is in use; then it listens on none of them.
        """
        try:
            await self._listen()
        except OSError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close all connections and stop listening: an outage for a sender. Received pushes stay available."""
        await self._listener.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def credentials(self, folder: Path) -> dict[str, str]:
        """Write the keys and the authority's certificate into `folder`; return the environment variables to set.

        Raises `OSError` if the folder cannot be written, and `RuntimeError` before the first start.
        """
        if not self.control_url:
            raise RuntimeError("The services do not listen yet: start them before reading their urls.")
        urls = credentials.Urls(self.apns_url, self.apns_sandbox_url, self.fcm_url, self.browser_url, self._oauth.url)
        return credentials.write(folder, self._apns_key, self._fcm_key, self._authority.pem, urls)

    def pushes(self, provider: str | None = None, token: str | None = None) -> list[dict[str, Any]]:
        """Return the received pushes, as `GET /pushes` does."""
        return self._book.received(provider, token)

    def screen(self, token: str, provider: str | None = None) -> dict[str, Any]:
        """Return what a device shows, as `GET /screen` does."""
        return self._book.screen(token, provider).as_json()

    def answer(self, provider: str, **demand: Any) -> None:
        """Program the answer to the next pushes, as `POST /answers` does. Raises `MalformedJson`."""
        self._book.demands.waiting.append(demand_of({"provider": provider, **demand}))

    def subscribe(self, application_server_key: str = "") -> dict[str, Any]:
        """Create a browser and return its subscription, as `POST /subscriptions` does."""
        return self._browser.subscribe(application_server_key).as_json()

    def unsubscribe(self, endpoint: str) -> bool:
        """Remove a subscription: pushes to it are answered 410. Return whether it existed."""
        return self._browser.unsubscribe(endpoint)

    def forget(self) -> None:
        """Discard pushes, screens and programmed answers; subscriptions stay."""
        self._book.forget()
        self._book.demands.waiting.clear()

    def cut(self) -> None:
        """Close all connections, as `DELETE /connections` does."""
        self._listener.cut()

    async def _listen(self) -> None:
        ports, listener = self._ports, self._listener
        apns = await listener.open(self._apns.handle, ports.apns, streams=1, old=False)
        sandbox = await listener.open(self._sandbox.handle, ports.apns_sandbox, streams=1, old=False)
        fcm = await listener.open(self._fcm.handle, ports.fcm, streams=STREAMS_OF_FCM, old=True)
        browser = await listener.open(self._browser.handle, ports.browser, streams=STREAMS_OF_BROWSERS, old=True)
        control = Control(self._book, self._browser, listener.cut, HOST)
        plain = await listener.open_plainly(control.handle, ports.control)
        self._ports = Ports(plain, apns, sandbox, fcm, browser)
        self.control_url = f"http://{HOST}:{plain}"
        self.apns_url, self.apns_sandbox_url = f"https://{HOST}:{apns}", f"https://{HOST}:{sandbox}"
        self.fcm_url = f"https://{HOST}:{fcm}"
        self.browser_url = self._browser.origin = f"https://{HOST}:{browser}"
        self._oauth.url = f"{self.fcm_url}/token"
