"""Commands of root: they work as the owner of the data folder, so that its files stay that user's."""

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from tocsin.cli.terminal import say
from tocsin.errors import Refusal

if TYPE_CHECKING:
    from tocsin.settings import Settings


def work_as_owner(settings: "Settings") -> None:
    """If this is root, become the owner of the data folder of the embedded PostgreSQL for the rest of the process.

    Files of root in it would stop a service of that user. Raises `Refusal` if that user cannot read this program.
    """
    if os.geteuid() != 0 or settings.database_url is not None:
        return
    folder = settings.data_dir.absolute()
    try:
        owner = pwd.getpwuid(folder.stat().st_uid)
    except (OSError, KeyError):  # it is created, or refused, by what needs it
        return
    if owner.pw_uid == 0:
        return
    os.initgroups(owner.pw_name, owner.pw_gid)
    os.setgid(owner.pw_gid)
    os.setuid(owner.pw_uid)
    # The default of the data folder is another one for root, and programs look for files in their user's home.
    os.environ |= {"TOCSIN_DATA_DIR": str(folder), "HOME": owner.pw_dir, "USER": owner.pw_name}
    if not os.access(Path(__file__), os.R_OK):
        raise Refusal(
            f"The data folder {folder} belongs to {owner.pw_name}, who cannot read this program: run one that is"
            f" installed for that user."
        )
    if structlog.is_configured():
        structlog.get_logger().info("working as the owner of the data folder", user=owner.pw_name, folder=str(folder))
    else:
        say(f"Working as {owner.pw_name}, who owns {folder}.", err=True)
