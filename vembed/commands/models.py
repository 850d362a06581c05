"""`vembed models`: its arguments and its help."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

from typing import Annotated

import typer

from vembed.commands.echo import echo
from vembed.commands.options import Plugins, allow_pickled_weights_option, torch_dtype_option, trust_remote_code_option
from vembed.errors import UsageError


def models(
    check: Annotated[
        str | None, typer.Option("--check", metavar="MODEL", help="Load this model, show its spec, embed with it.")
    ] = None,
    encoder_mode: Annotated[
        str | None, typer.Option("--encoder_mode", "--encoder-mode", help="With --check: use it as this family.")
    ] = None,
    trust_remote_code: Annotated[bool, trust_remote_code_option("With --check: run the model's own code.")] = False,
    plugins: Plugins = None,
    torch_dtype: Annotated[str | None, torch_dtype_option("With --check: hold the weights in this dtype.")] = None,
    allow_pickled_weights: Annotated[
        bool, allow_pickled_weights_option("With --check: read tensors from .bin files.")
    ] = False,
) -> None:
    """List the families of models and what each supports, or check one model."""
    from vembed.entrypoints import models as entrypoint
    from vembed.entrypoints.load_options import LoadOptions

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
        echo(entrypoint.listing(plugins or ()))
        return
    load_options = LoadOptions(
        torch_dtype=torch_dtype,
        trust_remote_code=trust_remote_code,
        allow_pickled_weights=allow_pickled_weights,
        encoder_mode=encoder_mode,
        plugins=plugins or (),
    )
    echo(entrypoint.check(entrypoint.CheckRequest(model=check, load_options=load_options)))
