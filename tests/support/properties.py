"""The number of examples of property tests: few in every run, many with `make soak`."""

from hypothesis import settings

SOAK = settings.get_current_profile_name() == "soak"
CHAOS = settings.get_current_profile_name() == "chaos"


def at_most(examples: int, soak: int) -> settings:
    """Return settings for this many examples, or as few as the profile says."""
    return settings(max_examples=soak if SOAK else min(examples, settings().max_examples), deadline=None)


def rounds(some: int, soak: int) -> int:
    """Return the number of kills."""
    return soak if SOAK else some
