"""The operations port: metrics and operator endpoints on a separate port."""

from uuid import uuid4

import httpx
import pytest

from tests.support.processes import Program, data_folder
from tests.support.servers import free_port
from tests.support.service import HOUR, SECRET
from tocsin.auth.minting import mint_service

pytestmark = pytest.mark.processes


async def test_operations_port_serves_metrics_of_every_process() -> None:
    ports = free_port(), free_port()
    service_port, worker_port = ({"TOCSIN_OPERATIONS_PORT": str(port)} for port in ports)
    async with (
        data_folder() as data,
        Program(data, "serve", variables=service_port) as service,
        Program(data, "worker", variables=worker_port),
        httpx.AsyncClient(timeout=10) as http,
    ):
        host, port = service.address
        main, own, worker = (f"http://{host}:{each}" for each in (port, *ports))
        token = {"Authorization": f"Bearer {mint_service(SECRET, 'ops', ['operations'], HOUR)}"}
        for url in (own, worker):
            answer = await http.get(f"{url}/metrics")
            assert (answer.status_code, "tocsin_jobs_due" in answer.text) == (200, True)
            assert (await http.get(f"{url}/healthz")).status_code == 200
            assert (await http.get(f"{url}/readyz")).json()["status"] == "ready"
            for path in ("/notifications", "/directory/users", "/events", "/openapi.json"):
                found = await http.get(url + path)
                assert (found.status_code, found.json()["errors"][0]["code"]) == (404, "not_found")
        assert (await http.get(f"{main}/metrics", headers=token)).status_code == 404
        assert (await http.get(f"{main}/healthz")).status_code == 200
        assert (await http.get(f"{own}/operations/lanes")).status_code == 401
        assert (await http.delete(f"{own}/events/{uuid4()}")).status_code == 401
        for url in (main, own):
            assert (await http.delete(f"{url}/events/{uuid4()}", headers=token)).status_code == 404
            assert (await http.get(f"{url}/operations/lanes", headers=token)).status_code == 200
        assert (await http.get(f"{worker}/operations/lanes", headers=token)).status_code == 404
        for path in ("/console", "/console/console.js"):
            statuses = [(await http.get(url + path)).status_code for url in (own, main, worker)]
            assert statuses == [200, 404, 404], path
        await service.kill()
