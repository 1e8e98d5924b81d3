"""Push services that hang, reset, throttle or lie: every push arrives, and inboxes do not notice."""

from typing import Any

from tests.support.chaos import ChaosRun, scenario
from tests.support.clusters import embedded_cluster

WAYS: dict[str, dict[str, Any]] = {
    "hang": {"answer": "hang"},
    "reset": {"answer": "reset"},
    "cut": {"answer": "cut"},
    "goaway": {"answer": "goaway"},
    "throttle": {"status": 429, "reason": "TooManyRequests", "headers": {"retry-after": "2"}},
    "fail": {"status": 503, "reason": "ServiceUnavailable"},
    "no JSON": {"status": 500, "answer": "not json"},
    "huge": {"status": 500, "answer": "huge"},
    "lie": {"status": 500, "reason": "InternalServerError", "shown": True},
}


@scenario(
    "provider",
    "APNs hangs, resets, throttles, fails, or shows a push and reports an error",
    nothing_waits="a few pushes fail and are sent again, and others are delivered meanwhile",
)
async def test_pushes_survive_failing_push_services(run: ChaosRun) -> None:
    async with embedded_cluster(run):
        ways = list(WAYS.values())
        async for number in run.rounds(2):
            async with run.failure():
                for way in ways[number % 3 :: 3]:
                    run.phones.answer("apns", times=run.dice.randint(3, 10), **way)
                await run.load.more(60)


@scenario("provider-away", "APNs cannot be reached", long=True)
async def test_pushes_survive_an_outage_of_the_push_service(run: ChaosRun) -> None:
    async with embedded_cluster(run) as cluster:
        async for _ in run.rounds(1):
            async with run.failure():
                await run.phones.stop()
                await cluster.shows("pushes of apns/default fail since")
                await run.phones.start()
