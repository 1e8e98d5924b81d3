"""What phones and browsers show: banners that replace each other and are cleared, and a badge."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tocsin_phones.exchange import Banner, Change

MAX_BANNERS = 1000
"""Maximum banners on one device; the oldest is removed first."""


@dataclass(slots=True)
class Screen:
    """What one device shows, the newest banner last."""

    badge: int | None = None
    banners: dict[str, Banner] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        """Clear first, then show."""
        if change.badge is not None:
            self.badge = change.badge
        if change.clear == "all":
            self.banners.clear()
        elif change.clear:
            gone = set(change.clear)
            self.banners = {key: one for key, one in self.banners.items() if not {key, one.id} & gone}
        if change.banner is not None:
            self.banners.pop(change.banner.key, None)
            self.banners[change.banner.key] = change.banner
            if len(self.banners) > MAX_BANNERS:
                del self.banners[next(iter(self.banners))]

    def as_json(self) -> dict[str, Any]:
        """Return the badge and the banners, newest first, in the format of the control port."""
        return {"badge": self.badge, "banners": [banner_json(one) for one in reversed(self.banners.values())]}


def banner_json(banner: Banner) -> dict[str, Any]:
    """Return a banner in the format of the control port."""
    return {
        "key": banner.key,
        "id": banner.id,
        "title": banner.title,
        "body": banner.body,
        "thread": banner.thread,
        "push": banner.push,
        "at": moment(banner.at),
    }


def moment(seconds: float) -> str:
    """Format UNIX seconds for the control port."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ids_of(clear: Any) -> tuple[str, ...]:
    """Return the ids in a list of a payload; any other value clears nothing."""
    return tuple(one for one in clear if isinstance(one, str)) if isinstance(clear, list) else ()


def badge_of(value: Any) -> int | None:
    """Return the badge of a payload, a number or a string of digits; None without one."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def part(value: Any, *names: str) -> Any:
    """Return the value under `names` in nested objects; None if one is missing or not an object."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def text(value: Any, *names: str) -> str:
    """Return the string under `names`, or an empty one."""
    found = part(value, *names)
    return found if isinstance(found, str) else ""
