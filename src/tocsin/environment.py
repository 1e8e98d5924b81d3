"""The variables of the environment and of a file `.env`. The environment takes precedence."""

import io
from collections.abc import Mapping
from pathlib import Path

from dotenv.parser import parse_stream

from tocsin.errors import Refusal
from tocsin.files import content_of

MAX_VALUE_LENGTH = 2**16
"""Maximum characters of a value."""


def variables(prefix: str, environment: Mapping[str, str], env_file: Path) -> dict[str, str]:
    """Return the variables whose names begin with `prefix`, with their values stripped.

    Raises `Refusal` for an invalid file or value. Its message contains no value.
    """
    given = {**_of_file(env_file), **environment}
    found = {name: value.strip() for name, value in given.items() if name.startswith(prefix) and value.strip()}
    for name, value in found.items():
        if len(value) > MAX_VALUE_LENGTH:
            raise Refusal(f"{_shown(name)} is not usable: it has more than {MAX_VALUE_LENGTH} characters.")
        if not _is_text(name + value):
            raise Refusal(f"{_shown(name)} is not usable: it has control characters, or is not UTF-8.")
    return found


def _of_file(path: Path) -> dict[str, str]:
    """Return the variables of a file. `$` is not expanded, as in systemd."""
    found = {}
    for line in parse_stream(io.StringIO(_text_of(path))):
        if line.key is not None and line.value is not None:
            found[line.key] = line.value
        elif line.error or line.key is not None:
            raise Refusal(f"Line {_number_of(line.original.string, line.original.line)} of {path} is not NAME=value.")
    return found


def _text_of(path: Path) -> str:
    try:
        content = content_of(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Refusal(
            f"The file {path.absolute()} cannot be read: {error.strerror}; open it to this user, or start in another"
            " folder."
        ) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise Refusal(f"The file {path.absolute()} is not UTF-8 at line {number}; save it as UTF-8.") from None


def _number_of(text: str, first: int) -> int:
    """Return the number of the first line of a part of the file that is not blank."""
    return first + text[: len(text) - len(text.lstrip())].count("\n")


def _is_text(text: str) -> bool:
    return text.isprintable() or (text.replace("\t", " ").isprintable() and "\0" not in text)


def _shown(name: str) -> str:
    return name[:100].encode("ascii", "backslashreplace").decode()
