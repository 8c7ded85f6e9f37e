"""The command line. Each command is a call of the public API; `backlight COMMAND --help` says what it takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from backlight.errors import MissingExtraError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, by default the process's own arguments; exits with its status.

    Exit status: 0 all done; 2 something was wrong with what was given, one line each on stderr; 130 interrupted.
    """
    try:
        from backlight.cli.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(f"backlight: error: {MissingExtraError(error.name or 'typer', 'cli')}", file=sys.stderr)
        sys.exit(2)
    app(arguments if arguments is None else list(arguments), prog_name="backlight")
