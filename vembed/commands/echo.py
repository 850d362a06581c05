"""What the commands print, all of it: texts of data, files and models may hold control characters."""

import sys

import typer

from vembed.utils.untrusted import printable


def echo(text: str, *, err: bool = False, nl: bool = True, bold: bool = False, colour: str | None = None) -> None:
    """Print a text, with what would move the cursor, ring or turn the direction written escaped."""
    typer.secho(printable(text), err=err, nl=nl, bold=bold or None, fg=colour)


def show_progress(done: int, total: int) -> None:
    """One line that counts up, on a terminal only."""
    if sys.stderr.isatty():
        typer.secho(f"\r{done:,} of {total:,} items", err=True, nl=done == total)
