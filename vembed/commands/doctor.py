"""`vembed doctor`: its arguments and its help."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

from typing import Annotated

import typer

from vembed.commands.echo import echo
from vembed.commands.options import arguments_of, one_positional
from vembed.errors import UsageError


def doctor(
    context: typer.Context,
    grad_check: Annotated[
        bool,
        typer.Option(
            "--grad_check",
            "--grad-check",
            help="Compare plain and cached gradients on a few rows; exit 1 if they differ.",
        ),
    ] = False,
    rows: Annotated[int, typer.Option("--rows", min=2, help="Rows of the comparison.")] = 8,
) -> None:
    """Say what this machine has and whether a config holds, or check that the gradient cache suits a model.

    vembed doctor [CONFIG.yaml] [--grad-check] [--key value | key=value]...
    """
    from vembed.config import TRAIN, load_config

    arguments = arguments_of(context)
    path, words = one_positional(arguments), arguments.words()
    config = load_config(path, words, purpose=TRAIN, reading="judged") if path is not None or words else None
    if grad_check and config is None:
        raise UsageError("--grad-check needs a config: vembed doctor --grad-check CONFIG.yaml")
    from vembed.entrypoints import doctor as entrypoint

    if not grad_check or config is None:
        echo(entrypoint.facts(config))
        return
    found = entrypoint.grad_check(config, rows)
    echo("\n".join(found.lines()))
    if not found.passed:
        raise typer.Exit(1)
