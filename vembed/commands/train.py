"""`vembed train`: its arguments and its help."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

from typing import Annotated

import typer

from vembed.commands.echo import echo
from vembed.commands.options import arguments_of, one_positional, print_help


def train(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry_run", "--dry-run")] = False,
    measure: Annotated[int | None, typer.Option("--measure", min=1)] = None,
    show_help: Annotated[bool, typer.Option("--help", "-h")] = False,
    show_all: Annotated[bool, typer.Option("--help-all", "--help_all")] = False,
) -> None:
    """Fine-tune a model on your data."""
    if show_help or show_all:
        print_help(_TRAIN_USAGE, common_only=not show_all)
        return
    from vembed.config import TRAIN, load_config

    arguments = arguments_of(context)
    config = load_config(one_positional(arguments), arguments.words(), purpose=TRAIN)
    from vembed.entrypoints import train as entrypoint

    if dry_run:
        echo(entrypoint.dry_run(config))
    if measure is not None:
        echo(entrypoint.measure(config, measure))
    if not dry_run and measure is None:
        echo(entrypoint.summary(entrypoint.train(config)))


_TRAIN_USAGE = """\
Usage: vembed train [CONFIG.yaml] [--key value | key=value]...

Fine-tune a model. Settings come from the defaults, the preset of the model's family, CONFIG.yaml and the command line,
the later over the earlier. No YAML is needed:

  vembed train --model_name openai/clip-vit-base-patch32 --data_path pairs.csv

Options
  --dry_run                     Print the resolved config with origins, the
                                model, the steps and the memory; train nothing.
  --measure N                   Train N steps, print memory, speed and what
                                limits it; keep nothing.
  --help, --help-all            This text; the same with every setting.
"""
