"""The versions a run was made with, and the settings that may differ when a checkpoint of it is resumed."""

import platform
from collections.abc import Mapping
from typing import Any

import safetensors
import torch
import transformers

from vembed.errors import ConfigError
from vembed.version import __version__

# Settings that a resumed run may change: they decide what is written, logged or evaluated, how fast it trains and when
# it stops, but not the weights after a given step.
_MAY_CHANGE = frozenset(
    {
        "output_dir",
        "resume_from_checkpoint",
        "overwrite_output_dir",
        "max_steps",
        "logging_steps",
        "report_to",
        "eval_steps",
        "save_steps",
        "save_adapter_only",
        "save_total_limit",
        "on_nan",
        "on_bad_sample",
        "max_bad_fraction",
        "teacher_cache_dir",
        "num_workers",
        "image_host_cache",
        "test_data_path",
        "eval_batch_size",
        "eval_k",
        "bootstrap_samples",
        "gallery_size",
        "report",
        "feature_cache_dir",
        "gradient_cache_states_gib",
    }
)


def versions() -> dict[str, str]:
    """Versions of the libraries and the platform on which the numbers of a run depend."""
    return {
        "vembed": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
        "platform": platform.platform(),
    }


def check_same_run(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    saved_rows: Mapping[str, int],
    rows: Mapping[str, int],
) -> None:
    """Refuse to continue a run with settings or data that would make it another one. Raises ConfigError listing all.

    saved, now: flat settings as JSON holds them. defaults: what a key counts as where one of the two lacks it, because
    it had no effect there or did not exist yet; a key that comes later leaves by default all as it was. rows: rows per
    data set.
    """
    before, after = {**defaults, **saved}, {**defaults, **now}
    problems = [
        f"{key}: the checkpoint was trained with {before.get(key)!r}, now it is {after.get(key)!r}"
        for key in sorted(saved.keys() | now.keys())
        if key not in _MAY_CHANGE and not _same(key, before.get(key), after.get(key))
    ]
    problems += [
        f"data set {name!r}: it had {saved_rows.get(name, 0)} rows, now it has {rows.get(name, 0)}"
        for name in sorted(saved_rows.keys() | rows.keys())
        if saved_rows.get(name) != rows.get(name)
    ]
    if problems:
        raise ConfigError(
            "\n".join(problems)
            + "\nContinuing would be exact no longer. Set these back, or start a new run from the checkpoint's weights"
            " with model_name: <checkpoint folder> and another output_dir"
        )


def _same(key: str, saved: Any, now: Any) -> bool:  # Any: a setting's value
    """Equal, or more epochs than before, or no temperature, which stands for the checkpoint's own.

    Earlier versions noted mixed_precision: auto as that word, which says nothing of what it stood for.
    """
    more = key == "epochs" and isinstance(saved, int) and isinstance(now, int) and now > saved
    own = key == "temperature" and now is None
    unknown = key == "mixed_precision" and saved == "auto"
    return more or own or unknown or bool(saved == now)
