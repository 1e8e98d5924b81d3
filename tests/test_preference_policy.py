"""The decision about one notification: disabled, urgent, and unknown kinds."""

from typing import Any

from tests.support.preferences import choosing, utc, window
from tocsin.preferences import SEND, Held, Muted


def test_disabled_kind_is_muted_with_reason_even_if_urgent() -> None:
    found = choosing(kinds={"note": {"push": False, "urgent": True}}, quiet_hours=[window("00:00", "12:00")])
    now = utc("2026-03-02 08:00")
    assert found.decide("note", "push", now) == Muted("push switched off for note")
    assert found.decide("note", "web_push", now) == SEND
    assert found.decide("custom", "push", now) == Held(utc("2026-03-02 11:00"), "quiet hours until 12:00")


def test_urgent_kind_ignores_quiet_hours_unless_the_user_declines() -> None:
    quiet: dict[str, Any] = {"quiet_hours": [window("00:00", "12:00")], "paused_until": "2026-03-09 00:00:00"}
    now = utc("2026-03-02 08:00")
    assert choosing(**quiet).decide("lead_escalated", "push", now) == SEND
    assert choosing(**quiet, kinds={"note": {"urgent": True}}).decide("note", "push", now) == SEND
    calm = choosing(**quiet, kinds={"lead_escalated": {"urgent": False}})
    assert isinstance(calm.decide("lead_escalated", "push", now), Held)


def test_removed_kind_follows_default_preferences() -> None:
    found = choosing(kinds={"of_old": {"push": False}, "note": {"push": False}})
    assert found.decide("of_old", "push", utc("2026-03-02 08:00")) == SEND
    assert "of_old" not in found.kinds


def test_unknown_time_zone_falls_back_to_utc() -> None:
    assert choosing("Mars/Olympus_Mons").time_zone.key == "UTC"
