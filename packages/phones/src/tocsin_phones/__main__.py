"""The command `tocsin-phones`."""

import argparse
import asyncio
import sys
from pathlib import Path

from tocsin_phones.serving import StartError, serve


def main() -> None:
    """Read the arguments and serve until a signal."""
    parser = argparse.ArgumentParser(prog="tocsin-phones", description="Simulate APNs, FCM and a browser push service.")
    parser.add_argument(
        "--folder", type=Path, required=True, help="the folder for keys, certificate and the variables to set"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=0,
        help="the control port; the services use the four after it (0: free ports)",
    )
    given = parser.parse_args()
    if not 0 <= given.port <= 65531:  # noqa: PLR2004 - the last port but four
        parser.error("--port must be between 0 and 65531")
    try:
        asyncio.run(serve(given.folder, given.port))
    except StartError as error:
        sys.exit(f"tocsin-phones: {error}")


if __name__ == "__main__":
    main()
