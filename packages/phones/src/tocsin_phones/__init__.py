"""Fake phones: stand-ins for APNs, FCM and a browser push service, over the real protocols, to test against.

    client ══ TLS ══> http2.py, http1.py ──> apns.py · fcm.py, oauth.py · browser.py ──> book.py ──> screens.py
                                                                                           ^
    test ──> control.py: received pushes, screens, simulated failures ─────────────────────┘

They refuse what the real services would, and fail on demand. Only `http2.py` knows the library h2.
"""

from tocsin_phones.running import Phones, Ports

__all__ = ["Phones", "Ports"]
