"""GradCache: gradient caching for any torch modules and any loss over whole batches of their representations.

The interface is that of the paper's package (https://github.com/luyug/GradCache), so that loops written for it go on:

    cache = GradCache([query_encoder, document_encoder], chunk_sizes=[32, 8], loss_fn=SimpleContrastiveLoss())
    optimizer.zero_grad()
    loss = cache(queries, documents)  # adds the gradients
    optimizer.step()

The algorithm is `cachex.functional.cached_backward`; here is what turns models and their inputs into its sides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vembed.errors import UsageError
from vembed.grad_cache.batch_norm import is_batch_norm
from vembed.grad_cache.cachex.functional import ChunkedSide, backward_from, cached_backward
from vembed.grad_cache.cachex.tree_utils import as_leaves, concat_rows, list_tensors, map_tensors, split_rows
from vembed.grad_cache.context_managers import RandContext
from vembed.utils.distributed import average_gradients

_PHASES = ("forward_no_grad", "build_cache", "forward_backward")


class Scaler(Protocol):
    """Scales a loss before its gradient is taken, as `torch.amp.GradScaler` does."""

    def scale(self, outputs: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a model's input, and its tensors, whose devices' random states a replay needs."""

    inputs: Any  # Any: whatever the caller's model takes
    tensors: list[Tensor]


class GradCache:
    """Adds the gradient of `loss_fn(representations of each input)` over whole batches, in the memory of one chunk.

    models: one per input of `cache_step` (the same one may be given twice), or one for all inputs. An input is what
    its model takes: a tensor or dataclass; or its arguments, as a mapping, list, tuple, or (list, mapping).
    chunk_sizes: rows per chunk, one for all inputs or one for each.
    loss_fn: representations (float32 or float64) of each input, and keywords, to a scalar.
    split_input_fn: an input and a chunk size to a list of chunks, for inputs that are no tree of rows.
    get_rep_fn: what a model returns to its representations, a tensor or tree of tensors; by default that is the same.
    fp16: run the models under float16 autocast; it needs a `scaler`, which scales the loss and whose `step` and
    `update` remain the caller's. For bfloat16 put the call under `torch.autocast`.
    retain: the share of all chunks, from 0 to 1, that keep their graphs and need no second forward: memory for time.

    To change how models are called, override split_inputs, get_input_tensors, model_call, get_reps or compute_loss.
    Batch norm in training mode is refused: its statistics would be those of a chunk, and count twice.

    >>> encoder = nn.Linear(3, 2)
    >>> cache = GradCache(encoder, 2, loss_fn=lambda queries, documents: (queries @ documents.T).mean())
    >>> cache(torch.ones(5, 3), torch.ones(5, 3)).requires_grad, encoder.weight.grad.shape
    (False, torch.Size([2, 3]))
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        chunk_sizes: int | Sequence[int],
        loss_fn: Callable[..., Tensor],
        split_input_fn: Callable[[Any, int], Sequence[Any]] | None = None,  # Any: the caller's own inputs
        get_rep_fn: Callable[[Any], Any] | None = None,
        fp16: bool = False,
        scaler: Scaler | None = None,
        *,
        retain: float = 0.0,
    ) -> None:
        self.models = [models] if isinstance(models, nn.Module) else list(models)
        self.chunk_sizes = list(chunk_sizes) if isinstance(chunk_sizes, Sequence) else [chunk_sizes]
        self.loss_fn = loss_fn
        self.split_input_fn = split_input_fn
        self.get_rep_fn = get_rep_fn
        self.fp16 = fp16
        self.scaler = scaler
        self.retain = retain
        self._check()

    def __init_subclass__(cls) -> None:
        """Refuse a subclass whose changes `cache_step` would pass by."""
        ignored = [name for name in _PHASES if name in vars(cls) and "cache_step" not in vars(cls)]
        if ignored:
            raise UsageError(
                f"{cls.__name__} overrides {', '.join(ignored)}, which cache_step does not call; override"
                " split_inputs, get_input_tensors, model_call, get_reps or compute_loss, or cache_step as well"
            )

    def __call__(self, *model_inputs: Any, no_sync_except_last: bool = False, **loss_kwargs: Any) -> Tensor:
        """As `cache_step`."""
        return self.cache_step(*model_inputs, no_sync_except_last=no_sync_except_last, **loss_kwargs)

    def cache_step(self, *model_inputs: Any, no_sync_except_last: bool = False, **loss_kwargs: Any) -> Tensor:
        """Add the gradient to the `.grad` of all parameters; gives the loss, detached and unscaled.

        model_inputs: one per model, each with all rows of the batch. loss_kwargs go to `loss_fn`.

        no_sync_except_last, for models in DistributedDataParallel: exchange gradients once, after the last chunk,
        instead of once per chunk (when every rank must have as many chunks). All parameters are averaged then, whether
        the last chunk used them or not. DDP's own exchange at the last backward would wait in vain for the other tower
        of a two-tower model, and exchange nothing.
        """
        sides = self.sides(*model_inputs)
        parallel = self._parallel_models(no_sync_except_last)
        with ExitStack() as unsynchronized:
            if no_sync_except_last:
                for model in parallel:
                    unsynchronized.enter_context(model.no_sync())
            loss_scale = 1.0 if self.scaler is None else self.scaler.scale
            loss_function = partial(self.compute_loss, **loss_kwargs)
            loss = cached_backward(sides, loss_function, loss_scale=loss_scale, retain=self.retain)
        if parallel:
            average_gradients(self._exchanged_here(no_sync_except_last))
        self._refuse_no_gradient()
        return loss

    def sides(self, *model_inputs: Any) -> list[ChunkedSide]:
        """The inputs as `cachex.functional` takes them. Raises UsageError when their number is wrong."""
        num_inputs = len(model_inputs)
        models, chunk_sizes = self._for_each("models", num_inputs), self._for_each("chunk_sizes", num_inputs)
        self._refuse_batch_norm()
        return [
            ChunkedSide(partial(self._encode, model), model_input, chunk_size, self._split)
            for model, model_input, chunk_size in zip(models, model_inputs, chunk_sizes, strict=True)
        ]

    def split_inputs(self, model_input: Any, chunk_size: int) -> list[Any]:
        """A model's input in chunks."""
        if self.split_input_fn is not None:
            return list(self.split_input_fn(model_input, chunk_size))
        try:
            return split_rows(model_input, chunk_size)
        except UsageError as error:
            raise UsageError(
                f"an input of type {type(model_input).__name__} cannot be cut into rows: {error}; give split_input_fn,"
                " or tensors of which rows own any number of slices as vembed.types.Ragged"
            ) from error

    def get_input_tensors(self, model_input: Any) -> list[Tensor]:
        """All tensors of a model's input."""
        return list_tensors(model_input)

    def model_call(self, model: nn.Module, model_input: Any) -> Any:
        """The model's output for one chunk, under float16 autocast with `fp16`."""
        args, kwargs = _arguments(model_input)
        with self._autocast(model):
            return model(*args, **kwargs)

    def get_reps(self, model_out: Any) -> Any:
        """The representations in what a model returned, a tensor (or tree of tensors) whose first axis is rows."""
        return model_out if self.get_rep_fn is None else self.get_rep_fn(model_out)

    def compute_loss(self, *reps: Any, **loss_kwargs: Any) -> Tensor:
        """The loss of all representations, a scalar. Raises UsageError for anything else."""
        loss = self.loss_fn(*reps, **loss_kwargs)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(f"loss_fn must return a scalar tensor, not {kind}; take the mean")
        return loss

    def forward_no_grad(self, model: nn.Module, model_inputs: Sequence[Any]) -> tuple[Any, list[RandContext]]:
        """Move 1 for loops of one's own: the representations of all chunks, and the random state before each chunk."""
        reps, random_states = [], []
        for chunk in model_inputs:
            random_states.append(RandContext(*self.get_input_tensors(chunk)))
            with torch.no_grad():
                reps.append(self.get_reps(self.model_call(model, chunk)))
        torch.clear_autocast_cache()  # under an autocast around the loop, its casts have no graph
        return concat_rows(reps), random_states

    def build_cache(self, *reps: Any, **loss_kwargs: Any) -> tuple[list[Any], Tensor]:
        """Move 2: the gradient of the (scaled) loss by each input's representations, and the loss, detached."""
        leaves = [as_leaves(rep) for rep in reps]
        loss = self.compute_loss(*leaves, **loss_kwargs)
        torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))
        return [map_tensors(_gradient, leaf) for leaf in leaves], loss.detach()

    def forward_backward(
        self,
        model: nn.Module,
        model_inputs: Sequence[Any],
        cached_gradients: Sequence[Any],
        random_states: Sequence[RandContext],
        no_sync_except_last: bool = False,
    ) -> None:
        """Move 3: each chunk again with a graph, and its cached gradient (cut like the chunks) through it.

        With no_sync_except_last, gradients are exchanged once, over all parameters of this model.
        """
        parallel = model if no_sync_except_last and isinstance(model, DistributedDataParallel) else None
        with nullcontext() if parallel is None else parallel.no_sync():
            for chunk, gradients, random_state in zip(model_inputs, cached_gradients, random_states, strict=True):
                with random_state:
                    reps = list_tensors(self.get_reps(self.model_call(model, chunk)))
                cached = list_tensors(gradients)
                backward_from([rep.to(one.dtype) for rep, one in zip(reps, cached, strict=True)], cached)
        if parallel is not None:
            average_gradients(parallel.parameters())

    def _encode(self, model: nn.Module, chunk: _Chunk) -> Any:
        return self.get_reps(self.model_call(model, chunk.inputs))

    def _split(self, model_input: Any, chunk_size: int) -> list[_Chunk]:
        chunks = self.split_inputs(model_input, chunk_size)
        if not chunks:
            raise UsageError(f"split_input_fn made no chunk of an input of type {type(model_input).__name__}")
        return [_Chunk(chunk, self.get_input_tensors(chunk)) for chunk in chunks]

    def _autocast(self, model: nn.Module) -> torch.autocast | nullcontext[None]:
        if not self.fp16:
            return nullcontext()
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")
        return torch.autocast(device, dtype=torch.float16)

    def _check(self) -> None:
        if not self.models:
            raise UsageError("models: give at least one")
        others = {type(model).__name__ for model in self.models if not isinstance(model, nn.Module)}
        if others:
            raise UsageError(
                f"models: {', '.join(sorted(others))} is no torch.nn.Module; give modules, not names or functions"
            )
        sizes = [size for size in self.chunk_sizes if isinstance(size, bool) or not isinstance(size, int) or size < 1]
        if sizes or not self.chunk_sizes:
            raise UsageError(f"chunk_sizes: {self.chunk_sizes} must be whole numbers of at least 1")
        if 1 not in (len(self.models), len(self.chunk_sizes)) and len(self.models) != len(self.chunk_sizes):
            raise UsageError(
                f"chunk_sizes: {len(self.chunk_sizes)} of them for {len(self.models)} models; give one for all or one"
                " for each"
            )
        if not 0 <= self.retain <= 1:
            raise UsageError(f"retain: {self.retain} must be a share of the chunks, from 0 to 1")
        if self.fp16 and self.scaler is None:
            raise UsageError("fp16 needs a scaler, as torch.amp.GradScaler(): small gradients vanish in float16")

    def _for_each(self, name: str, num_inputs: int) -> list[Any]:
        """The models or chunk sizes of that many inputs."""
        given = self.models if name == "models" else self.chunk_sizes
        if num_inputs == 0 or len(given) not in (1, num_inputs):
            raise UsageError(
                f"cache_step got {num_inputs} inputs for {len(given)} {name}; give one input per model, in their order"
            )
        return list(given) if len(given) == num_inputs else [given[0]] * num_inputs

    def _refuse_batch_norm(self) -> None:
        for model in self.models:
            for name, module in model.named_modules():
                if is_batch_norm(module) and module.training:
                    raise UsageError(
                        f"{name or type(module).__name__} is batch norm in training mode, whose statistics would be"
                        " those of a chunk and count twice; put it into eval mode, or use another norm"
                    )

    def _refuse_no_gradient(self) -> None:
        """A plain step would fail at its backward; here the graph ends at the representations, and always has one."""
        learning = [parameter for model in self.models for parameter in model.parameters() if parameter.requires_grad]
        if learning and all(parameter.grad is None for parameter in learning):
            raise UsageError(
                f"{len(learning)} parameters learn, but none got a gradient: what the models return has no graph."
                " Reentrant gradient checkpointing behind frozen embeddings cuts it; use use_reentrant=False"
            )

    def _parallel_models(self, no_sync_except_last: bool) -> list[DistributedDataParallel]:
        """Those in DistributedDataParallel, each once; with no_sync_except_last all must be."""
        parallel = [model for model in self.models if isinstance(model, DistributedDataParallel)]
        if no_sync_except_last and len(parallel) < len(self.models):
            raise UsageError("no_sync_except_last is for models in DistributedDataParallel, and not all models are")
        if parallel and self.retain and not no_sync_except_last:
            raise UsageError(
                "retain with DistributedDataParallel needs no_sync_except_last=True: DDP's own exchange is"
                " for the last forward's backward, and here several graphs wait for theirs"
            )
        return list(dict.fromkeys(parallel))

    def _exchanged_here(self, no_sync_except_last: bool) -> Iterator[nn.Parameter]:
        """The parameters whose gradients DDP does not average itself, each once; a loss may have some of its own."""
        owners = [*(self.models if no_sync_except_last else []), self.loss_fn]
        modules = nn.ModuleList(owner for owner in owners if isinstance(owner, nn.Module))
        return modules.parameters()


def _arguments(model_input: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Positional and keyword arguments of a model's call."""
    if isinstance(model_input, Mapping):
        return (), model_input
    if type(model_input) not in (list, tuple):  # a named tuple is a value of its own
        return (model_input,), {}
    if len(model_input) == 2 and isinstance(model_input[0], list | tuple) and isinstance(model_input[1], Mapping):
        return model_input[0], model_input[1]
    return model_input, {}


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
