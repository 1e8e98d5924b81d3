"""Tocsin: the notification service that a business application plugs in."""
