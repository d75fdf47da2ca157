"""The command `pyrodyn`, an interface to the public API: one file per group of commands.

Errors are one line and exit code 2. Ctrl-C keeps the last checkpoint and exits with code 130.
"""

from pyrodyn.cli.app import app, main

__all__ = ["app", "main"]
