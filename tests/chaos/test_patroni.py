"""A primary that is lost under Patroni: the standby takes over by itself, and nothing that was accepted is lost."""

import pytest

from tests.support.chaos import ChaosRun, scenario
from tests.support.clusters import cluster_on
from tests.support.database import value
from tests.support.patroni import IS_INSTALLED, patroni
from tests.support.waiting import until


@pytest.mark.skipif(not IS_INSTALLED, reason="there is no patroni: apt-get install patroni etcd-server postgresql")
@scenario("patroni", "primary and its Patroni killed, synchronous standby promoted by Patroni", long=True)
async def test_accepted_events_survive_a_fail_over_by_patroni(run: ChaosRun) -> None:
    async with patroni() as servers:
        await value(servers.url("postgres"), "create database tocsin")
        async with cluster_on(run, servers.url("tocsin")) as cluster, run.failure():
            primary = await servers.primary()
            assert primary
            primary.kill()
            await run.load.refused(10)
            await cluster.shows("The database cannot be")
            await until(servers.primary)
