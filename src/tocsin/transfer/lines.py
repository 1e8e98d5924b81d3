"""The lines of an import, each checked by itself: users, teams, devices and past notifications."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from pydantic_core import to_json

from tocsin.catalogue import Catalogue
from tocsin.catalogue.rendering import spoken_text
from tocsin.errors import FieldError, Malformed
from tocsin.formats import NotificationLine, TeamLine, UserLine, company_of, errors_of_company
from tocsin.ids import is_id
from tocsin.notifications import IMPORTED, body_with
from tocsin.push.device_formats import DeviceLine
from tocsin.strict_json import parse_object
from tocsin.validation import field_error, field_errors_of, under

_NO_EVENT = "\t".join([r"\N"] * 5)

Part = Literal["user", "team", "device", "notification"]

PARTS: tuple[Part, ...] = ("user", "team", "device", "notification")
"""What a line can hold, in the order of application."""


MIN_LINE_BYTES = len('{"user":{}}')
"""A shorter line holds no part, which is one error."""


class Line(NamedTuple):
    """A valid line: its user (None for a team), and its contents as JSON.

    `body` of a notification are its first five keys. The fields after `body` are only for notifications.
    """

    number: int
    part: Part
    user_id: int | None
    body: str
    happened_at: datetime | None = None
    read_at: datetime | None = None
    event_id: str | None = None
    kind: str | None = None
    data: str | None = None
    language: str | None = None
    subjects: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class LineParser:
    """Parses lines for a caller of one company, or of all (None)."""

    catalogue: Catalogue
    company_id: int | None

    def read(self, number: int, text: bytes) -> Line | list[FieldError]:
        """Return a line, or all its errors."""
        path = f"lines.{number}"
        try:
            [part, value] = _part_of(parse_object(text))
        except Malformed as error:
            return [FieldError(path, "object", f"The {path} field is not a JSON object: {error}")]
        if part is None:
            return [field_error(path, "in", f"must have exactly one key: {', '.join(PARTS)}")]
        if not isinstance(value, dict):
            return [field_error(f"{path}.{part}", "object", "must be an object")]
        try:
            made = self._made(number, part, value)
        except ValidationError as error:
            beside = [under(f"{path}.{part}.", each) for each in self._beside(part, value)]
            return [*field_errors_of(error, f"{path}.{part}"), *beside]
        return [under(f"{path}.{part}.", each) for each in made] if isinstance(made, list) else made

    def known_by(self, number: int, text: bytes) -> list[Line]:
        """Return what an invalid line stands for in the checks of other lines: the user whose id it has, if any."""
        try:
            [part, value] = _part_of(parse_object(text))
        except Malformed:
            return []
        if part != "user" or not isinstance(value, dict) or not is_id(value.get("id")):
            return []
        company_id = company_of(named if is_id(named := value.get("company_id")) else None, self.company_id)
        return [Line(number, part, value["id"], _json({"company_id": company_id}))]

    def count_errors(self, text: bytes) -> int:
        """Return the number of errors of a line, without the cost of their messages."""
        if len(text) < MIN_LINE_BYTES:
            return 1
        try:
            [part, value] = _part_of(parse_object(text))
            if part is None or not isinstance(value, dict):
                return 1
            made = self._made(0, part, value)
        except Malformed:
            return 1
        except ValidationError as error:
            # Only the members of a team can have several errors that pydantic counts as one.
            count = len(field_errors_of(error)) if value.get("users") else error.error_count()
            return count + len(self._beside(part, value))
        return len(made) if isinstance(made, list) else 0

    def _made(self, number: int, part: Part, value: Mapping[str, Any]) -> Line | list[FieldError]:
        made: Line | list[FieldError] = getattr(self, f"_{part}")(number, value)
        return made

    def _beside(self, part: Part | None, value: Mapping[str, Any]) -> list[FieldError]:
        """Return the error of the company of a line that has other errors."""
        return errors_of_company(value, self.company_id) if part in {"user", "team"} else []

    def _user(self, number: int, value: Mapping[str, Any]) -> Line | list[FieldError]:
        user = UserLine.model_validate(value)
        return self._member(Line(number, "user", user.id, ""), user)

    def _team(self, number: int, value: Mapping[str, Any]) -> Line | list[FieldError]:
        return self._member(Line(number, "team", None, ""), TeamLine.model_validate(value))

    def _member(self, line: Line, made: UserLine | TeamLine) -> Line | list[FieldError]:
        """Return the line of a user or a team, which belong to a company."""
        if field_errors := errors_of_company({"company_id": made.company_id}, self.company_id):
            return field_errors
        company_id = company_of(made.company_id, self.company_id)
        return line._replace(body=_json({**made.model_dump(), "company_id": company_id}))

    def _device(self, number: int, value: Mapping[str, Any]) -> Line:
        line = DeviceLine.model_validate(value)
        times = {name: moment and moment.isoformat() for name, moment in line.times().items()}
        return Line(number, "device", line.user_id, _json({**asdict(line.device()), **times}))

    def _notification(self, number: int, value: Mapping[str, Any]) -> Line:
        given = NotificationLine.model_validate(value)
        data = _json(given.data)
        formatted = _formatted(given.message) if given.message_formatted is None else given.message_formatted
        body = body_with(given.id, given.type, data, given.message, formatted)
        kind = self.catalogue.name_of(given.type, given.data)
        language = IMPORTED + hashlib.blake2b(body.encode(), digest_size=6).hexdigest()
        subjects = self.catalogue.subjects_of(kind, given.data)
        times = (given.created_at, given.read_at)
        return Line(number, "notification", given.user_id, body, *times, given.id, kind, data, language, subjects)


def _part_of(found: Mapping[str, Any]) -> tuple[Part | None, Any]:
    """Return the part that a line holds, None if it is not exactly one that is known, and its value."""
    for part in PARTS:
        if part in found and len(found) == 1:
            return part, found[part]
    return None, None


def copied(line: Line) -> str:
    """Return a line in the text format of COPY, which takes half as long to make as the binary one.

    The texts of a line are JSON or names, without line feeds and tabs; those of subjects may be any.
    """
    number, part, user_id, body, happened_at, read_at, event_id, kind, data, language, subjects = line
    text = f"{number}\t{part}\t{_cell(user_id)}\t{_escaped(body)}\t{_cell(happened_at)}\t{_cell(read_at)}\t"
    if event_id is None:
        return text + _NO_EVENT
    return f"{text}{event_id}\t{kind}\t{_escaped(data or '')}\t{language}\t{_array(subjects or ())}"


def _formatted(message: str) -> str:
    """Return a message as HTML: what follows ` <br> ` is the quoted text."""
    sentence, mark, quoted = message.partition(" <br> ")
    first = f"<p>{spoken_text(sentence).html}</p>"
    return f"{first}<br><p><em>{spoken_text(quoted).html}</em></p>" if mark else first


def _json(value: object) -> str:
    return to_json(value).decode()


def _cell(value: object) -> str:
    return r"\N" if value is None else str(value)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\")


def _array(texts: Sequence[str]) -> str:
    quoted = (text.replace("\\", r"\\").replace('"', r"\"") for text in texts)
    array = "{" + ",".join(f'"{text}"' for text in quoted) + "}"
    return _escaped(array).replace("\n", r"\n").replace("\r", r"\r").replace("\t", r"\t")
