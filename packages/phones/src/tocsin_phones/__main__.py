"""The command `tocsin-phones`."""

import argparse
import asyncio
import sys
from pathlib import Path

from tocsin_phones.serving import StartError, serve


def main() -> None:
    """Read the arguments and serve until a signal."""
    parser = argparse.ArgumentParser(
        prog="tocsin-phones", description="Stand in for APNs, FCM and browser push services."
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="where to write keys, certificate and the variables to set"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="the control port; those of the services follow (0: free ones)"
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
