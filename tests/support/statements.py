"""Every SQL statement of the package."""

from importlib.resources import files

from tocsin.db.pool import queries

STATEMENTS = [
    (path.name.removesuffix(".sql"), name)
    for path in sorted((files("tocsin.db") / "queries").iterdir(), key=str)
    for name in queries(path.name.removesuffix(".sql"))
]
