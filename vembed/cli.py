"""The command line: read arguments, call one entrypoint, print its result. Heavy modules come with the command."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vembed import __version__
from vembed.errors import UsageError, VembedError

if TYPE_CHECKING:
    from vembed.configuration.arguments import Arguments
    from vembed.types import Side

_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True}
_INTERRUPTED = 130
_SIDES: "dict[str, Side]" = {"query": "query", "document": "document"}

_Plugins = Annotated[
    list[str] | None, typer.Option("--plugins", metavar="MODULE", help="Import this first; may be repeated.")
]
_TrustRemoteCode = Annotated[
    bool, typer.Option("--trust_remote_code", "--trust-remote-code", help="Run the model's own code.")
]
_AllowPickledWeights = Annotated[
    bool, typer.Option("--allow_pickled_weights", "--allow-pickled-weights", help="Read tensors from .bin files.")
]


class _Commands(typer.core.TyperGroup):
    """Turns what a command raises into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # Any: typer carries its own click, or the installed one, by version
        """Run the command. A user's mistake is told without a traceback."""
        try:
            return super().invoke(ctx)
        except VembedError as error:
            if os.environ.get("VEMBED_DEBUG") == "1":
                traceback.print_exc()
            typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
            typer.echo(str(error), err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(_INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    name="vembed",
    help="Fine-tune visual and multimodal embedding models on your own data: data in, tuned model and report out.",
    epilog="Every command explains itself: vembed COMMAND --help. VEMBED_DEBUG=1 shows tracebacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Show settings, defaults, a JSON schema.", no_args_is_help=True)
app.add_typer(config_app, name="config")


def main() -> None:
    """The `vembed` command."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vembed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune visual and multimodal embedding models on your own data: data in, tuned model and report out."""


@app.command("train", context_settings=_SETTINGS, add_help_option=False)
def _train(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry_run", "--dry-run")] = False,
    measure: Annotated[int | None, typer.Option("--measure", min=1)] = None,
    show_help: Annotated[bool, typer.Option("--help", "-h")] = False,
    show_all: Annotated[bool, typer.Option("--help-all", "--help_all")] = False,
) -> None:
    """Fine-tune a model on your data."""
    if show_help or show_all:
        _print_help(_TRAIN_USAGE, common_only=not show_all)
        return
    from vembed.config import TRAIN, load_config

    arguments = _split(context)
    config = load_config(_one_positional(arguments), arguments.words(), purpose=TRAIN)
    from vembed.entrypoints import train as entrypoint

    if dry_run:
        typer.echo(entrypoint.dry_run(config))
    if measure is not None:
        typer.echo(entrypoint.measure(config, measure))
    if not dry_run and measure is None:
        typer.echo(entrypoint.summary(entrypoint.train(config)))


@app.command("evaluate", context_settings=_SETTINGS, add_help_option=False)
def _evaluate(context: typer.Context, show_help: Annotated[bool, typer.Option("--help", "-h")] = False) -> None:
    """Measure a run, a config or a model, and write a report."""
    if show_help:
        _print_help(_EVALUATE_USAGE, ("data", "evaluation"), common_only=False)
        return
    arguments = _split(context)
    target = _one_positional(arguments)
    if target is None:
        raise UsageError("name what to measure: vembed evaluate RUN_FOLDER | CONFIG.yaml | MODEL --test_data_path DATA")
    from vembed.entrypoints.measured import measured

    what = measured(target, arguments.words(without="output_dir"))
    from vembed.entrypoints import evaluate as entrypoint

    typer.echo(entrypoint.evaluate_measured(what, report_dir=arguments.last("output_dir")).text())


@app.command("encode")
def _encode(  # noqa: PLR0913, PLR0917 (the command line itself)
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a model (RUN/final) or hub id.")],
    items: Annotated[
        Path,
        typer.Option(
            "--input",
            help="Folder of images, .txt with a text per line, or a table with columns text, image and id.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="File to write: .npy, .npz, .parquet or .safetensors.")],
    side: Annotated[str, typer.Option("--side", help="Whose prompt texts get: query or document.")] = "document",
    width: Annotated[int | None, typer.Option("--width", min=1, help="Keep only the first numbers.")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch-size", min=1, help="Items at once.")] = 64,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    trust_remote_code: _TrustRemoteCode = False,
    plugins: _Plugins = None,
    torch_dtype: Annotated[
        str, typer.Option("--torch_dtype", "--torch-dtype", help="float32, bfloat16, float16, or auto: the files' own.")
    ] = "float32",
    allow_pickled_weights: _AllowPickledWeights = False,
) -> None:
    """Embed texts and images, and write the vectors."""
    if side not in _SIDES:
        raise UsageError(f"--side {side!r} is unknown; known are: {', '.join(_SIDES)}")
    from vembed.entrypoints import encode as entrypoint

    request = entrypoint.EncodeRequest(
        model,
        items,
        output,
        _SIDES[side],
        width,
        batch_size,
        device,
        trust_remote_code,
        plugins or (),
        torch_dtype,
        allow_pickled_weights,
    )
    typer.echo(entrypoint.encode(request, _show_progress).text())


@app.command("export")
def _export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a checkpoint (RUN/checkpoint-10) or hub id.")
    ],
    output: Annotated[Path, typer.Option("--output", help="New folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge adapters into plain weights.")] = False,
    torch_dtype: Annotated[
        str, typer.Option("--torch_dtype", "--torch-dtype", help="float32, bfloat16, float16, or auto: the base's own.")
    ] = "float32",
    trust_remote_code: _TrustRemoteCode = False,
    plugins: _Plugins = None,
    allow_pickled_weights: _AllowPickledWeights = False,
) -> None:
    """Write a checkpoint as plain weights that need no adapter."""
    from vembed.entrypoints import export as entrypoint

    request = entrypoint.ExportRequest(
        model, output, merge, torch_dtype, trust_remote_code, plugins or (), allow_pickled_weights
    )
    typer.echo(entrypoint.export(request).text())


@app.command("models")
def _models(
    check: Annotated[
        str | None, typer.Option("--check", metavar="MODEL", help="Load this model, show its spec, embed with it.")
    ] = None,
    encoder_mode: Annotated[
        str | None, typer.Option("--encoder_mode", "--encoder-mode", help="With --check: use it as this family.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", "--trust-remote-code", help="With --check: run the model's own code.")
    ] = False,
    plugins: _Plugins = None,
    torch_dtype: Annotated[
        str | None, typer.Option("--torch_dtype", "--torch-dtype", help="With --check: hold the weights in this dtype.")
    ] = None,
    allow_pickled_weights: Annotated[
        bool,
        typer.Option(
            "--allow_pickled_weights", "--allow-pickled-weights", help="With --check: read tensors from .bin files."
        ),
    ] = False,
) -> None:
    """List the families of models and what each supports, or check one model."""
    from vembed.entrypoints import models as entrypoint

    if check is None:
        given = {
            "--encoder_mode": encoder_mode,
            "--trust_remote_code": trust_remote_code,
            "--torch_dtype": torch_dtype,
            "--allow_pickled_weights": allow_pickled_weights,
        }
        if any(given.values()):
            words = " and ".join(word for word, value in given.items() if value)
            raise UsageError(f"{words} can only say how to load a model: name one with --check")
        typer.echo(entrypoint.listing(plugins or ()))
        return
    request = entrypoint.CheckRequest(
        check, encoder_mode, trust_remote_code, plugins or (), torch_dtype, allow_pickled_weights
    )
    typer.echo(entrypoint.check(request))


@app.command("doctor", context_settings=_SETTINGS)
def _doctor(
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

    arguments = _split(context)
    path, words = _one_positional(arguments), arguments.words()
    config = load_config(path, words, purpose=TRAIN) if path is not None or words else None
    if grad_check and config is None:
        raise UsageError("--grad-check needs a config: vembed doctor --grad-check CONFIG.yaml")
    from vembed.entrypoints import doctor as entrypoint

    if not grad_check or config is None:
        typer.echo(entrypoint.facts(config))
        return
    found = entrypoint.grad_check(config, rows)
    typer.echo("\n".join(found.lines()))
    if not found.passed:
        raise typer.Exit(1)


@app.command("demo")
def _demo(
    output_dir: Annotated[
        Path, typer.Option("--output_dir", "--output-dir", help="Folder for data, models, run and report.")
    ] = Path("output/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="One epoch, for a look.")] = False,
) -> None:
    """Fine-tune two pretrained models on emoji and show the gain."""
    from vembed.entrypoints import demo as entrypoint

    result = entrypoint.demo(output_dir, quick=quick, say=typer.echo)
    typer.echo(f"\n{result.table}\nreport   {result.report}\nmetrics  {result.metrics}\nmodel    {result.final}")


@config_app.command("show", context_settings=_SETTINGS)
def _show(context: typer.Context) -> None:
    """Print every value and where it comes from.

    vembed config show [CONFIG.yaml] [--key value | key=value]...
    """
    from vembed.config import load_config
    from vembed.entrypoints import config as entrypoint

    arguments = _split(context)
    typer.echo(entrypoint.show(load_config(_one_positional(arguments), arguments.words())), nl=False)


@config_app.command("defaults")
def _defaults() -> None:
    """Print every key with its default, as YAML."""
    from vembed.entrypoints import config as entrypoint

    typer.echo(entrypoint.defaults(), nl=False)


@config_app.command("schema")
def _schema() -> None:
    """Print a JSON schema of the YAML, for editors."""
    import json

    from vembed.entrypoints import config as entrypoint

    typer.echo(json.dumps(entrypoint.schema(), indent=2))


@config_app.command("reference")
def _reference() -> None:
    """Print all keys and presets as Markdown."""
    from vembed.entrypoints import config as entrypoint

    typer.echo(entrypoint.reference(), nl=False)


def _show_progress(done: int, total: int) -> None:
    """One line that counts up, on a terminal only."""
    if sys.stderr.isatty():
        typer.echo(f"\r{done:,} of {total:,} items", err=True, nl=done == total)


def _split(context: typer.Context) -> "Arguments":
    from vembed.configuration.arguments import refuse_misspelt, split_arguments
    from vembed.configuration.layers import flags_of
    from vembed.configuration.sections import every_key

    arguments = split_arguments(context.args, flags_of(every_key().values()))
    refuse_misspelt(arguments, [name for parameter in context.command.params for name in parameter.opts])
    return arguments


def _one_positional(arguments: "Arguments") -> str | None:
    """The YAML file (or what else a command is about) among its words, if there is one."""
    if len(arguments.positionals) > 1:
        first, second = arguments.positionals[:2]
        raise UsageError(
            f"unexpected argument {second!r} after {first!r}; settings are written --key value or key=value (in quotes"
            " where the value has spaces)"
        )
    return arguments.positionals[0] if arguments.positionals else None


def _print_help(usage: str, titles: Sequence[str] = (), *, common_only: bool) -> None:
    """The usage, and the keys by section; section titles are bold on a terminal."""
    from vembed.entrypoints.config import key_help

    width = min(100, max(80, shutil.get_terminal_size().columns))
    typer.echo(usage)
    for line in key_help(titles, common_only=common_only, width=width).splitlines():
        typer.secho(line, bold=bool(line) and not line.startswith(" "))
    if common_only:
        typer.echo("These are the settings that matter most; --help-all shows every one.")


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
