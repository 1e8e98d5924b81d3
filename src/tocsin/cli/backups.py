"""Commands that back up, restore and upgrade the embedded database."""

from pathlib import Path
from typing import Annotated

import typer

from tocsin.cli.arguments import Cell, parse_folder, parse_moment
from tocsin.cli.running import load_cell, run_command
from tocsin.errors import Refusal


def backup(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", parser=parse_folder, help="The folder of backups; each gets a folder in it."),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Remove all but this many backups, and the archived log before them."),
    ] = None,
    *,
    stdout: Annotated[bool, typer.Option("--stdout", help="Write a tar archive to standard output instead.")] = False,
) -> None:
    """Back up the embedded database, whether or not it runs, and verify the backup."""
    from tocsin.cli.backup_steps import make_backup

    if (folder is None) != stdout or (stdout and keep is not None):
        raise Refusal("Give a folder, with --keep if wanted, or --stdout alone.")
    run_command(make_backup(load_cell(), folder and folder.resolve(), keep))


def restore(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            parser=parse_folder,
            help="A backup, or a folder of backups, of which the latest fitting one is used.",
        ),
    ] = None,
    to_time: Annotated[
        str | None,
        typer.Option(help="The time to stop at, such as '2026-11-28 18:05:00' (UTC). Default: the end of the archive."),
    ] = None,
    restore_command: Annotated[
        str | None,
        typer.Option(help="A command that fetches a file (%f) of the archive to %p. Default: from TOCSIN_ARCHIVE_DIR."),
    ] = None,
    *,
    external: Annotated[
        bool, typer.Option("--external", help="Finish a restore of your own PostgreSQL, which is done already.")
    ] = False,
    cell: Cell = None,
) -> None:
    """Restore a backup and the archived log after it into an empty data folder."""
    from tocsin.cli import backup_steps

    settings = load_cell(cell)
    if external:
        run_command(backup_steps.finish_external(settings, folder))
        return
    if restore_command == "":
        raise Refusal("Give a command that fetches; `false` leaves the archive out.")
    moment = None if to_time is None else parse_moment(to_time)
    run_command(backup_steps.restore(settings, folder and folder.resolve(), moment, restore_command))


def upgrade() -> None:
    """Upgrade the embedded database to the major version of PostgreSQL of this release. The old one is kept."""
    from tocsin.cli.backup_steps import upgrade as upgrade_database

    run_command(upgrade_database(load_cell()))
