"""`vembed export`: its arguments and its help."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

from typing import Annotated

import typer

from vembed.commands.echo import echo
from vembed.commands.options import AllowPickledWeights, Plugins, TrustRemoteCode, path_of, torch_dtype_option


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a checkpoint (RUN/checkpoint-10) or hub id.")
    ],
    output: Annotated[str, typer.Option("--output", metavar="PATH", help="New folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge adapters into plain weights.")] = False,
    torch_dtype: Annotated[str, torch_dtype_option("float32, bfloat16, float16, or auto: the base's own.")] = "float32",
    trust_remote_code: TrustRemoteCode = False,
    plugins: Plugins = None,
    allow_pickled_weights: AllowPickledWeights = False,
) -> None:
    """Write a checkpoint as plain weights that need no adapter."""
    from vembed.entrypoints import export as entrypoint
    from vembed.entrypoints.load_options import LoadOptions

    load_options = LoadOptions(
        torch_dtype=torch_dtype,
        trust_remote_code=trust_remote_code,
        allow_pickled_weights=allow_pickled_weights,
        plugins=plugins or (),
    )
    request = entrypoint.ExportRequest(
        model=model, output=path_of("--output", output), merge=merge, load_options=load_options
    )
    echo(entrypoint.export(request).text())
