"""The overview of a run before it starts, as figures and as lines: model, groups, data, steps, memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.parameters import parameter_infos
from vembed.training.optimizer import GroupSummary
from vembed.training.plan import Plan
from vembed.training.settings import Part
from vembed.training.step.memory import MemoryEstimate
from vembed.utils.memory import MIB

Row = Sequence[str]


@dataclass(frozen=True)
class ModelSummary:
    """The model, why it is taken for one of its family, and how much of it is trainable.

    frozen: parts that are frozen whole. frozen_layers: of the other towers, in words.
    """

    family: str
    reason: str
    num_parameters: int
    num_trainable: int
    frozen: Sequence[Part]
    frozen_layers: Sequence[str] = ()


@dataclass(frozen=True)
class Overview:
    """A run before it starts. rows: role ("train", "validation", "test") -> data set -> rows.

    teacher: the teacher model, in words. chunks: of a batch, in words, each different description once.
    """

    model: ModelSummary
    teacher: str | None
    groups: Sequence[GroupSummary]
    plan: Plan
    warmup_steps: int
    rows: Mapping[str, Mapping[str, int]]
    device: str
    mixed_precision: str
    chunks: Sequence[str]
    memory: MemoryEstimate

    def lines(self) -> list[str]:
        """The overview in words."""
        parts = (self._model_lines, self._group_lines, self._data_lines, self._step_lines, self._memory_lines)
        return [line for part in parts for line in (*part(), "")][:-1]

    def _model_lines(self) -> Iterator[str]:
        model = self.model
        share = model.num_trainable / model.num_parameters
        yield f"model         {model.family} ({model.reason})"
        yield f"parameters    {model.num_trainable:,} of {model.num_parameters:,} learn ({share:.1%})"
        if model.frozen:
            yield f"frozen        {', '.join(model.frozen)}"
        if model.frozen_layers:
            yield f"frozen below  {'; '.join(model.frozen_layers)}"
        if self.teacher is not None:
            yield f"teacher       {self.teacher}"
        yield f"device        {self.device}, mixed precision: {self.mixed_precision}"

    def _group_lines(self) -> Iterator[str]:
        header = ("part", "weights", "layer", "tensors", "parameters", "learning rate", "weight decay")
        rows = [
            (
                group.part,
                "pretrained" if group.pretrained else "new",
                "-" if group.layer is None else str(group.layer),
                f"{group.num_tensors:,}",
                f"{group.num_parameters:,}",
                f"{group.learning_rate:.3g}",
                f"{group.weight_decay:g}",
            )
            for group in self.groups
        ]
        yield from table([header, *rows])

    def _data_lines(self) -> Iterator[str]:
        rows = [(role, name, f"{size:,}") for role, sets in self.rows.items() for name, size in sets.items()]
        yield from table([("data", "set", "rows"), *rows])

    def _step_lines(self) -> Iterator[str]:
        plan = self.plan
        batches = f" x {plan.num_batches_per_step} batches" if plan.num_batches_per_step > 1 else ""
        yield f"rows per step  {plan.batch_size}{batches}"
        yield from (f"chunks         {words}" for words in self.chunks)
        yield f"steps          {plan.steps_per_epoch:,} per epoch, {plan.num_steps:,} in all ({plan.num_epochs} epochs)"
        yield f"warmup         {self.warmup_steps:,} steps"

    def _memory_lines(self) -> Iterator[str]:
        yield f"peak memory    about {self.memory.total_mib:,.0f} MiB (an estimate), of which"
        for name, size in self.memory.parts.items():
            if size:
                yield f"  {name:<24}{size / MIB:>10,.1f} MiB"


def summarize_model(model: BaseEmbeddingModel, reason: str, frozen: Sequence[Part]) -> ModelSummary:
    """The summary of a model that is frozen already. frozen: parts with rate 0, beside its frozen towers."""
    infos = parameter_infos(model)
    return ModelSummary(
        family=model.spec.family,
        reason=reason,
        num_parameters=sum(info.parameter.numel() for info in infos),
        num_trainable=sum(info.parameter.numel() for info in infos if info.parameter.requires_grad),
        frozen=sorted({*frozen, *model.freezing.towers}),
        frozen_layers=tuple(layers.words() for layers in model.freezing.layers.values()),
    )


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Rows of words in columns, the first row a header.

    >>> list(table([("part", "rate"), ("heads", "0.001")]))
    ['part   rate', 'heads  0.001']
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
