"""Whether a process of several cells is ready, and what waits in them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tocsin.api.cell_lookups import ask_all, unavailable
from tocsin.api.state import AppState, Watched
from tocsin.cells import Cells
from tocsin.errors import Unavailable
from tocsin.readiness import Readiness


class ReadinessOfCells(Readiness):
    """Ready while one cell is: its users are served. What is wrong with the others is among the problems."""

    def __init__(self, cells: Cells, states: Mapping[str, AppState | Watched]) -> None:
        """Take the names of all cells, and what is known of those that are open, which changes."""
        self._cells, self._states = cells, states

    async def answer(self) -> dict[str, Any]:
        """Return what waits in all cells that work, together, and the problems of all.

        Raises `Unavailable` if none works.
        """
        found = await ask_all(self._states, lambda each: each.readiness.answer())
        ready = {name: answer for name, answer in found.items() if isinstance(answer, dict)}
        failed = [error for error in found.values() if isinstance(error, BaseException)]
        for error in failed:
            if not isinstance(error, Unavailable) or not ready:
                raise error
        if not ready:
            raise unavailable("No cell is available.")
        away = dict.fromkeys(self._cells.by_name.keys() - found.keys(), "it is not available") | {
            name: str(error).partition(". ")[0].removesuffix(".")
            for name, error in found.items()
            if isinstance(error, BaseException)
        }
        problems = [*_problems({name: answer["problems"] for name, answer in ready.items()})]
        answers = list(ready.values())
        waiting = {
            "queue": {name: _combined([each["queue"][name] for each in answers]) for name in answers[0]["queue"]},
            "pushes": _combined([each["pushes"] for each in answers]),
        }
        problems += [f"cell {name}: {reason}" for name, reason in away.items()]
        return answers[0] | waiting | {"problems": sorted(problems)}


def _problems(found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the problems of cells with their names; one that several have, as those of the process, once."""
    by_problem: dict[str, list[str]] = {}
    for name, problems in found.items():
        for problem in problems:
            by_problem.setdefault(problem, []).append(name)
    for problem, names in by_problem.items():
        yield f"{'cells' if len(names) > 1 else 'cell'} {' and '.join(names)}: {problem}"


def _combined(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what waits in several cells together."""
    combine: Mapping[str, Callable[[Iterable[Any]], Any]] = {"due": sum, "oldest": max, "stalled": any}
    return {name: combine[name](each[name] for each in found) for name in found[0]}
