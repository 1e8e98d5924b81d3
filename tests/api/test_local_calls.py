"""Paths that need no token answer only local callers."""

import pytest

from tocsin_phones.local_calls import is_local

ANY = "0.0.0.0"  # noqa: S104 - nothing is bound here


@pytest.mark.parametrize(
    ("host", "bound", "peer", "opens"),
    [
        ("localhost:8080", "127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", ANY, "127.0.0.1", True),
        ("[::1]:8080", "::", "::1", True),
        ("10.0.0.5:8080", "10.0.0.5", "10.0.0.9", True),
        ("localhost", ANY, "10.0.0.9", False),
        ("127.0.0.1", ANY, "10.0.0.9", False),
        (ANY, ANY, "10.0.0.9", False),
        ("evil.example", "127.0.0.1", "127.0.0.1", False),
        ("evil@127.0.0.1", "127.0.0.1", "127.0.0.1", False),
        ("127.0.0.1#.evil.example", "127.0.0.1", "127.0.0.1", False),
        ("127.0.0.1?.evil.example", "127.0.0.1", "127.0.0.1", False),
        ("localhost:80:80", "127.0.0.1", "127.0.0.1", False),
        ("", "127.0.0.1", "127.0.0.1", False),
    ],
)
def test_token_free_paths_serve_loopback_or_the_bound_address(host: str, bound: str, peer: str, *, opens: bool) -> None:
    assert is_local({"host": host}, bound, peer) is opens


@pytest.mark.parametrize(
    ("origin", "opens"),
    [
        ("http://localhost:8080", True),
        ("http://localhost", False),
        ("http://localhost:9090", False),
        ("http://evil.example", False),
        ("http://evil.example/://localhost:8080", False),
        ("null", False),
        ("", False),
    ],
)
def test_token_free_paths_reject_pages_of_other_origins(origin: str, *, opens: bool) -> None:
    assert is_local({"host": "localhost:8080", "origin": origin}, "127.0.0.1", "127.0.0.1") is opens
