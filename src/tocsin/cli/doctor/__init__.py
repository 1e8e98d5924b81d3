"""`tocsin doctor`: checks what the service depends on, and changes nothing unless it is asked to repair."""

from pathlib import Path

from tocsin.api.connections import file_limits
from tocsin.cells import of_cell
from tocsin.cli.doctor.configuration import (
    check_bus,
    check_catalogue,
    check_jwks,
    check_keys,
    check_push,
    check_secret_files,
)
from tocsin.cli.doctor.database import check_database, check_replica
from tocsin.cli.doctor.deep import check_deeply
from tocsin.cli.doctor.finding import Finding
from tocsin.cli.doctor.machine import (
    check_data_folder,
    check_env_file,
    check_file_limit,
    check_free_space,
    check_network,
    check_port,
)
from tocsin.cli.doctor.sign_in import check_sign_in
from tocsin.errors import Refusal
from tocsin.invariants import Progress, unreported
from tocsin.settings import read_settings

__all__ = ["Finding", "examine"]


async def examine(
    file: Path = Path(".env"),
    *,
    deep: bool = False,
    repair: bool = False,
    progress: Progress = unreported,
    cell: str | None = None,
) -> list[Finding]:
    """Return the findings of all checks; a check that fails to run is a finding too.

    With `deep`, all rows, indexes and pages are read, and `progress` gets the name of each check. With `repair`, wrong
    counts are corrected. Of several cells, one is checked.
    """
    found = [*check_env_file(file)]
    try:
        every = read_settings(env_file=file)
        settings = of_cell(every, cell)
    except Refusal as refusal:
        return [Finding("FAIL", "settings", str(refusal).rstrip("."), "`tocsin config` lists all settings"), *found]
    found = [Finding("ok", "settings", f"{len(settings.model_fields_set)} settings are set"), *found]
    found += [
        *check_secret_files(every),
        *check_catalogue(settings),
        *[finding async for finding in check_push(settings)],
        *check_keys(settings),
        *[finding async for finding in check_jwks(settings)],
        *[finding async for finding in check_sign_in(settings)],
        *[finding async for finding in check_bus(settings)],
        *check_file_limit(*file_limits()),
        *check_network(settings),
        *[finding async for finding in check_port(settings)],
    ]
    if settings.database_url is None:
        found += [*check_data_folder(settings.data_dir), *check_free_space(settings.data_dir, settings.min_free_disk)]
    found += [finding async for finding in check_database(settings)]
    found += [finding async for finding in check_replica(settings)]
    if not deep:
        return found
    return [*found, *[finding async for finding in check_deeply(settings, repair=repair, progress=progress)]]
