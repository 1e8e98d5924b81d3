"""The decision about one notification: what is switched off, urgent, or not known any more."""

from typing import Any

from tests.support.preferences import choosing, utc, window
from tocsin.preferences import SEND, Held, Muted


def test_what_is_switched_off_is_muted_even_where_it_is_urgent_and_says_why() -> None:
    found = choosing(kinds={"note": {"push": False, "urgent": True}}, quiet_hours=[window("00:00", "12:00")])
    now = utc("2026-03-02 08:00")
    assert found.decide("note", "push", now) == Muted("push switched off for note")
    assert found.decide("note", "web_push", now) == SEND
    assert found.decide("custom", "push", now) == Held(utc("2026-03-02 11:00"), "quiet hours until 12:00")


def test_what_is_urgent_breaks_through_by_default_or_by_choice_and_not_where_the_user_says_no() -> None:
    quiet: dict[str, Any] = {"quiet_hours": [window("00:00", "12:00")], "paused_until": "2026-03-09 00:00:00"}
    now = utc("2026-03-02 08:00")
    assert choosing(**quiet).decide("lead_escalated", "push", now) == SEND
    assert choosing(**quiet, kinds={"note": {"urgent": True}}).decide("note", "push", now) == SEND
    calm = choosing(**quiet, kinds={"lead_escalated": {"urgent": False}})
    assert isinstance(calm.decide("lead_escalated", "push", now), Held)


def test_a_kind_that_the_catalogue_has_no_longer_is_as_any_other() -> None:
    found = choosing(kinds={"of_old": {"push": False}, "note": {"push": False}})
    assert found.decide("of_old", "push", utc("2026-03-02 08:00")) == SEND
    assert "of_old" not in found.kinds


def test_a_time_zone_that_this_machine_has_no_longer_is_utc() -> None:
    assert choosing("Mars/Olympus_Mons").time_zone.key == "UTC"
