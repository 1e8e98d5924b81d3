"""Pushes to phones and browsers: what is due, who sends it, and what came of it."""
