"""The demo: sample users, their pages, and events."""
