"""What `tocsin config` prints: the settings as variables."""

from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr

from tocsin.attribute_docs import docstring_of
from tocsin.db.url import masked
from tocsin.settings import PREFIX, Settings


def described(settings: Settings) -> Iterator[str]:
    """Yield a line for each setting, with its value, origin and description."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        origin = "set" if name in settings.model_fields_set else "default"
        yield f"{PREFIX}{name.upper()}={_shown(name, value)}  # {origin}; {docstring_of(Settings, name)}"


def _shown(name: str, value: Any) -> str:
    """Return a setting as text, without passwords; in a url of NATS, the user may be a token and is masked too."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None:
        return "none" if name.startswith("limit_") else ""
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    is_nats = name == "nats_url"
    return ",".join(masked(each, user_too=is_nats) for each in (text.split(",") if is_nats else [text]))
