"""`vembed evaluate`: its arguments and its help."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

from typing import Annotated

import typer

from vembed.commands.echo import echo
from vembed.commands.options import arguments_of, one_positional, print_help
from vembed.errors import UsageError


def evaluate(context: typer.Context, show_help: Annotated[bool, typer.Option("--help", "-h")] = False) -> None:
    """Measure a run, a config or a model, and write a report."""
    if show_help:
        print_help(_EVALUATE_USAGE, ("data", "evaluation"), common_only=False)
        return
    arguments = arguments_of(context)
    target = one_positional(arguments)
    if target is None:
        raise UsageError("name what to measure: vembed evaluate RUN_FOLDER | CONFIG.yaml | MODEL --test_data_path DATA")
    from vembed.entrypoints.evaluation_target import resolve_target

    what = resolve_target(target, arguments.words(without="output_dir"))
    from vembed.entrypoints import evaluate as entrypoint

    echo(entrypoint.evaluate_target(what, report_dir=arguments.last("output_dir")).text())


_EVALUATE_USAGE = """\
Usage: vembed evaluate TARGET [--output_dir DIR] [--key value | key=value]...

Measure models on held-out data. TARGET is one of

  a run's folder                the model before and after training, on the
                                run's test data (without any: its validation
                                data); the report goes to TARGET/report
  CONFIG.yaml                   the model as it is before training
  a model folder or hub id      that model, on --test_data_path DATA

Options
  --output_dir DIR              Folder for report.html, report.md and
                                metrics.json.
  --help                        This text.

Settings of the run or file can be overridden; these matter here:
"""
