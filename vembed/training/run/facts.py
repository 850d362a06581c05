"""The facts of a finished run, read from its folder, as tables for its report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vembed.data.splits.overlap import Overlap
from vembed.errors import CheckpointError
from vembed.evaluation.rendering.charts import Line
from vembed.evaluation.rendering.formatting import metric_label, mode_label, percent
from vembed.evaluation.report import FactTable, SettingLine
from vembed.model.folder.find import SPEC_FILE
from vembed.training.run.best import equal_figures_note
from vembed.training.run.folder import RunFolder, read_saved_facts
from vembed.utils.json_files import read_json_lines
from vembed.utils.sealed import read_sealed
from vembed.utils.untrusted import library_errors

Record = Mapping[str, Any]  # Any: JSON

_MINUTE = 60


@dataclass(frozen=True)
class RunFacts:
    """A summary sentence, tables, the lines of metrics.jsonl, the entries of metrics.json about the run, and notes.

    notes: sentences without which the figures would be misread.
    """

    summary: str
    tables: Sequence[FactTable]
    history: Sequence[Line]
    meta: Mapping[str, object]
    notes: Sequence[str] = ()


def read_run_facts(run: RunFolder) -> RunFacts:
    """The facts of a finished run. Raises CheckpointError when its files are damaged."""
    try:
        record = read_sealed(run.record)
        saved = read_saved_facts(run.final / SPEC_FILE)
        history = read_json_lines(run.metrics, CheckpointError)
        bad = read_json_lines(run.bad_samples, CheckpointError, last_may_be_half=True)
    except CheckpointError as error:
        raise CheckpointError(f"{run.path} is not the folder of a finished run: {error}") from error
    steps = [line for line in history if "loss" in line]
    files = f"{run.record}, {run.metrics} or {run.final / SPEC_FILE}"
    with library_errors(CheckpointError, f"{files} is damaged: a fact of the run is missing, or of another kind"):
        chosen = None if saved["best"] is None else equal_figures_note(history, saved["best"]["metric"])
        return RunFacts(
            _summary(record, steps),
            _tables(record, saved, steps, bad),
            history,
            {"step": saved["step"], "seed": saved["seed"], "versions": record["versions"]},
            () if chosen is None else (chosen,),
        )


def _tables(record: Record, saved: Record, steps: Sequence[Line], bad: Sequence[Line]) -> tuple[FactTable, ...]:
    return (
        FactTable(
            "Data", list(_data_rows(record)), ("set", "role", "kind", "rows", "groups", "characters: median, most")
        ),
        FactTable("Run", list(_run_rows(record, saved, steps, bad))),
        FactTable("What learned", list(_group_rows(record)), ("part", "parameters", "learning rate", "weight decay")),
        FactTable("Made with", list(record["versions"].items())),
    )


def read_overlaps(run: RunFolder, role: str) -> tuple[Overlap, ...]:
    """What sets of a role share with training rows, as the run noted. Raises CheckpointError for a damaged file."""
    noted = read_sealed(run.record).get("overlaps", [])  # none by older versions
    with library_errors(CheckpointError, f"{run.record} is damaged"):
        return tuple(overlap for overlap in (Overlap(**one) for one in noted) if overlap.role == role)


def setting_lines(config_text: str) -> list[SettingLine]:
    """The keys of a resolved config: `# section` lines, and `key: value  # origin`.

    >>> setting_lines("# model\\nfreeze: [text]  # my.yaml:3")
    [SettingLine(section='model', key='freeze', value='[text]', origin='my.yaml:3')]
    """
    lines, section = [], ""
    for text in config_text.splitlines():
        if text.startswith("# "):
            section = text.removeprefix("# ")
        elif ": " in text:
            setting, _, origin = text.rpartition("  # ")
            key, _, value = setting.partition(": ")
            lines.append(SettingLine(section, key, value, origin))
    return lines


def _summary(record: Record, steps: Sequence[Line]) -> str:
    sets = record["data"]["train"]
    rows = sum(one["num_rows"] for one in sets)
    where = f"{len(sets)} data sets" if len(sets) > 1 else sets[0]["name"]
    return f"Tuned on {rows:,} rows of {where} in {record['plan']['num_steps']:,} steps, {_training_time(steps)}."


def _data_rows(record: Record) -> Iterator[tuple[str, ...]]:
    for role, sets in record["data"].items():
        for one in sets:
            lengths = one["query_characters"] or one["document_characters"]
            yield (
                one["name"],
                role,
                mode_label(one["mode"]),
                f"{one['num_rows']:,}",
                f"{one['num_groups']:,}",
                f"{lengths['median']:,}, {lengths['max']:,}" if lengths else "",
            )


def _run_rows(record: Record, saved: Record, steps: Sequence[Line], bad: Sequence[Line]) -> Iterator[tuple[str, str]]:
    plan, last = record["plan"], steps[-1] if steps else {}
    yield "started", record["started"]
    yield "steps", f"{plan['num_steps']:,} of {plan['batch_size']:,} rows ({plan['steps_per_epoch']:,} per epoch)"
    if plan["num_batches_per_step"] > 1:
        yield "batches per step", str(plan["num_batches_per_step"])
    yield "time of training steps", _training_time(steps)
    if saved["best"] is not None:
        best = f"{metric_label(saved['best']['metric'])} {percent(saved['best']['value'])} % on the validation sets"
        yield "weights kept", f"step {saved['step']:,}: {best}"
    else:
        yield "weights kept", f"step {saved['step']:,}, the last"
    yield "seed", str(saved["seed"])
    yield "loss", str(saved["loss"])
    yield "device", f"{record['device']}, mixed precision: {record['mixed_precision']}"
    if last:
        yield "peak memory", f"{last['peak_memory_mib']:,.0f} MiB"
        yield "texts cut to the model's limit", f"{last['truncated_texts']:,} of all that were read in training"
    num_documents = sum("left_out" in line for line in bad)
    yield "rows skipped as unusable", f"{len(bad) - num_documents:,}"
    if num_documents:
        yield "documents left out of other rows", f"{num_documents:,}"


def _training_time(steps: Sequence[Line]) -> str:
    """The time in steps, without evaluations and checkpoints.

    >>> _training_time([{"samples": 100, "samples_per_second": 10.0}, {"samples": 1300, "samples_per_second": 20.0}])
    '1 min 10 s'
    """
    seconds, before = 0.0, 0
    for line in steps:
        seconds += (line["samples"] - before) / line["samples_per_second"] if line["samples_per_second"] else 0.0
        before = line["samples"]
    minutes, rest = divmod(round(seconds), _MINUTE)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _group_rows(record: Record) -> Iterator[tuple[str, ...]]:
    """The trainable parts; where layers have rates of their own, a part's as a range."""
    parts: dict[tuple[str, bool], list[Record]] = {}
    for group in record["groups"]:
        parts.setdefault((group["part"], group["pretrained"]), []).append(group)
    for (part, pretrained), groups in parts.items():
        yield (
            f"{part}, {'pretrained' if pretrained else 'new'}",
            f"{sum(group['num_parameters'] for group in groups):,}",
            _range([group["learning_rate"] for group in groups]),
            _range([group["weight_decay"] for group in groups]),
        )


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} … {high:g}"
