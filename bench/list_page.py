"""A page of an inbox, against its SQL statement alone."""

import uvloop

from bench import fill
from bench.measure import Claim, has_rows, load, medians, options, pgbench, show
from bench.service import Service, database, service
from tocsin.db.statements import queries
from tocsin.pages import NEWEST

OWNERS = 100
SIZE = 1_000
ROWS = 15


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=5, seconds=5)
    async with service() as running:
        owners = await _filled(running)
        requests = [running.get("/notifications", user=owner) for owner in owners]
        script = _script(owners)

        async def one_round() -> dict[str, float]:
            return {
                "pgbench": await pgbench(running, script, seconds),
                "pages": await load(running, requests, seconds, status=b"200", accept=has_rows),
            }

        rates = await medians(rounds, one_round)
    what = f"a page of {ROWS} of an inbox of {SIZE:,}"
    show(Claim(what, rates["pages"], "/s", rates["pgbench"], at_least=0.4))


async def _filled(running: Service) -> range:
    async with database(running) as connection:
        owners = await fill.users(connection, OWNERS)
        await fill.history(connection, owners, SIZE)
    return owners


def _script(owners: range) -> str:
    """Return the statement of a first page, for a random user."""
    statement = queries("inbox")["pages"]
    for parameter, value in (("$1", ":owner"), ("$2", ":before"), ("$3", ":rows"), ("$4", "false")):
        statement = statement.replace(parameter, f"array[{value}]")
    sets = f"""\
\\set owner random({owners.start}, {owners.stop - 1})
\\set before {NEWEST}
\\set rows {ROWS}
"""
    return f"{sets}{statement};\n"


if __name__ == "__main__":
    uvloop.run(main())
