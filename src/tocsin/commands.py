"""The command `tocsin`."""


def main() -> None:
    """Run the command line."""
