"""Named statements: the files of `queries` and the fragments that they share."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

_COMMENT = re.compile(r"\A(?:--[^\n]*\n)+")
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_INCLUDE = re.compile(r"^-- include: (\w+)(?:\((.*)\))?\n", re.MULTILINE)


@cache
def queries(module: str) -> Mapping[str, str]:
    """Return the statements of `queries/<module>.sql` by their names (`-- name: page`).

    `-- include: spoken(languages=$4)` stands for `fragments/spoken.sql`, which several statements share, with `$4` for
    `@languages`. A fragment can include others.
    """
    _, *parts = _NAME.split(_INCLUDE.sub(_fragment, _text_of("queries", module)))
    # Leading comments are removed, because tracing names a statement by its first word.
    return dict(zip(parts[::2], (_COMMENT.sub("", part).strip() for part in parts[1::2]), strict=True))


def _fragment(include: re.Match[str]) -> str:
    text = _text_of("fragments", include[1])
    for pair in include[2].split(", ") if include[2] else ():
        name, value = pair.split("=", 1)
        text = text.replace(f"@{name}", value)
    return _INCLUDE.sub(_fragment, text)


def _text_of(folder: str, name: str) -> str:
    return (files("tocsin.db") / folder / f"{name}.sql").read_text("utf-8")
