"""The command `tocsin` with days of `BENCH_DAY` seconds for all that retention keeps for days.

So that an hour shows rows that come and go, whose periods are a day at least.
"""

import os
import re

from tocsin.db import statements

DAY = float(os.environ["BENCH_DAY"])

_DAYS = re.compile(r"make_interval\(days => ([^)]+)\)")
_HOURS = re.compile(r"make_interval\(hours => 24\)|interval '24 hours'")
_read = statements.queries


def _queries(module: str) -> dict[str, str]:
    return {name: _shortened(statement) for name, statement in _read(module).items()}


def _shortened(statement: str) -> str:
    return _HOURS.sub(f"make_interval(secs => {DAY})", _DAYS.sub(rf"make_interval(secs => \1 * {DAY})", statement))


statements.queries = _queries  # type: ignore[assignment] # before the modules that read their statements when imported

from tocsin import retention  # noqa: E402
from tocsin.cli.commands import main  # noqa: E402

retention.INTERVAL = DAY

if __name__ == "__main__":
    main()
