"""Schemathesis finds no response that the OpenAPI document lacks."""

import asyncio
import re
import sys
import time
from pathlib import Path

import pytest

from tests.support.events import custom, note
from tests.support.processes import random_source
from tests.support.properties import CHAOS, rounds
from tests.support.service import DAY, SECRET, Api, at_rest, standing_token
from tocsin.auth.minting import mint_service

PROGRAM = Path(sys.executable).with_name("schemathesis")
EXAMPLES = 1000 if CHAOS else rounds(4, soak=300)
"""Requests that the fuzzer generates per operation and phase; `make soak` and `make chaos` set a higher number."""
LONGEST = rounds(3600 if CHAOS else 1200, soak=3600)
CASES = 25_000 if CHAOS else 100
"""Requests per caller at least."""

PHASES = ("examples", "coverage", "fuzzing", "stateful")

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "ignored_auth",
)
"""What is checked of every answer.

But for imports, whose lines it has no serializer for, and the stream, which does not end: they have tests of their
own. Not that all of what fits the
document is accepted, which no schema can say: that an id is known, that lists are of one length, that a string holds
no NUL, that an iPhone's token is Apple's. Nor that a method which a path does not list is 405: `/notifications/read` is
also a path of `/notifications/{notification_id}`, and `DELETE` on it is 404.
"""

CALLERS = {  # each with the tags of what its token opens
    "user": (standing_token(1), ["notifications", "devices", "operations"]),
    "service": (mint_service(SECRET, "crm", ("events:write", "directory:write"), DAY), ["events", "directory"]),
}


@pytest.mark.processes
@pytest.mark.parametrize("caller", CALLERS)
async def test_schemathesis_finds_no_undocumented_response(api: Api, tmp_path: Path, caller: str) -> None:
    await api.people(1, 2, 4)
    await api.team(7, 1, 2)
    batch = {"events": [note(1, 2), *[custom(1, 2)] * 299]}
    assert (await api.as_service("POST", "/events/batch", json=batch)).status_code == 202
    await at_rest(api)
    began, (token, tags) = time.monotonic(), CALLERS[caller]
    running = await asyncio.create_subprocess_exec(
        PROGRAM,
        "run",
        f"{api.http.base_url}/openapi.json",
        *(f"--include-tag={tag}" for tag in tags),
        "--exclude-path=/directory/import",
        "--exclude-path=/notifications/stream",
        f"--header=Authorization:Bearer {token}",
        f"--phases={','.join(PHASES)}",
        f"--checks={','.join(CHECKS)}",
        f"--max-examples={EXAMPLES}",
        f"--seed={random_source().randrange(2**32)}",
        "--generation-database=none",
        "--no-color",
        "--warnings=off",
        "--suppress-health-check=all",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await asyncio.wait_for(running.communicate(), LONGEST)
    assert running.returncode == 0, told.decode()
    generated = int(re.findall(r"(\d+) generated", told.decode())[-1])
    sys.stdout.write(f"{generated} requests as a {caller} in {time.monotonic() - began:.0f} s\n")
    assert generated >= CASES
