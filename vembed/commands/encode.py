"""`vembed encode`: its arguments and its help."""
# ruff: noqa: PLC0415 - imports inside commands keep `vembed --help` fast

from typing import TYPE_CHECKING, Annotated

import typer

from vembed.commands.echo import echo, show_progress
from vembed.commands.options import AllowPickledWeights, Plugins, TrustRemoteCode, path_of, torch_dtype_option
from vembed.errors import UsageError

if TYPE_CHECKING:
    from vembed.retrieval.encode_file import OnBadSample
    from vembed.types import Side

_POLICIES: "dict[str, OnBadSample]" = {"raise": "raise", "skip": "skip"}
_SIDES: "dict[str, Side]" = {"query": "query", "document": "document"}

_OnBadSample = Annotated[
    str,
    typer.Option(
        "--on_bad_sample",
        "--on-bad-sample",
        help="What an item that cannot be read does: raise stops; skip writes the others and lists it beside them.",
    ),
]
_MaxBadFraction = Annotated[
    float,
    typer.Option(
        "--max_bad_fraction",
        "--max-bad-fraction",
        min=0,
        max=1,
        help="With skip: stop above this share of items; at 1 only if none is left, as the list says what is missing.",
    ),
]


def encode(  # noqa: PLR0913, PLR0917 (the command line itself)
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a model (RUN/final) or hub id.")],
    items: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="PATH",
            help="Folder of images, .txt with a text per line, or a table with columns text, image and id.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", metavar="PATH", help="File to write: .npy, .npz, .parquet or .safetensors.")
    ],
    side: Annotated[str, typer.Option("--side", help="Whose prompt texts get: query or document.")] = "document",
    width: Annotated[int | None, typer.Option("--width", min=1, help="Keep only the first numbers.")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch-size", min=1, help="Items at once.")] = 64,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    on_bad_sample: _OnBadSample = "raise",
    max_bad_fraction: _MaxBadFraction = 1.0,
    trust_remote_code: TrustRemoteCode = False,
    plugins: Plugins = None,
    torch_dtype: Annotated[str, torch_dtype_option("float32, bfloat16, float16, or auto: the files' own.")] = "float32",
    allow_pickled_weights: AllowPickledWeights = False,
) -> None:
    """Embed texts and images, and write the vectors."""
    if side not in _SIDES:
        raise UsageError(f"--side {side!r} is unknown; known are: {', '.join(_SIDES)}")
    if on_bad_sample not in _POLICIES:
        raise UsageError(f"--on_bad_sample {on_bad_sample!r} is unknown; known are: {', '.join(_POLICIES)}")
    from vembed.entrypoints import encode as entrypoint
    from vembed.entrypoints.load_options import LoadOptions

    load_options = LoadOptions(
        torch_dtype=torch_dtype,
        trust_remote_code=trust_remote_code,
        allow_pickled_weights=allow_pickled_weights,
        plugins=plugins or (),
    )
    request = entrypoint.EncodeRequest(
        model=model,
        items=path_of("--input", items),
        output=path_of("--output", output),
        side=_SIDES[side],
        width=width,
        batch_size=batch_size,
        device=device,
        on_bad_sample=_POLICIES[on_bad_sample],
        max_bad_fraction=max_bad_fraction,
        load_options=load_options,
    )
    echo(entrypoint.encode(request, show_progress).text())
