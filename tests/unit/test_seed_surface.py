"""All that the seed document names: what exists is asserted, what is still to come is listed with what brings it.

The list LATER only shrinks. A name leaves it when it exists (a name that is in LATER and exists fails too).
"""

import importlib
from pathlib import Path

import pytest

from vembed.utils.settings import Section

ROOT = Path(__file__).resolve().parents[2]

PATHS = """
 vembed/__init__.py vembed/cli.py vembed/config.py vembed/trainer.py vembed/inference.py vembed/model/__init__.py
vembed/model/base.py vembed/model/modeling.py vembed/model/encoders_factory.py vembed/model/registry.py
vembed/model/backbones/auto.py vembed/model/backbones/qwen3.py vembed/model/backbones/vlm_generic.py
vembed/model/backbones/composed.py vembed/model/processors/__init__.py vembed/model/processors/auto.py
vembed/model/processors/qwen3_vl.py vembed/model/processors/registry.py vembed/data/__init__.py vembed/data/dataset.py
vembed/data/loading.py vembed/data/registry.py vembed/data/collators/__init__.py vembed/data/collators/default.py
vembed/data/collators/qwen3_vl.py vembed/data/collators/registry.py vembed/losses/__init__.py vembed/losses/factory.py
vembed/losses/registry.py vembed/losses/functions/__init__.py vembed/losses/functions/infonce.py
vembed/losses/functions/triplet.py vembed/losses/functions/cosent.py vembed/losses/functions/colbert.py
vembed/losses/functions/mrl.py vembed/losses/functions/distillation.py vembed/grad_cache/__init__.py
vembed/grad_cache/grad_cache.py vembed/grad_cache/functional.py vembed/grad_cache/loss.py
vembed/grad_cache/context_managers.py vembed/grad_cache/cachex/functional.py vembed/grad_cache/cachex/training.py
vembed/grad_cache/cachex/tree_utils.py vembed/grad_cache/pytorch_lightning/pl_gradcache.py
vembed/grad_cache/pytorch_lightning/pl_example.py vembed/training/__init__.py
vembed/training/gradient_cache_trainer.py vembed/training/dpo.py vembed/entrypoints/__init__.py
vembed/entrypoints/train.py vembed/entrypoints/evaluate.py vembed/entrypoints/evaluate_simple.py
vembed/evaluation/__init__.py vembed/evaluation/metrics.py vembed/evaluation/report.py vembed/utils/__init__.py
vembed/utils/logging.py vembed/utils/download.py vembed/utils/distributed.py vembed/core/__init__.py
vembed/core/gradient_cache.py vembed/configs/defaults.yaml vembed/configs/clip.yaml vembed/configs/qwen3.yaml
vembed/configs/siglip.yaml examples/clip_train.yaml examples/qwen3_2b_train.yaml examples/qwen_colbert.yaml notebooks
docs benchmark .github .github/ISSUE_TEMPLATE/bug_report.md tests/unit tests/integration tests/inference
tests/unit/test_model.py Dockerfile pyproject.toml README.md CONTRIBUTING.md docs/COEXISTENCE_FIX_GUIDE.md
""".split()

NAMES = """
 vembed:Trainer vembed:Predictor vembed.model.base:BaseEmbeddingModel vembed.model.base:pool
vembed.model.base:disable_kv_cache vembed.model.modeling:VisualRetrievalModel
vembed.model.encoders_factory:SimpleTextEncoder vembed.model.encoders_factory:SimpleImageEncoder
vembed.model.registry:ModelRegistry vembed.model.processors.registry:ProcessorRegistry
vembed.data.dataset:VisualRetrievalDataset vembed.data.collators.default:Collator
vembed.data.collators.registry:CollatorRegistry vembed.data.registry:CollatorRegistry vembed.data.loading:load_data
vembed.losses.factory:LossFactory vembed.losses.registry:LossRegistry vembed.grad_cache.context_managers:RandContext
vembed.grad_cache:GradCache
""".split()

LOSSES = "infonce triplet cosent colbert mrl distillation".split()

KEYS = {
    "model_name": None,
    "batch_size": 32,
    "learning_rate": 2e-5,
    "epochs": 3,
    "use_gradient_cache": True,
    "gradient_cache_chunk_size": 32,
    "gradient_checkpointing": False,
    "use_lora": False,
    "use_mrl": False,
}

MAKE_TARGETS = "test uv-test uv-test-cov uv-lint uv-format".split()

LATER = {
    "vembed/utils/download.py": "data engine",
    "notebooks": "documents",
    "Dockerfile": "documents",
}
LATER_AT_MOST = 3


def path_exists(path: str) -> bool:
    return (ROOT / path).exists()


def name_exists(name: str) -> bool:
    module, attribute = name.split(":")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        return False


def loss_exists(name: str) -> bool:
    return name.removeprefix("loss ") in importlib.import_module("vembed.losses.registry").LossRegistry


def section_keys() -> dict[str, object]:
    for part in ("model", "data", "losses", "grad_cache", "training", "evaluation"):
        importlib.import_module(f"vembed.{part}.settings")
    fields = [section.model_fields for section in Section.__subclasses__() if section.__module__.startswith("vembed.")]
    return {key: field.default for section in fields for key, field in section.items()}


def key_exists(name: str) -> bool:
    key = name.removeprefix("key ")
    keys = section_keys()
    return key in keys and keys[key] == KEYS[key]


def target_exists(name: str) -> bool:
    return f"\n{name.removeprefix('target ')}:" in (ROOT / "Makefile").read_text()


SURFACE = (
    [(path, path_exists) for path in PATHS]
    + [(name, name_exists) for name in NAMES]
    + [(f"loss {name}", loss_exists) for name in LOSSES]
    + [(f"key {name}", key_exists) for name in KEYS]
    + [(f"target {name}", target_exists) for name in MAKE_TARGETS]
)


@pytest.mark.parametrize(("name", "exists"), SURFACE, ids=[name for name, _ in SURFACE])
def test_seed_name_exists_or_is_listed_as_later(name, exists):
    if name in LATER:
        assert not exists(name), f"{name} exists now: take it out of LATER and lower LATER_AT_MOST"
    else:
        assert exists(name), f"the seed names {name}"


def test_the_surface_is_complete_and_later_only_shrinks():
    names = [name for name, _ in SURFACE]
    assert len(names) == len(set(names)) == 122
    assert set(LATER) <= set(names)
    assert len(LATER) == LATER_AT_MOST
