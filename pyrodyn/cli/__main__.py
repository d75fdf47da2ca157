"""`python -m pyrodyn.cli`, the same as the command."""

from pyrodyn.cli.app import main

main()
