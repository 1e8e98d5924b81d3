"""Tocsin: the notification service that a business application plugs in."""

from importlib.metadata import version

__version__ = version("tocsin")
