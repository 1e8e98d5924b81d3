"""The same work on other systems for notifications."""
