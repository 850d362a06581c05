"""Shared by the commands: options, how they read settings among their words, how they show the keys."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vembed.commands.echo import echo
from vembed.errors import UsageError

if TYPE_CHECKING:
    from vembed.configuration.arguments import Arguments

TAKES_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True}


def torch_dtype_option(text: str) -> Any:  # Any: as typer.Option
    """--torch_dtype with its help."""
    return typer.Option("--torch_dtype", "--torch-dtype", help=text)


def trust_remote_code_option(text: str) -> Any:
    """--trust_remote_code with its help."""
    return typer.Option("--trust_remote_code", "--trust-remote-code", help=text)


def allow_pickled_weights_option(text: str) -> Any:
    """--allow_pickled_weights with its help."""
    return typer.Option("--allow_pickled_weights", "--allow-pickled-weights", help=text)


Plugins = Annotated[
    list[str] | None, typer.Option("--plugins", metavar="MODULE", help="Import this first; may be repeated.")
]
TrustRemoteCode = Annotated[bool, trust_remote_code_option("Run the model's own code.")]
AllowPickledWeights = Annotated[bool, allow_pickled_weights_option("Read tensors from .bin files.")]


def path_of(option: str, text: str) -> Path:
    """The path that an option names. Raises UsageError for none, which would be the current folder."""
    if not text.strip():
        raise UsageError(f"{option} is empty; name a file or folder (. is the current folder)")
    return Path(text)


def arguments_of(context: typer.Context) -> "Arguments":
    """The settings and other words that typer left to the command. Raises UsageError for an option that is misspelt."""
    from vembed.configuration.arguments import refuse_misspelt, split_arguments
    from vembed.configuration.layers import flags_of
    from vembed.configuration.sections import every_key

    arguments = split_arguments(context.args, flags_of(every_key().values()))
    refuse_misspelt(arguments, [name for parameter in context.command.params for name in parameter.opts])
    return arguments


def one_positional(arguments: "Arguments") -> str | None:
    """The YAML file (or what else a command is about) among its words, if there is one."""
    if len(arguments.positionals) > 1:
        first, second = arguments.positionals[:2]
        raise UsageError(
            f"unexpected argument {second!r} after {first!r}; settings are written --key value or key=value (in quotes"
            " where the value has spaces)"
        )
    return arguments.positionals[0] if arguments.positionals else None


def print_help(usage: str, titles: Sequence[str] = (), *, common_only: bool) -> None:
    """The usage, and the keys by section; section titles are bold on a terminal."""
    from vembed.entrypoints.config import key_help

    width = min(100, max(80, shutil.get_terminal_size().columns))
    echo(usage)
    for line in key_help(titles, common_only=common_only, width=width).splitlines():
        echo(line, bold=bool(line) and not line.startswith(" "))
    if common_only:
        echo("These are the settings that matter most; --help-all shows every one.")
