"""Every SQL statement about tables of the service."""

from importlib.resources import files

from tocsin.db.statements import queries

STATEMENTS = [
    (path.name.removesuffix(".sql"), name)
    for path in sorted((files("tocsin.db") / "queries").iterdir(), key=str)
    if path.name != "relay.sql"
    for name in queries(path.name.removesuffix(".sql"))
]
