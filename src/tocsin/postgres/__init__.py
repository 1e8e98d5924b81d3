"""The embedded PostgreSQL server: its binaries, its data folder and its process."""
