"""A crash at every statement that changes state, and at every commit."""

import contextlib
import signal
import sys
from pathlib import Path

from tests.support.chaos import ChaosRun, leased_pushes, scenario
from tests.support.clusters import cluster_on
from tests.support.processes import Program, data_folder
from tocsin.postgres.supervisor import Embedded

SECONDS = 15.0
"""How long a process may take to reach a point; what it passes once a day it does not reach."""

MIN_POINTS = 30
"""Points that are there at least, and at which it crashes in any run; a long run comes to all of them."""

COMMAND = (sys.executable, "-m", "tests.support.crash_points")
PLACE = {"PYTHONPATH": str(Path(__file__).parents[2])}


@scenario(
    "crash-points",
    "SIGKILL before and after each statement that changes state, and each commit",
    long=True,
    nothing_waits="the process is started again",
)
async def test_a_crash_at_any_statement_loses_and_doubles_nothing(run: ChaosRun, tmp_path: Path) -> None:
    async with (
        data_folder() as data,
        Embedded(data) as server,
        cluster_on(run, server.url, PLACE, command=COMMAND) as cluster,
    ):
        programs = {"API": cluster.service, "worker": cluster.workers[0]}
        points = [(name, at) for name, each in programs.items() for at in await passed(run, each, tmp_path / name)]
        assert len(points) >= MIN_POINTS, points
        run.dice.shuffle(points)
        reached = set()
        async for number in run.rounds(MIN_POINTS):
            name, point = points[number % len(points)]
            if await crash(run, programs[name], point):
                reached.add(f"{name} {point}")
        sys.stdout.write(f"crashed at {len(reached)} of {len(points)} points: {', '.join(sorted(reached))}\n")
        assert len(reached) >= MIN_POINTS // 2  # not each is passed in time


async def passed(run: ChaosRun, program: Program, trace: Path) -> list[str]:
    """Return the points that a process passes under load, its start and its end included."""
    program.change(CRASH_TRACE=str(trace))
    for _ in range(2):
        await program.stop()
        await program.start()
        await run.load.more(150)
    await program.stop()
    program.change(CRASH_TRACE=None)
    await program.start()
    return sorted(set(trace.read_text("utf-8").splitlines()))


async def crash(run: ChaosRun, program: Program, point: str) -> bool:
    """Let a process crash at a point; return whether it reached it in time."""
    await program.stop()
    program.change(CRASH_AT=point, CRASH_COUNT=str(run.dice.choice((1, 1, 2, 5))))
    async with run.failure(converges=False):
        with contextlib.suppress(AssertionError):  # it may crash before it says that it has started
            await program.start()
        if not await program.ends(SECONDS):
            await program.stop()
        is_reached = program.status == -signal.SIGKILL
        if is_reached and "worker" in program.greeting:
            run.in_flight += await leased_pushes(run.url, program)
        program.change(CRASH_AT=None, CRASH_COUNT=None)
        await program.start()
    return is_reached
