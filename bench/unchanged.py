"""Unchanged pages, answered 304, against the same pages in full, and an application that only answers 304.

A client that keeps its connection repeats such a request byte by byte, unless something gives an id to each.
"""

import re

import uvloop

from bench import fill
from bench.bare import bare
from bench.measure import Claim, has_rows, load, medians, options, show
from bench.service import Client, clients, database, service

OWNERS = 100
SIZE = 1_000
_TAG = re.compile(rb"etag: (\"[^\"]+\")", re.IGNORECASE)


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=5, seconds=4)
    async with service() as running, bare() as empty:
        async with database(running) as connection:
            owners = await fill.users(connection, OWNERS)
            await fill.history(connection, owners, SIZE)
        whole = [running.get("/notifications", user=owner) for owner in owners]
        async with clients(running, 1) as [client]:
            tags = [await _tag(client, request) for request in whole]
        known = [running.get("/notifications", user=owner, tag=tag) for owner, tag in zip(owners, tags, strict=True)]
        with_id = [request.replace(b"\r\n", b"\r\nX-Request-Id: a\r\n", 1) for request in known]

        async def one_round() -> dict[str, float]:
            return {
                "whole": await load(running, whole, seconds, status=b"200", accept=has_rows),
                "unchanged": await load(running, known, seconds, status=b"304", accept=_is_empty),
                "with an id": await load(running, with_id, seconds, status=b"304", accept=_is_empty),
                "bare": await load(empty, known, seconds, status=b"304", accept=_is_empty),
            }

        rates = await medians(rounds, one_round)
    show(
        Claim("a page that did not change", rates["unchanged"], "/s", rates["whole"], at_least=2.5),
        Claim("the same, with an id in each request", rates["with an id"], "/s", rates["whole"]),
        Claim(
            "a page that did not change, against an application that only answers",
            rates["unchanged"],
            "/s",
            rates["bare"],
        ),
    )


def _is_empty(body: bytes) -> bool:
    return not body


async def _tag(client: Client, request: bytes) -> str:
    await client.ask(request)
    found = _TAG.search(client.head)
    if found is None:
        raise RuntimeError("a page without an ETag")
    return found[1].decode()


if __name__ == "__main__":
    uvloop.run(main())
