"""Tocsin, killed at a chosen statement: `python -m tests.support.crash_points serve`.

A point is a statement that changes state, or a commit, and the moment before or after it. The process ends there by
SIGKILL, at the `CRASH_COUNT`th time. With `CRASH_TRACE`, the points that it passes are written to that file instead.
"""

import os
import re
import signal
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from asyncpg import Connection

from tocsin.cli.commands import main
from tocsin.db.connections import Prepared
from tocsin.db.statements import queries

CHANGES = re.compile(r"\b(?:insert into|update|delete from)\b", re.IGNORECASE)
MODULES = sorted(path.name.removesuffix(".sql") for path in (files("tocsin.db") / "queries").iterdir())
NAMES = {
    text: f"{module}.{name}" for module in MODULES for name, text in queries(module).items() if CHANGES.search(text)
} | {"COMMIT;": "commit"}
"""The names of statements by their texts."""


class Hook:
    """Sees each named statement of all connections, before and after."""

    def __init__(self, point: str, count: int, trace: str) -> None:
        self._point, self._left, self._trace = point, count, trace
        self._seen: set[str] = set()

    def watch(self, method: str, kind: type[Any] = Connection) -> None:
        """Watch a method of connections, or of prepared statements, that runs a statement."""
        run: Callable[..., Awaitable[Any]] = getattr(kind, method)

        async def watched(runner: Any, *arguments: Any, **more: Any) -> Any:
            name = NAMES.get(runner.get_query() if isinstance(runner, Prepared) else arguments[0])
            self._pass("before", name)
            result = await run(runner, *arguments, **more)
            self._pass("after", name)
            return result

        setattr(kind, method, watched)

    def _pass(self, moment: str, name: str | None) -> None:
        point = f"{moment} {name}"
        if name and self._trace and point not in self._seen:
            self._seen.add(point)
            with Path(self._trace).open("a", encoding="utf-8") as file:
                file.write(f"{point}\n")
        if point == self._point:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    hook = Hook(
        os.environ.pop("CRASH_AT", ""), int(os.environ.pop("CRASH_COUNT", "1")), os.environ.pop("CRASH_TRACE", "")
    )
    for each in ("execute", "fetch", "fetchrow", "fetchval"):
        hook.watch(each)
    main()
