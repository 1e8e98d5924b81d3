"""`python -m tocsin` is the command `tocsin`."""

from tocsin.commands import main

main()
