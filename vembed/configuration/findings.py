"""Checks between the settings of a run, beyond what each key declares of itself."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vembed.configuration.keys import format_value
from vembed.configuration.layers import Setting
from vembed.configuration.yaml_text import Location
from vembed.data.formats import may_be_hub_name
from vembed.data.settings import DataEntry, DataSettings, DataSource, data_entries
from vembed.data.shards import fits_files
from vembed.evaluation.settings import EvaluationSettings
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.losses.teacher_needs import compares_scores, distills, has_teacher, row_needs, teacher_problems
from vembed.model.settings import ModelSettings
from vembed.model.vectors.fusion_registry import unknown_fusion
from vembed.registry import no_such
from vembed.training.settings import TrainingSettings
from vembed.training.trackers.registry import CallbackRegistry
from vembed.utils.settings import Section
from vembed.utils.untrusted import is_folder, is_there

_METRIC = re.compile(r"(?:recall|hit_rate|ndcg)@(?P<k>\d+)|mrr|map")


Finding = tuple[Location, str]  # a key, or a place in its value, and what is wrong with it


@dataclass(frozen=True)
class Sections:
    """The sections that rules read."""

    model: ModelSettings
    data: DataSettings
    loss: LossSettings
    loss_options: Section
    training: TrainingSettings
    evaluation: EvaluationSettings
    grad_cache: GradCacheSettings


def findings(sections: Sections, user: Mapping[str, Setting]) -> Iterator[Finding]:
    """What does not hold between the values, beyond what the keys declare of themselves."""
    yield from _model_findings(sections.model)
    yield from _state_findings(sections.model, user)
    yield from _fusion_findings(sections.model)
    yield from _matryoshka_findings(sections.loss)
    yield from _teacher_findings(sections, user)
    yield from _left_out_findings(sections, user)
    yield from _negatives_findings(sections)
    yield from _training_findings(sections.training)
    yield from _tracker_findings(sections.training)
    yield from _adapter_findings(sections)
    yield from _cache_findings(sections)
    yield from _validation_findings(sections, user)
    yield from _metric_findings(sections.evaluation)
    yield from _query_image_findings(sections)


def missing_data(key: str, data: DataSettings) -> Iterator[Finding]:
    """Data under `key` that is written as a local path and is not there. A hub name is not looked up."""
    if key == "image_root":
        yield from _missing_folder((key,), data.image_root)
        return
    sources: dict[str, DataSource | None] = {
        "data_path": data.data_path,
        "val_data_path": data.val_data_path,
        "test_data_path": data.test_data_path,
    }
    source = sources[key]
    for number, entry in enumerate(data_entries(source)):
        location: Location = (key, number) if isinstance(source, tuple) else (key,)
        if isinstance(entry, str):
            yield from _missing_path(location, entry)
        else:
            yield from _missing_path((*location, "path"), entry.path)
            yield from _missing_folder((*location, "image_root"), entry.image_root)


def _missing_folder(location: Location, folder: str | None) -> Iterator[Finding]:
    """A folder that is named and not there."""
    if folder is not None and not is_folder(folder):
        yield location, f"there is no folder {folder} (looked in {Path.cwd()})"


def _missing_path(location: Location, path: str | None) -> Iterator[Finding]:
    if path is not None and not may_be_hub_name(path) and not is_there(path) and not fits_files(path):
        yield location, f"there is no file or folder {path[:300]} (looked in {Path.cwd()})"


def _metric_findings(evaluation: EvaluationSettings) -> Iterator[Finding]:
    metric = _METRIC.fullmatch(evaluation.best_metric)
    if metric is None:
        yield (
            ("best_metric",),
            f"expected recall@K, hit_rate@K, ndcg@K, mrr or map; got {format_value(evaluation.best_metric)}",
        )
    elif metric["k"] and int(metric["k"]) not in evaluation.eval_k:
        yield (
            ("best_metric",),
            f"{metric['k']} is none of the cut-offs measured; add it to eval_k {list(evaluation.eval_k)}",
        )


def _query_image_findings(sections: Sections) -> Iterator[Finding]:
    """exclude_query_image where no query that is measured shows a picture."""
    modes = _measured_modes(sections.data)
    if sections.evaluation.exclude_query_image and not any(mode[0] in "im" for mode in modes):
        yield ("exclude_query_image",), f"has no effect: queries of {', '.join(sorted(modes))} show no picture"


def _measured_modes(data: DataSettings) -> set[str]:
    """The retrieval modes of validation and test sets; without any, of the training data they are split off from."""
    held_out = [source for source in (data.val_data_path, data.test_data_path) if source is not None]
    sources = held_out or [source for source in (data.data_path,) if source is not None]
    entries = [entry for source in sources for entry in data_entries(source)]
    named = [entry.retrieval_mode if isinstance(entry, DataEntry) else None for entry in entries]
    return {mode or data.retrieval_mode for mode in named} or {data.retrieval_mode}


def _model_findings(model: ModelSettings) -> Iterator[Finding]:
    towers = {"text_model_name": model.text_model_name, "image_model_name": model.image_model_name}
    absent = [name for name, value in towers.items() if value is None]
    if len(absent) == 1:
        present = next(name for name in towers if name not in absent)
        yield (present,), f"needs {absent[0]} too; a composed model has both towers"
    if model.revision is not None and model.model_name is not None and is_folder(model.model_name):
        yield ("revision",), f"model_name {model.model_name} is a local folder, which has no revisions; take it out"
    for tower in model.freeze_layers:
        if tower in model.freeze:
            yield ("freeze_layers", tower), f"the whole {tower} tower is frozen by freeze; keep the one or the other"


def _state_findings(model: ModelSettings, user: Mapping[str, Setting]) -> Iterator[Finding]:
    """A limit of what frozen towers give, where none can be. A resolved config.yaml names it at its default."""
    key = "gradient_cache_states_gib"
    may_keep = model.freeze or model.use_lora or "learning_rates" in user
    if not may_keep and key in user and user[key].value != GradCacheSettings.model_fields[key].default:
        yield (key,), f"has an effect only with a frozen tower (freeze, or a rate of 0); set that, or take {key} out"


def _fusion_findings(model: ModelSettings) -> Iterator[Finding]:
    problem = None if model.fusion is None else unknown_fusion(model.fusion)
    if problem is not None:
        yield ("fusion",), problem


def _matryoshka_findings(loss: LossSettings) -> Iterator[Finding]:
    keys = {"mrl_dims": loss.mrl_dims, "mrl_weights": loss.mrl_weights, "mrl_tokens": loss.mrl_tokens}
    if not loss.use_mrl and loss.loss_type != "mrl":
        for key in (key for key, value in keys.items() if value):
            yield (key,), f"has an effect only with use_mrl: true or loss_type: mrl; set one, or take {key} out"
    elif loss.mrl_weights and len(loss.mrl_weights) != len(loss.mrl_dims):
        yield ("mrl_weights",), f"{len(loss.mrl_weights)} weights for {len(loss.mrl_dims)} mrl_dims; each needs one"
    if len(set(loss.mrl_dims)) != len(loss.mrl_dims):
        yield ("mrl_dims",), f"{list(loss.mrl_dims)} names a width twice"


def _teacher_findings(sections: Sections, user: Mapping[str, Setting]) -> Iterator[Finding]:
    loss = sections.loss
    if loss.loss_type not in LossRegistry:
        return
    if not distills(loss):
        # A run's resolved config.yaml names every key; one that is at its default contradicts nothing.
        for key in ("distillation_type", "distillation_alpha", "distillation_temperature"):
            if key in user and user[key].value != LossSettings.model_fields[key].default:
                yield (key,), f"has an effect only with use_distillation: true; set that, or take {key} out"
    if loss.teacher_embeddings and sections.data.query_image_as_negative:
        yield (
            ("query_image_as_negative",),
            "cannot stand beside teacher_embeddings: rows bring no embedding of a query's picture alone",
        )
    for key, text in teacher_problems(loss, sections.loss_options, with_teacher=has_teacher(loss)):
        yield (key,), text


def _left_out_findings(sections: Sections, user: Mapping[str, Setting]) -> Iterator[Finding]:
    """Keys that only the loss reads, set where distillation leaves it out."""
    loss = sections.loss
    if loss.loss_type not in LossRegistry or not distills(loss) or loss.distillation_alpha < 1:
        return
    fields = dict(type(sections.loss_options).model_fields)
    if not compares_scores(loss):
        fields |= {key: LossSettings.model_fields[key] for key in ("temperature", "learn_temperature")}
    for key, field in fields.items():
        if key in user and user[key].value != field.default:
            yield (
                (key,),
                f"has no effect with distillation_alpha: 1, which leaves out the loss; lower that, or take {key} out",
            )


def _negatives_findings(sections: Sections) -> Iterator[Finding]:
    """No negative of any row, where the loss compares with those of rows: it would be 0, and teach nothing."""
    if sections.data.num_hard_negatives != 0 or sections.loss.loss_type not in LossRegistry:
        return
    needs = row_needs(sections.loss, sections.loss_options)
    if needs.negatives or needs.num_documents > 1:
        who = "the loss needs" if needs.negatives else "distillation from scores in the data compares with positives"
        yield (
            ("num_hard_negatives",),
            f"leaves out all explicit negatives, which {who}; set it to 1 or more, or take it out for all",
        )


def _training_findings(training: TrainingSettings) -> Iterator[Finding]:
    rows, shares = training.global_batch_size, training.gradient_accumulation_steps
    if rows is not None and rows % shares:
        yield ("global_batch_size",), f"{rows} does not divide by gradient_accumulation_steps {shares}"


def _tracker_findings(training: TrainingSettings) -> Iterator[Finding]:
    for number, name in enumerate(training.report_to):
        if name not in CallbackRegistry:
            yield ("report_to", number), no_such("tracker", name, CallbackRegistry.list())
        elif name in training.report_to[:number]:
            yield ("report_to", number), f"{name!r} is named twice; keep one"


def _adapter_findings(sections: Sections) -> Iterator[Finding]:
    model, training = sections.model, sections.training
    if model.quantization == "4bit" and model.use_lora and not training.save_adapter_only:
        yield (
            ("quantization",),
            "an adapter that learned beside 4-bit weights embeds differently when it is merged; set save_adapter_only:"
            " true",
        )


def _cache_findings(sections: Sections) -> Iterator[Finding]:
    cache = sections.grad_cache
    by_default = cache.gradient_cache_retain is None and sections.model.gradient_checkpointing
    may_be = (cache.gradient_cache_chunk_size, cache.gradient_cache_chunk_tokens, cache.gradient_cache_retain)
    auto = by_default or "auto" in may_be
    if cache.gradient_cache_memory_gib is not None and not auto:
        yield (
            ("gradient_cache_memory_gib",),
            "has an effect only with gradient_cache_chunk_size, gradient_cache_chunk_tokens or gradient_cache_retain:"
            " auto; set one, or take it out",
        )


def _validation_findings(sections: Sections, user: Mapping[str, Setting]) -> Iterator[Finding]:
    if sections.data.val_data_path is None and not sections.data.val_fraction:
        # A run's resolved config.yaml names every key; one that is at its default contradicts nothing.
        defaults = {"eval_steps": None, "best_metric": EvaluationSettings().best_metric}
        for key, default in defaults.items():
            if key in user and user[key].value != default:
                yield (key,), "has no effect without validation data; set val_data_path or val_fraction, or take it out"
