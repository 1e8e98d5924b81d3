"""The operator's preference policy, in a file: defaults of preferences, and which of them users cannot change."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from tocsin.catalogue.entries import advice
from tocsin.errors import FieldError, Refusal
from tocsin.files import setting_tables
from tocsin.quiet_hours import FIELDS, windows_of
from tocsin.validation import field_error, field_errors_of


class _Table(BaseModel, strict=True, extra="forbid", frozen=True):
    """A table in a file."""


class Defaults(_Table):
    """The defaults of users; the windows are validated separately."""

    quiet_hours: Any = []


class LockedSettings(_Table):
    """Which preferences besides those of kinds are locked."""

    quiet_hours: bool = False
    paused_until: bool = False
    time_zone: bool = False


class OfKind(_Table):
    """The defaults of one kind, and which of its preferences are locked."""

    push: bool | None = None
    web_push: bool | None = None
    urgent: bool | None = None
    locked: list[Literal["push", "web_push", "urgent"]] = []

    def defaults(self) -> dict[str, bool]:
        """Return the given defaults, without those left to the catalogue."""
        return self.model_dump(exclude={"locked"}, exclude_none=True)


class Rules(_Table):
    """The contents of the file, as described in `docs/guides/preferences.md`."""

    defaults: Defaults = Defaults()
    locked: LockedSettings = LockedSettings()
    kinds: dict[str, OfKind] = {}

    def of(self, kind: str) -> OfKind:
        """Return the entry of a kind."""
        return self.kinds.get(kind, _NOTHING)


_NOTHING = OfKind()
NO_RULES = Rules()


def read_rules(path: Path, kinds: Collection[str]) -> Rules:
    """Read the operator's file. Raises `Refusal` with all errors, one per line."""
    given = setting_tables(path, "The file of preferences")
    field_errors = [*_errors_of_windows(given.get("defaults")), *_errors_of_names(given.get("kinds"), kinds)]
    try:
        rules = Rules.model_validate(given)
    except ValidationError as error:
        field_errors = [*field_errors_of(error), *field_errors]
    if field_errors:
        raise Refusal("\n".join(f"{path}: {found.message}" for found in field_errors))
    return rules


def _errors_of_windows(defaults: Any) -> list[FieldError]:
    field_errors: list[FieldError] = []
    if isinstance(defaults, Mapping) and "quiet_hours" in defaults:
        windows_of(defaults["quiet_hours"], "defaults.quiet_hours", field_errors)
        field_errors += _unknown_fields(defaults["quiet_hours"])
    return field_errors


def _unknown_fields(windows: Any) -> Iterator[FieldError]:
    for position, window in enumerate(windows if isinstance(windows, list) else ()):
        for name in window if isinstance(window, Mapping) else ():
            if name not in FIELDS:
                yield field_error(f"defaults.quiet_hours.{position}.{name}", "prohibited", "is not allowed here")


def _errors_of_names(given: Any, kinds: Collection[str]) -> Iterator[FieldError]:
    for name in given if isinstance(given, Mapping) else ():
        if name not in kinds:
            yield field_error(f"kinds.{name}", "unknown", f"is not a known kind; {advice(name, kinds)}")
