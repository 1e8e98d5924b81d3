"""The files of the catalogue, read from a list of folders: later files override earlier ones, key by key.

`kinds*.toml` holds kinds in English, shapes, groups, phrases and labels; a language's file (`da.toml`, `pt-BR.toml`)
titles and sentences by kind, groups, phrases and labels. All errors are collected, so that one start reports them all.
"""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tocsin.errors import Refusal
from tocsin.files import content_of

ENGLISH = "en"

NAMES = ("groups", "phrases")
"""The tables of single texts: names of groups of kinds, and fixed phrases."""

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_DUE = {"string_type": "a text in quotes", "dict_type": "a table", "list_type": "a list", "bool_type": "true or false"}

_Text = Annotated[str, Field(min_length=1)]
_Model = TypeVar("_Model", bound=BaseModel)


class _Entry(BaseModel, strict=True, extra="forbid", frozen=True):
    """A table in a file."""


class SampleEntry(_Entry):
    """A sample event of a kind."""

    data: dict[str, Any] = {}
    params: dict[str, Any] = {}


class KindEntry(_Entry):
    """A kind in a file. The head of `kinds.toml` describes each key."""

    title: _Text
    says: _Text
    group: _Text
    data: dict[str, str] = {}
    params: dict[str, str] = {}
    quotes: str = ""
    instead: dict[str, str] = {}
    as_many: dict[str, str] = {}
    subjects: dict[str, str] = {}
    thread: str = ""
    sender: str = ""
    preset: Literal["quiet", "normal", "urgent"] = "normal"
    category: str = ""
    channel: str = ""
    link: str = ""
    sample: SampleEntry | None = None


class ShapeEntry(_Entry):
    """A shape in a file: an object in the data of kinds."""

    fields: dict[str, str]
    spoken: str = ""
    coded: dict[str, Literal["readable", "as it is"]] = {}
    subjects: dict[str, str] = {}
    personal: list[str] = []
    directory: bool = False


class WordingEntry(_Entry):
    """The texts of a kind in one language; missing texts come from its fallback language."""

    title: _Text | None = None
    says: _Text | None = None


class Findings:
    """The errors of the files, one per line: `file: [entry] what is wrong; what to write instead`."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, file: Path, entry: str, wrong: str, instead: str) -> None:
        """Record an error; an empty `entry` is the file itself."""
        self._lines.append(f"{file}: {f'[{entry}] ' if entry else ''}{wrong}; {instead}.")

    def refuse(self) -> None:
        """Raise `Refusal` with all recorded errors, if there are any."""
        if self._lines:
            raise Refusal("\n".join(self._lines))


@dataclass(slots=True)
class Raw:
    """One entry as read: its keys merged over all files, and the file of each key."""

    name: str
    findings: Findings
    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    last: Path = Path()

    def take(self, values: Mapping[str, Any], file: Path) -> None:
        """Override keys by those of a later file."""
        self.values.update(values)
        self.files.update(dict.fromkeys(values, file))
        self.last = file

    def field_error(self, key: str, wrong: str, instead: str) -> None:
        """Record an error, in the file of the key."""
        self.findings.add(self.files.get(key, self.last), self.name, wrong, instead)


@dataclass(slots=True)
class Raws:
    """All entries of all files: wordings by language and kind, labels by language and `shape.field`.

    `names` has, by language, the tables `groups` and `phrases`. `whole` is False if a file could not be read.
    """

    kinds: dict[str, Raw] = field(default_factory=dict)
    shapes: dict[str, Raw] = field(default_factory=dict)
    wordings: dict[str, dict[str, Raw]] = field(default_factory=dict)
    labels: dict[str, dict[str, Raw]] = field(default_factory=dict)
    names: dict[str, dict[str, Raw]] = field(default_factory=dict)
    whole: bool = True


def read(folders: Iterable[Path], findings: Findings) -> Raws:
    """Read the files of all folders, in the order of folders and names; an invalid file is left out."""
    raws = Raws()
    for folder in folders:
        if not folder.is_dir():
            findings.add(folder, "", "is not a folder", "create it, or name another one")
            continue
        for file in sorted(folder.glob("*.toml")):
            _take_file(raws, file, findings)
    return raws


def parse(raw: Raw, model: type[_Model]) -> _Model | None:
    """Return the entry as its model, or None after recording all its errors."""
    try:
        return model.model_validate(raw.values)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            raw.field_error(str(found["loc"][0]), *_in_words(found, list(model.model_fields)))
        return None


def advice(word: str, choices: Collection[str]) -> str:
    """Return what to write instead of an unknown word: the nearest choice, else all of them."""
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"write `{near[0]}`"
    return f"write one of {', '.join(f'`{choice}`' for choice in choices)}" if choices else "leave it out"


def _take_file(raws: Raws, file: Path, findings: Findings) -> None:
    is_kinds = file.stem.startswith("kinds")
    if not is_kinds and not _LANGUAGE.fullmatch(file.stem):
        findings.add(file, "", "is neither kinds nor a language", "name it such as `kinds-of-ours.toml` or `da.toml`")
        return
    tables = _tables_of(file, findings)
    if tables is None:
        raws.whole = False
        return
    language = ENGLISH if is_kinds else _canonical(file.stem)
    wordings, labels = raws.wordings.setdefault(language, {}), raws.labels.setdefault(language, {})
    if is_kinds:
        _take(raws.shapes, tables.pop("shapes", {}), file, findings, "shapes.")
    names = {name: tables.pop(name) for name in NAMES if name in tables}
    _take(raws.names.setdefault(language, {}), names, file, findings)
    for shape, fields in _only_tables(tables.pop("labels", {}), file, findings, "labels."):
        _take(labels, fields, file, findings, f"labels.{shape}.")
    _take(raws.kinds if is_kinds else wordings, tables, file, findings)


def _canonical(language: str) -> str:
    """Return a language as it is usually written: `zh-hant-tw` is `zh-Hant-TW`."""
    first, *more = language.lower().split("-")
    cases = {2: str.upper, 4: str.title}
    return "-".join([first, *(cases.get(len(part), str)(part) for part in more)])


def _tables_of(file: Path, findings: Findings) -> dict[str, Any] | None:
    try:
        text = content_of(file).decode("utf-8-sig")
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = str(error).replace("end of document", f"line {len(text.rstrip().splitlines())}, the last one")
        findings.add(file, "", f"is not TOML: {place}", "correct that line")
    except (UnicodeDecodeError, OSError) as error:
        findings.add(file, "", f"cannot be read: {error}", "save it as UTF-8 and make it readable")
    return None


def _take(into: dict[str, Raw], tables: Any, file: Path, findings: Findings, path: str = "") -> None:
    for name, values in _only_tables(tables, file, findings, path):
        key = f"{path}{name}".partition(".")[2] if path else name
        into.setdefault(key, Raw(path + name, findings)).take(values, file)


def _only_tables(tables: Any, file: Path, findings: Findings, path: str) -> Iterable[tuple[str, dict[str, Any]]]:
    if not isinstance(tables, dict):
        findings.add(file, path.rstrip("."), "is not a table", f"write entries such as `[{path}name]`")
        return
    for name, values in tables.items():
        if isinstance(values, dict):
            yield name, values
        else:
            findings.add(file, path + name, "is not a table", f"write its keys under a line `[{path}{name}]`")


def _in_words(found: Any, keys: list[str]) -> tuple[str, str]:
    path = ".".join(map(str, found["loc"]))
    if found["type"] == "missing":
        return f"`{path}` is missing", f"write `{path} = ...`"
    if found["type"] == "extra_forbidden":
        return f"`{path}` is not one of its keys", advice(path, keys)
    if found["type"] == "string_too_short":
        return f"`{path}` is empty", "write a text"
    due = found["ctx"]["expected"] if found["type"] == "literal_error" else _DUE.get(found["type"], "a table")
    return f"`{path}` is {found['input']!r}", f"write {due}"
