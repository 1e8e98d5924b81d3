"""`python -m tocsin` is the command `tocsin`."""

from tocsin.cli.commands import main

main()
