"""The command line: the app, its commands, and what becomes of an error. Heavy modules come with the command."""

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from vembed.commands.config import config_app
from vembed.commands.demo import demo
from vembed.commands.doctor import doctor
from vembed.commands.echo import echo
from vembed.commands.encode import encode
from vembed.commands.evaluate import evaluate
from vembed.commands.export import export
from vembed.commands.models import models
from vembed.commands.options import TAKES_SETTINGS
from vembed.commands.train import train
from vembed.errors import VembedError
from vembed.version import __version__

_INTERRUPTED = 130


class _Commands(typer.core.TyperGroup):
    """Turns what a command raises into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # Any: typer carries its own click, or the installed one, by version
        """Run the command. A user's mistake is told without a traceback."""
        try:
            return super().invoke(ctx)
        except VembedError as error:
            if os.environ.get("VEMBED_DEBUG") == "1":
                _tell(traceback.format_exc().rstrip())
            _tell(str(error), start="Error: ")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _tell("interrupted")
            raise typer.Exit(_INTERRUPTED) from error


def _tell(message: str, *, start: str = "") -> None:
    """Write to standard error. Where nobody reads it any more (a terminal closed), the exit code says it alone."""
    try:
        if start:
            echo(start, colour="red", bold=True, err=True, nl=False)
        echo(message, err=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # or Python fails when it flushes at the end


app = typer.Typer(
    cls=_Commands,
    name="vembed",
    help="Fine-tune visual and multimodal embedding models on your own data: data in, tuned model and report out.",
    epilog="Every command explains itself: vembed COMMAND --help. VEMBED_DEBUG=1 shows tracebacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train", context_settings=TAKES_SETTINGS, add_help_option=False)(train)
app.command("evaluate", context_settings=TAKES_SETTINGS, add_help_option=False)(evaluate)
app.command("encode")(encode)
app.command("export")(export)
app.command("models")(models)
app.command("doctor", context_settings=TAKES_SETTINGS)(doctor)
app.command("demo")(demo)
app.add_typer(config_app, name="config")


def main() -> None:
    """The `vembed` command."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        echo(f"vembed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune visual and multimodal embedding models on your own data: data in, tuned model and report out."""
