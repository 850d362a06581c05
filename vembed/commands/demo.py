"""`vembed demo`: its arguments and its help."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

from typing import Annotated

import typer

from vembed.commands.echo import echo
from vembed.commands.options import path_of


def demo(
    output_dir: Annotated[
        str,
        typer.Option("--output_dir", "--output-dir", metavar="PATH", help="Folder for data, models, run and report."),
    ] = "output/demo",
    quick: Annotated[bool, typer.Option("--quick", help="One epoch, for a look.")] = False,
) -> None:
    """Fine-tune two pretrained models on emoji and show the gain."""
    from vembed.entrypoints import demo as entrypoint

    result = entrypoint.demo(path_of("--output_dir", output_dir), quick=quick, say=echo)
    echo(f"\n{result.table}\nreport   {result.report}\nmetrics  {result.metrics}\nmodel    {result.final}")
