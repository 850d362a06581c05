"""Checks that the gradient cache gives the model's plain gradient, by a plain and a cached step on a few rows.

Whole batch against chunks shows whether an embedding depends on the rest of its chunk, as with batch statistics. The
two can be compared only without random numbers, so a model with dropout is in eval mode for this. For such a model,
one graph over all chunks against two forwards of each, in training mode, shows whether the second forward draws the
random numbers of the first.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vembed.grad_cache.settings import GradCacheSettings
from vembed.model.network.parameters import parameter_infos
from vembed.training.session import Session
from vembed.training.step.auto_chunking import max_hidden_state_bytes
from vembed.training.step.chunking import Chunking, chunk_batch
from vembed.training.step.memory import row_sizes
from vembed.training.trials.overview import table
from vembed.types import Batch

_MAX_DIFFERENCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_MAX_DIFFERENCE_LOW = 0.05  # of weights in float16 or bfloat16, which round at every operation
_MIN_CHUNKS = 3  # at least, of the rows
Gradients = Mapping[str, Mapping[str, Tensor]]  # part -> parameter -> gradient


@dataclass(frozen=True)
class Comparison:
    """Two gradients compared. parts: part of the model -> norm of the expected gradient, and relative difference.

    A relative difference is the norm of the difference over the norm of the expected gradient.
    """

    title: str
    parts: Mapping[str, tuple[float, float]]
    difference: float


@dataclass(frozen=True)
class GradCheck:
    """The comparisons of a check, the batch they were made on, and the largest relative difference that is rounding."""

    chunking: Chunking
    num_rows: tuple[int, int]
    num_chunks: tuple[int, int]
    dtype: torch.dtype
    max_difference: float
    comparisons: Sequence[Comparison]

    @property
    def passed(self) -> bool:
        """True if all gradients are equal to rounding, and not zero."""
        return all(
            comparison.difference <= self.max_difference and any(norm > 0 for norm, _ in comparison.parts.values())
            for comparison in self.comparisons
        )

    def lines(self) -> Iterator[str]:
        """The findings in words."""
        yield f"batch         {self.num_rows[0]} queries, {self.num_rows[1]} documents"
        yield f"chunk         {self.chunking.limit}: {self.num_chunks[0]} of queries, {self.num_chunks[1]} of documents"
        yield f"weights       {str(self.dtype).removeprefix('torch.')}, computed without autocast"
        for comparison in self.comparisons:
            yield ""
            yield comparison.title
            rows = [(part, f"{norm:.3e}", f"{share:.1e}") for part, (norm, share) in comparison.parts.items()]
            yield from table([("part", "gradient", "relative difference"), *rows])
            verdict = "equal" if comparison.difference <= self.max_difference else "DIFFERENT"
            yield f"all   {comparison.difference:.1e}, at most {self.max_difference:.0e} is rounding: {verdict}"
        yield ""
        yield self._verdict()

    def _verdict(self) -> str:
        if self.passed:
            return "the cached gradient is the plain one"
        if all(comparison.difference <= self.max_difference for comparison in self.comparisons):
            return "there is no gradient at all: does anything learn from these rows?"
        return (
            "the cached gradient is not the plain one: an embedding depends on the other rows of its chunk (statistics"
            " over the batch), or a forward is not repeated exactly; set use_gradient_cache: false, or mend the model"
        )


def check_gradients(session: Session, settings: GradCacheSettings) -> GradCheck:
    """Compare on the first batch of each data set of the session. Trains nothing; parameters stay as they are."""
    batches = list(session.loader.first_batches())
    cached = _smaller_chunks(session, settings, batches[0])
    plain = Chunking()
    model = session.model.model

    def gradients(chunking: Chunking, seed: int = 0) -> Gradients:
        torch.manual_seed(seed)
        return _gradients(session, batches, chunking)

    model.train()
    expected = gradients(plain)
    is_random = _compare("", gradients(plain, seed=1), expected).difference > 0  # two seeds differ: there is dropout
    comparisons = []
    if is_random:
        one_graph = gradients(replace(cached, retain=1.0))
        comparisons.append(_compare("chunks again against one graph, with dropout", gradients(cached), one_graph))
        model.eval()
        expected = gradients(plain)
    title = "chunks against the whole batch" + (", without dropout" if is_random else "")
    comparisons.append(_compare(title, gradients(cached), expected))
    dtypes = {info.parameter.dtype for info in parameter_infos(model) if info.parameter.is_floating_point()}
    dtype = min(dtypes, key=lambda dtype: torch.finfo(dtype).bits)
    queries, documents = chunk_batch(batches[0], session.model.processor, cached)
    return GradCheck(
        cached,
        (queries.side.num_rows, documents.side.num_rows),
        (len(queries.rows), len(documents.rows)),
        dtype,
        _MAX_DIFFERENCE.get(dtype, _MAX_DIFFERENCE_LOW),
        comparisons,
    )


def _smaller_chunks(session: Session, settings: GradCacheSettings, batch: Batch) -> Chunking:
    """The user's chunks, or smaller ones of the same kind where the batch would be too few; no graph is retained."""
    sides = (batch.queries, batch.documents)
    size, tokens = settings.gradient_cache_chunk_size, settings.gradient_cache_chunk_tokens
    if tokens is None:
        most = max(1, math.ceil(min(side.num_rows for side in sides) / _MIN_CHUNKS))
        chunking = Chunking(chunk_size=most if size == "auto" else min(size, most))
    else:
        longest = max(int(row_sizes(side, session.model.processor).max()) for side in sides)
        chunking = Chunking(chunk_tokens=2 * longest if tokens == "auto" else min(tokens, 2 * longest))
    return replace(chunking, max_hidden_state_bytes=max_hidden_state_bytes(settings))


def _gradients(session: Session, batches: Sequence[Batch], chunking: Chunking) -> Gradients:
    trainer = session.engine.trainer.with_chunking(chunking, autocast=nullcontext)
    for batch in batches:
        trainer.step(batch)
    parts: dict[str, dict[str, Tensor]] = {}
    infos = parameter_infos(session.model.model)
    named = [(str(info.part), info.name, info.parameter) for info in infos]
    if session.objective.classes is not None:
        named.append(("classes", "weight", session.objective.classes.weight))
    for part, name, parameter in named:
        if parameter.grad is not None:
            parts.setdefault(part, {})[name] = parameter.grad
            parameter.grad = None
    return parts


def _compare(title: str, gradients: Gradients, expected: Gradients) -> Comparison:
    """Norm of the difference over the norm of the expected gradient, of each part and of all."""
    names = sorted(gradients.keys() | expected.keys())
    norms = {part: _norm(expected.get(part, {}).values()) for part in names}
    distances = {part: _distance(gradients.get(part, {}), expected.get(part, {})) for part in names}
    parts = {part: (norms[part], _relative(distances[part], norms[part])) for part in names}
    return Comparison(title, parts, _relative(math.hypot(*distances.values()), math.hypot(*norms.values())))


def _distance(gradients: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Norm of the difference; a gradient that is missing on one side is zero there."""
    shared = gradients.keys() & expected.keys()
    alone = [side[name] for side in (gradients, expected) for name in side.keys() - shared]
    return _norm([*alone, *(gradients[name].double() - expected[name].double() for name in shared)])


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(float(tensor.double().norm()) for tensor in tensors))


def _relative(part: float, whole: float) -> float:
    return part / whole if whole else (0.0 if part == 0 else math.inf)
