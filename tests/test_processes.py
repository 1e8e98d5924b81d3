"""`tocsin serve --processes N`: several processes are one service."""

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.events import custom
from tests.support.processes import LONGEST_START, TOCSIN, Program, children_of, data_folder, postgres_of
from tests.support.servers import free_port
from tests.support.service import DAY, SECRET, standing_token
from tests.support.waiting import LONGEST_WAIT, until
from tocsin import processes, siblings
from tocsin.auth.minting import mint_service
from tocsin.cli.arguments import parse_processes
from tocsin.errors import Refusal
from tocsin.siblings import START, Link, OfAll, Samples, Siblings, decoded, encoded, samples_of

SCOPES = ["events:write", "directory:write", "operations"]
BEARER = {"Authorization": f"Bearer {mint_service(SECRET, 'crm', SCOPES, DAY)}"}


async def ask(service: Program, method: str, path: str, **more: object) -> httpx.Response:
    """Send a request on a connection of its own, which the kernel gives to any of the processes."""
    url = service.greeting["url"] + path
    async with httpx.AsyncClient(headers=BEARER, timeout=LONGEST_WAIT) as http:
        return await http.request(method, url, **more)  # type: ignore[arg-type]


async def total(service: Program, name: str, **labels: str) -> float:
    """Return the sum of the samples of a metric with these labels."""
    text = (await ask(service, "GET", "/metrics")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def posted(service: Program) -> float:
    return await total(service, "tocsin_http_requests_total", route="/events", status="202")


@contextlib.asynccontextmanager
async def two_processes(command: Sequence[str | Path] = (TOCSIN,)) -> AsyncIterator[Program]:
    async with data_folder() as data, Program(data, "serve", "--processes", "2", command=command) as service:
        answer = await ask(
            service, "PUT", "/directory/users/1", json={"first_name": "John", "last_name": "Doe", "company_id": 1}
        )
        assert answer.status_code == 204, answer.text
        yield service


async def post(service: Program, count: int) -> None:
    answers = await asyncio.gather(*(ask(service, "POST", "/events", json=custom(1)) for _ in range(count)))
    assert {answer.status_code for answer in answers} == {202}


async def has_unread(service: Program, count: int) -> bool:
    bearer = {"Authorization": f"Bearer {standing_token(1)}"}
    page = await ask(service, "GET", "/notifications", headers=bearer)
    return bool(page.json()["pagination"]["unread"] == count)


@pytest.mark.processes
async def test_several_processes_are_one_service() -> None:
    async with two_processes() as service:
        children = children_of(service)
        assert len(children) == 2
        await post(service, 40)
        await until(lambda: has_unread(service, 40))
        assert [await posted(service) for _ in range(8)] == [40] * 8, "each process shows the requests of all"
        assert len({await total(service, "process_start_time_seconds") for _ in range(8)}) == 1

        os.kill(children[0], signal.SIGKILL)
        await until(lambda: len(set(children_of(service)) - set(children)) == 1)
        await until(lambda: service.log().count('"Started server process') == 3)
        assert await posted(service) >= 39, "only what was never shown may be missing"
        assert "process exited; restarting it" in service.log()
        await post(service, 20)
        assert await posted(service) >= 59

        service.signal(signal.SIGHUP)
        await until(lambda: service.log().count('"keys reloaded"') == 2)
        await service.stop()
        assert service.status == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.processes
async def test_a_process_that_hangs_does_not_hide_the_metrics_of_all() -> None:
    async with two_processes() as service:
        await post(service, 20)
        assert await posted(service) == 20
        hanging, working = children_of(service)
        os.kill(hanging, signal.SIGSTOP)
        try:
            seen = set()
            for _ in range(20):
                with contextlib.suppress(httpx.TimeoutException):
                    async with httpx.AsyncClient(headers=BEARER, timeout=4) as http:
                        text = (await http.get(service.greeting["url"] + "/metrics")).text
                    seen |= set(re.findall(r'tocsin_http_requests_total\{.*"/events",status="202"\} (\S+)', text))
                    break
            assert seen == {"20.0"}
            assert working
        finally:
            os.kill(hanging, signal.SIGCONT)
        await service.stop()
        assert service.status == 0


@pytest.mark.processes
async def test_a_process_that_hangs_is_restarted_and_others_go_on() -> None:
    checking_often = (
        "from tocsin import processes; processes.CHECK_INTERVAL, processes.STARTING_CHECKS = 0.5, 240;"
        " from tocsin.cli.commands import main; main()"
    )
    async with two_processes((sys.executable, "-c", checking_often)) as service:
        hanging, working = children_of(service)
        os.kill(hanging, signal.SIGSTOP)
        await until(lambda: not Path(f"/proc/{hanging}").exists())
        await until(lambda: service.log().count('"Started server process') == 3)
        assert service.log().count("process does not answer; killing it") == 1
        assert working in children_of(service)
        await post(service, 20)
        await service.stop()
        assert service.status == 0


async def test_a_process_that_hangs_before_it_is_ready_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "CHECK_INTERVAL", 0.5)
    monkeypatch.setattr(processes, "STARTING_CHECKS", 4)
    monkeypatch.setattr(processes.Processes, "_handle_signals", lambda _: None)
    hangs_once = (
        "import pathlib, socket, sys, time\n"
        f"place = pathlib.Path({str(tmp_path / 'started')!r})\n"
        "is_first = not place.exists()\n"
        "place.touch()\n"
        "link = socket.socket(fileno=int(sys.argv[-1]))\n"
        "is_first or link.send(b'{\"ready\": true}\\n')\n"
        "time.sleep(60)"
    )
    service = processes.Processes(1, (sys.executable, "-c", hangs_once), {})
    said = structlog.testing.CapturingLogger()  # of this module alone: others may log at the same time
    monkeypatch.setattr(processes, "log", said)
    running = asyncio.create_task(service.run("http://here"))
    await until(lambda: running.done() or any(call.args == ("serving",) for call in said.calls))
    service._stop()  # noqa: SLF001 - as a signal does
    await running
    *events, last = [call.args[0] for call in said.calls]
    assert last == "serving"
    assert events[:2] == ["process did not get ready; killing it", "process exited; restarting it"]
    assert events == events[:2] * (len(events) // 2), "a busy machine may take too long to start the next one, too"


@pytest.mark.processes
async def test_all_processes_end_with_the_first_one() -> None:
    async with two_processes() as service:
        children = children_of(service)
        await service.kill()
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
        await until(lambda: not postgres_of(service.data))
        with socket.socket() as free:
            free.bind(service.address)


async def test_a_process_that_cannot_be_started_for_a_moment_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    starts, start = list[int](), asyncio.create_subprocess_exec

    async def start_sometimes(*command: str, **more: Any) -> asyncio.subprocess.Process:
        starts.append(1)
        if len(starts) == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return await start(*command, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_sometimes)
    monkeypatch.setattr(processes, "FIRST_DELAY", 0)
    monkeypatch.setattr(processes.Processes, "_handle_signals", lambda _: None)
    is_ready = "import socket, sys; socket.socket(fileno=int(sys.argv[-1])).send(b'{\"ready\": true}\\n')"
    service = processes.Processes(1, (sys.executable, "-c", is_ready), {})
    running = asyncio.create_task(service.run(""))
    await until(lambda: len(starts) > 2 or running.done())
    assert not running.done()
    service._stop()  # noqa: SLF001 - as a signal does
    await running


@pytest.mark.processes
async def test_a_port_is_not_shared_with_another_service() -> None:
    async with two_processes() as service, data_folder() as data:
        other = Program(data, "serve", "--processes", "2", variables={"TOCSIN_PORT": str(service.address[1])})
        said = await other.output()
        assert other.status == 1
        assert f"Cannot listen on 127.0.0.1:{service.address[1]}: Address already in use" in said


@pytest.mark.processes
async def test_of_two_services_started_together_on_a_port_one_ends() -> None:
    port = {"TOCSIN_PORT": str(free_port())}
    async with data_folder() as data, data_folder() as other_data:
        services = [Program(folder, "serve", variables=port) for folder in (data, other_data)]
        outputs = [asyncio.create_task(service.output()) for service in services]
        try:
            done, _ = await asyncio.wait(outputs, timeout=LONGEST_START, return_when=asyncio.FIRST_COMPLETED)
            assert [f"Cannot listen on 127.0.0.1:{port['TOCSIN_PORT']}" in await each for each in done] == [True]
            assert sorted(service.alive for service in services) == [False, True]
        finally:
            for service in services:
                await service.kill()
            await asyncio.gather(*outputs)


@pytest.mark.processes
async def test_a_start_that_fails_says_why_once(tmp_path: Path) -> None:
    async with data_folder() as data:
        missing = {"TOCSIN_PREFERENCES_FILE": str(tmp_path / "missing.toml")}
        service = Program(data, "serve", "--processes", "3", variables=missing)
        said = await service.output()
        assert service.status == 1
        assert said.count("missing.toml") == 1
        assert not postgres_of(data)


@pytest.mark.parametrize("text", ["0", "-1", "65", "two", "", "1.5", "٣", "9" * 5000])
def test_a_wrong_number_of_processes_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="is not a number of processes: use 1 to 64, or auto"):
        parse_processes(text)


def test_auto_is_a_process_for_each_processor_that_may_be_used() -> None:
    assert parse_processes("auto") == len(os.sched_getaffinity(0))


def registry(posts: int, streams: int, waiting: int, seconds: float) -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("process_start_time_seconds", "Start", registry=made).set(seconds)
    Counter("tocsin_posts", "Posts", ["status"], registry=made).labels("202").inc(posts)
    Gauge("tocsin_streams", "Streams", registry=made).set(streams)
    Gauge("tocsin_jobs_due", "What waits in the database", registry=made).set(waiting)
    Histogram("tocsin_seconds", "Seconds", registry=made, buckets=(1, 2)).observe(seconds)
    return made


def test_counters_are_added_up_but_not_what_is_the_same_for_all() -> None:
    others = {}
    for samples in samples_of(registry(5, 3, 7, 1.5)):
        others.update(decoded(encoded(samples)))
    others["tocsin_posts", "tocsin_posts_total", (("status", "429"),)] = 2.0
    others[START] = 1_000.0
    text = generate_latest(OfAll(registry(1, 1, 9, 0.5), others)).decode()
    assert 'tocsin_posts_total{status="202"} 6.0' in text
    assert 'tocsin_posts_total{status="429"} 2.0' in text, "a series that only another process has"
    assert "tocsin_streams 4.0" in text
    assert "process_start_time_seconds 1000.0" in text, "one for all"
    assert "tocsin_jobs_due 9.0" in text
    assert 'tocsin_seconds_bucket{le="1.0"} 1.0' in text
    assert 'tocsin_seconds_bucket{le="+Inf"} 2.0' in text
    assert "tocsin_seconds_sum 2.0" in text


async def test_scrape_that_gives_up_takes_no_answer_from_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    end, its_end = socket.socketpair()
    others = Siblings(its_end.detach())
    running = asyncio.create_task(others.run(lambda: ({}, {})))
    link = await Link.of(end)
    others.ready()
    assert await link.receive() == {"ready": True}

    async def scrape(seconds: float) -> asyncio.Task[Samples]:
        monkeypatch.setattr(siblings, "TIMEOUT", seconds)
        task = asyncio.create_task(others.others(({}, {})))
        await asyncio.sleep(0)
        return task

    first, second = await scrape(0.05), await scrape(0.3)
    assert await first == {}
    third = await scrape(10)
    assert await second == {}
    link.send(sum=encoded({START: 1.0}))
    assert await third == {START: 1.0}
    link.close()
    await running
