"""Settings of property tests."""

from hypothesis import settings


def at_most(examples: int) -> settings:
    """Return settings for this many examples, or as few as the profile says."""
    return settings(max_examples=min(examples, settings().max_examples), deadline=None)
