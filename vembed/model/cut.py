"""A tower that goes on from what its frozen layers gave, so that these run once for what is encoded twice.

    take     run the tower up to the first layer that learns, and keep these states beside the small tensors that the
             layers above read
    go_on    run the tower, each frozen layer giving the states as they are: nothing below the boundary is computed

What layers hand on beside the states (the relative positions of T5, the size of Swin's grid) is taken from a run of
one text or picture: a tower in which it is another for each cannot be cut.

For the time of one run the forward of the frozen layers is replaced. Whether a network can be cut like that is tried on
the first inputs: both ways must give the same.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vembed.errors import ModelError
from vembed.grad_cache.context_managers import RandContext
from vembed.model.rows import sums_by_row
from vembed.model.settings import Tower
from vembed.model.standing_in import MISFITS, Given, Reached, alike, replaced
from vembed.types import Embeddings, Ragged

_log = logging.getLogger(__name__)

# What enters the first layer that learns stands in the inputs under these names.
STATES: Mapping[Tower, str] = {"text": "text_states", "vision": "image_states"}
_MASKS = ("attention_mask", "pixel_attention_mask")
_SCORED = "scored"  # among them tokens that fill up a query, which no other token may read
_PACKED_NDIM = 2  # [tokens, width]
_NUM_TRIED = 2

Run = Callable[[Mapping[str, Tensor]], Tensor]  # a tower: tensors of its slices by name -> [slices, width]
Read = Mapping[str, Ragged]


class _Found:
    """What trying a network has shown, in training and in evaluation; a copy of the network is like it."""

    def __init__(self) -> None:
        self.fits: dict[bool, bool] = {}
        self.early: tuple[str, ...] = ()
        self.gives_tuple = False
        self.hands_on = False

    def __deepcopy__(self, _memo: object) -> "_Found":
        return self


class TowerCut:
    """A tower's network, its frozen layers and the first one that learns, by their paths."""

    def __init__(self, tower: Tower, network: nn.Module, frozen: Sequence[str], learning: str) -> None:
        self.tower = tower
        self._network = network
        self._paths = tuple(frozen)
        self._learning = learning
        self._found = _Found()

    def fits(self, run: Run, read: Read) -> bool:
        """Whether the tower can be cut: tried once in training and once in evaluation. The log says if it cannot."""
        training, fits = self._network.training, self._found.fits
        if training not in fits:
            fits[training] = self._try(run, {name: ragged.values[:_NUM_TRIED] for name, ragged in read.items()})
            if not fits[training]:
                _log.info(
                    "the %s tower (%s) cannot be cut above its frozen layers; they run each time that it runs",
                    self.tower,
                    type(self._network).__name__,
                )
        return fits[training]

    def take(self, run: Run, read: Read) -> dict[str, Ragged]:
        """What stands in the inputs in the place of what the tower reads, by other names; no graph.

        States are [slices, tokens, width]; where a mask tells which tokens are real, these alone [tokens, width], and
        rows own tokens. Of pictures the shape is kept, and what is small as it is.
        """
        return standing_for(self.tower, self.states(run, read), read)

    def states(self, run: Run, read: Read) -> Embeddings:
        """What enters the first layer that learns, [slices, tokens, width], masked if there is padding; no graph."""
        values = {name: ragged.values for name, ragged in read.items()}
        with torch.no_grad():
            states = self._states(run, values)
        assert states is not None
        mask = _mask(values)
        return Embeddings(states, mask if mask is not None and mask.shape == states.shape[:2] else None)

    def taken(self, tensors: Read) -> dict[str, Ragged]:
        """What `take` gave, among a model's inputs; nothing where there are no states."""
        name = STATES[self.tower]
        if name not in tensors or not len(tensors[name].values):
            return {}
        return {one: ragged for one, ragged in tensors.items() if one == name or one.startswith(f"{name}.")}

    def go_on(self, run: Run, taken: Read) -> Ragged:
        """What the tower gives, [slices, width], for the slices that `take` was given."""
        name = STATES[self.tower]
        kept = {one.removeprefix(f"{name}."): ragged for one, ragged in taken.items() if one != name}
        values = {one: _filled(ragged.values) for one, ragged in kept.items()}
        states, mask = taken[name].values, _mask(values)
        if mask is not None and states.ndim == _PACKED_NDIM:
            whole = states.new_zeros(*mask.shape, states.shape[1])
            states = whole.masked_scatter(mask.unsqueeze(-1), states)
        return Ragged(self._above(run, values, states), next(iter(kept.values())).counts)

    def _above(self, run: Run, values: Mapping[str, Tensor], states: Tensor) -> Tensor:
        """The tower run with its frozen layers, and what comes before them, giving these states."""
        early, frozen = map(self._modules, (self._found.early, self._paths))
        output = (states, *self._handed_on(run, values)) if self._found.gives_tuple else states
        last = Given(output)
        forwards = dict.fromkeys(early, Given(states)) | dict.fromkeys(frozen, Given(output)) | {frozen[-1]: last}
        with replaced({(module, "forward"): given for module, given in forwards.items()}):
            features = run(values)
        if last.num_calls != 1:
            raise ModelError(
                f"freeze_layers: layer {len(frozen)} of the {self.tower} tower ran {last.num_calls} times, not once, so"
                f" that what it gives cannot be kept; leave {self.tower} out"
            )
        return features

    def _modules(self, paths: Sequence[str]) -> list[nn.Module]:
        return [self._network.get_submodule(path) for path in paths]

    def _try(self, run: Run, values: Mapping[str, Tensor]) -> bool:
        """Whether the cut tower gives what the whole one gives, with its embeddings left out or, if need be, run."""
        compiled = self._network._compiled_call_impl is not None
        changes = any(isinstance(module, _BatchNorm) and module.training for module in self._network.modules())
        return not compiled and not changes and any(self._is_exact(run, values, bare) for bare in (True, False))

    def _is_exact(self, run: Run, values: Mapping[str, Tensor], bare: bool) -> bool:
        state = RandContext(*values.values())
        outputs: dict[str, object] = {}
        with state, _noted(self._network, outputs), torch.enable_grad():
            states = self._states(run, values)
        # What learns below the boundary would make the states stale.
        if states is None or states.requires_grad:
            return False
        self._found.early = tuple(self._before(outputs, states)) if bare else ()
        read = {name: Ragged(value, torch.ones(len(value), dtype=torch.int64)) for name, value in values.items()}
        with torch.no_grad():
            with state:
                whole = run(values)
            taken = self.take(run, read)
            try:
                with state:
                    cut = self.go_on(run, taken).values
            except MISFITS:
                return False
            with state:
                drawn = self._states(run, values)
            with state:
                for value in values.values():
                    torch.rand(1, device=value.device)
                drawn_anew = self._states(run, values)
        assert drawn is not None
        assert drawn_anew is not None
        return alike(cut, whole) and alike(drawn_anew, drawn)

    def _before(self, outputs: Mapping[str, object], states: Tensor) -> Iterator[str]:
        """What runs before the layers and gives states as they do: embeddings, and a norm or dropout after them."""
        chosen: list[str] = []
        for name, _ in self._network.named_modules():
            output = outputs.get(name)
            if name == self._learning:
                return
            is_inside = name.startswith(tuple(f"{other}." for other in (*chosen, *self._paths)))
            if is_inside or name in self._paths or not isinstance(output, Tensor):
                continue
            if output.shape == states.shape and output.dtype == states.dtype:
                chosen.append(name)
                yield name

    def _states(self, run: Run, values: Mapping[str, Tensor]) -> Tensor | None:
        """The states that the last frozen layer gives, None where it gives no such tensor."""
        output = self._reach(run, values)
        states, *beside = output if isinstance(output, tuple) else (output,)
        self._found.gives_tuple = isinstance(output, tuple)
        self._found.hands_on = any(one is not None for one in beside)
        return states if isinstance(states, Tensor) else None

    def _reach(self, run: Run, values: Mapping[str, Tensor]) -> object:
        """What the last frozen layer gives, None where it is not run; no layer above it runs."""

        def stop(_module: nn.Module, _inputs: object, output: object) -> None:
            raise Reached(output)

        handle = self._network.get_submodule(self._paths[-1]).register_forward_hook(stop)
        try:
            run(values)
        except Reached as reached:
            return reached.output
        finally:
            handle.remove()
        return None

    def _handed_on(self, run: Run, values: Mapping[str, Tensor]) -> tuple[object, ...]:
        """What the last frozen layer gives beside the states, by a run of one slice: for all slices the same."""
        if not self._found.hands_on:
            return ()
        with torch.no_grad():
            output = self._reach(run, {name: value[:1] for name, value in values.items()})
        assert isinstance(output, tuple)
        return output[1:]


def standing_for(tower: Tower, states: Embeddings, read: Read) -> dict[str, Ragged]:
    """States of slices [slices, tokens, width] with what the tower reads, as `TowerCut.take` gives them."""
    name, counts = STATES[tower], next(iter(read.values())).counts
    kept = {f"{name}.{one}": Ragged(_hollow(ragged.values), ragged.counts) for one, ragged in read.items()}
    mask = states.mask
    if mask is None:
        return {**kept, name: Ragged(states.vectors, counts)}
    tokens = sums_by_row(mask.sum(dim=1).to(counts), counts)
    return {**kept, name: Ragged(states.vectors[mask], tokens)}


@contextmanager
def _noted(network: nn.Module, outputs: dict[str, object]) -> Iterator[None]:
    """What each module of a network gives last, by its name."""

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:  # Any: what a layer gives
            outputs[name] = output

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in network.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask(values: Mapping[str, Tensor]) -> Tensor | None:
    """Which tokens are real, bool [slices, tokens]; None where all are. Late interaction scores others besides."""
    mask = next((values[name].bool() for name in _MASKS if name in values), None)
    return mask if mask is None or _SCORED not in values else mask | values[_SCORED]


def _hollow(values: Tensor) -> Tensor:
    """Pictures without their pixels: a tensor of no elements that tells shape and dtype. Others as they are."""
    return values.new_empty(len(values), 0, *values.shape[1:]) if values.is_floating_point() else values


def _filled(values: Tensor) -> Tensor:
    """Black pictures of the shape that a hollow tensor tells."""
    if not values.is_floating_point():
        return values
    return values.new_zeros(()).expand(len(values), *values.shape[2:])
