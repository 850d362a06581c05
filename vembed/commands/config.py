"""`vembed config`: its subcommands, their arguments and their help."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

import typer

from vembed.commands.echo import echo
from vembed.commands.options import TAKES_SETTINGS, arguments_of, one_positional

config_app = typer.Typer(help="Show settings, defaults, a JSON schema.", no_args_is_help=True)


@config_app.command("show", context_settings=TAKES_SETTINGS)
def show(context: typer.Context) -> None:
    """Print every value and where it comes from.

    vembed config show [CONFIG.yaml] [--key value | key=value]...
    """
    from vembed.config import load_config
    from vembed.entrypoints import config as entrypoint

    arguments = arguments_of(context)
    config = load_config(one_positional(arguments), arguments.words(), reading="shown")
    echo(entrypoint.show(config), nl=False)
    if config.setup.plugins and arguments.last("plugins") is None:
        echo(f"plugins are not imported to show a file; --plugins {','.join(config.setup.plugins)} does it")


@config_app.command("defaults")
def defaults() -> None:
    """Print every key with its default, as YAML."""
    from vembed.entrypoints import config as entrypoint

    echo(entrypoint.defaults(), nl=False)


@config_app.command("schema")
def schema() -> None:
    """Print a JSON schema of the YAML, for editors."""
    import json

    from vembed.entrypoints import config as entrypoint

    echo(json.dumps(entrypoint.schema(), indent=2))


@config_app.command("reference")
def reference() -> None:
    """Print all keys and presets as Markdown."""
    from vembed.entrypoints import config as entrypoint

    echo(entrypoint.reference(), nl=False)
