"""A vision-language model that goes on from its frozen vision encoder's outputs, so that this runs once in a step.

    take      run the vision encoder alone, and keep the hidden states that it gives in the place of the pictures
    given     run the whole model, its vision encoder giving the kept states: no picture is looked at

A model of transformers calls one method for the states of its pictures' tokens, mostly `get_image_features`. At that
vision call it is split: for the time of one run the method is replaced,

    take:   def get_image_features(pixels): raise EarlyExit(theirs(pixels))  # caught: the language model does not run
    given:  def get_image_features(pixels): return kept states               # black pictures of the right shapes

Whether a model can be split like that is tried on the first rows with pictures: both ways must give the same.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from vembed.errors import ModelError
from vembed.grad_cache.cachex.tree_utils import list_tensors, select_rows
from vembed.grad_cache.context_managers import RandContext
from vembed.model.backbones.pretrained import Backbone
from vembed.model.network.short_circuit import (
    FORWARD_ERRORS,
    EarlyExit,
    KnownOutput,
    equal_within_rounding,
    methods_replaced,
)
from vembed.model.vectors.rows import sums_by_row
from vembed.types import Inputs, Ragged

_log = logging.getLogger(__name__)

VISION_STATES = "picture_states"  # the kept states stand in the inputs under this name, [tokens, parts * width]
_PIXELS = "pixel_"  # how the names of what only the vision encoder reads begin
_NUM_TRIED = 2  # rows on which a model is tried
_MAKES_TOKENS = "get_image_features"  # transformers' name for it

Run = Callable[[Inputs], Tensor]  # the whole model: [tokens, width] of the real tokens of all rows


@dataclass
class PictureTokens(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """A vision encoder's output, as the models of transformers read it and hand it on.

    pooler_output: the states of the pictures' tokens, [tokens, width], or a list of such. deepstack_features: what is
    added to them after some layers of the language model (Qwen3-VL), a list of [tokens, width] for each of these.
    """

    pooler_output: Tensor | list[Tensor]
    deepstack_features: list[list[Tensor]] | None = None  # transformers lets only the first have none


class _Trial:
    """What trying a model has shown.

    fits: by whether the model is in training, whether it can be split. gives_list: its pooler_output is a list.
    num_parts: pooler_output and the deepstack_features, which are kept side by side.
    """

    def __init__(self) -> None:
        self.fits: dict[bool, bool] = {}
        self.gives_list = False
        self.num_parts = 1

    def __deepcopy__(self, _memo: object) -> "_Trial":
        return self  # a copied model need not be tried again


class SplitAtVision:
    """A model of transformers, split between its vision encoder and its language model.

    vision_call: the module that makes states of pictures and the name of its method; None: there is none, and the model
    stays whole.
    """

    def __init__(self, backbone: Backbone, vision_call: tuple[nn.Module, str] | None) -> None:
        self._backbone = backbone
        self._vision_call = vision_call
        self._trial = _Trial()

    def take(self, run: Run, inputs: Inputs) -> Inputs:
        """The inputs with the vision encoder's states in the place of the pixels, [tokens, parts * width]; no graph.

        run: the whole model. Inputs stay as they are if they hold no pixels, or if the model cannot be split, which the
        log says once.
        """
        pixels = inputs.tensors.get("pixel_values")
        if pixels is None or not len(pixels.values) or not self._fits(run, inputs):
            return inputs
        taken = self._taken(run, inputs)
        assert taken is not None
        return taken

    @contextmanager
    def given(self, inputs: Inputs) -> Iterator[Inputs]:
        """The inputs as the model reads them; in the block its vision encoder gives the states that `take` kept."""
        states = inputs.tensors.get(VISION_STATES)
        if states is None:
            yield inputs
            return
        tensors = {
            name.removeprefix(f"{VISION_STATES}."): _black_pictures(ragged)
            if name.startswith(f"{VISION_STATES}.")
            else ragged
            for name, ragged in inputs.tensors.items()
            if name != VISION_STATES
        }
        known = KnownOutput(self._tokens(states.values))
        with methods_replaced(
            {self._vision_call: known} if self._vision_call is not None and len(states.values) else {}
        ):
            yield replace(inputs, tensors=tensors)
        # A model that asked twice, or never, has not read the kept states as its own; nothing else would tell.
        if len(states.values) and known.num_calls != 1:
            raise ModelError(
                f"{type(self._backbone).__name__} asked for the pictures' tokens {known.num_calls} times, not once, so"
                " that they cannot be kept; set gradient_cache_states_gib: 0"
            )

    def _tokens(self, states: Tensor) -> PictureTokens:
        """Kept states [tokens, parts * width] as the vision encoder gave them; the inverse of `_states`."""
        first, *deep = states.chunk(self._trial.num_parts, dim=1)  # [tokens, width] each
        return PictureTokens([first] if self._trial.gives_list else first, [[one] for one in deep])

    def _fits(self, run: Run, inputs: Inputs) -> bool:
        """Whether the model can be split: tried on these inputs the first time, in training and in evaluation each."""
        training, fits = self._backbone.training, self._trial.fits
        if training not in fits:
            rows = (inputs.tensors["pixel_values"].counts > 0).nonzero()[:_NUM_TRIED, 0]  # the first with pictures
            fits[training] = self._is_exact(run, select_rows(inputs, rows))
            if not fits[training]:
                _log.info(
                    "%s cannot be cut above its frozen vision tower, which runs each time that a picture is read",
                    type(self._backbone).__name__,
                )
        return fits[training]

    def _is_exact(self, run: Run, inputs: Inputs) -> bool:
        """Whether the split model gives what the whole one gives, and its vision encoder the same each time."""
        # Dropout in the language model must draw the same for both, or they would differ without a reason.
        state = RandContext(*list_tensors(inputs))
        with torch.no_grad():
            with state:
                whole = run(inputs)
            try:
                with state:
                    taken = self._taken(run, inputs)
                if taken is None:
                    return False
                with state:
                    split = run(taken)
                # A vision encoder with dropout gives other states each time, of which none may be kept. So its second
                # run starts from other random numbers for certain.
                with state:
                    for tensor in list_tensors(inputs):
                        torch.rand(1, device=tensor.device)
                    again = self._taken(run, inputs)
            except FORWARD_ERRORS:
                return False
        assert again is not None
        return equal_within_rounding(split, whole) and equal_within_rounding(
            again.tensors[VISION_STATES].values, taken.tensors[VISION_STATES].values
        )

    def _taken(self, run: Run, inputs: Inputs) -> Inputs | None:
        """The inputs with states for pixels; None where the states are not one for each image token of the rows."""
        with torch.no_grad():
            output = self._vision_output(run, inputs)
        states = None if output is None else self._states(output)  # [tokens, parts * width], in order of rows
        ids = inputs.tensors["input_ids"]  # values [rows, tokens]
        num_tokens = sums_by_row((ids.values == self._backbone.config.image_token_id).sum(dim=1), ids.counts)  # [rows]
        if states is None or len(states) != int(num_tokens.sum()):
            return None
        tensors = {name: ragged for name, ragged in inputs.tensors.items() if not name.startswith(_PIXELS)}
        # A model may still look at whether it got pixels, and at their shapes. A tensor with an axis of 0 says both
        # without holding a number, and is cut and joined by rows as pixels are: [slices, 0, ...].
        shapes = {
            f"{VISION_STATES}.{name}": replace(
                ragged, values=ragged.values.new_empty(len(ragged.values), 0, *ragged.values.shape[1:])
            )
            for name, ragged in inputs.tensors.items()
            if name.startswith(_PIXELS)
        }
        return replace(inputs, tensors={**tensors, **shapes, VISION_STATES: Ragged(states, num_tokens)})

    def _vision_output(self, run: Run, inputs: Inputs) -> Any:  # Any: of a type that differs by model
        """The vision encoder's output; the language model does not run. None where the model does not ask for it."""
        if self._vision_call is None:
            return None
        module, name = self._vision_call
        make = getattr(module, name)

        # An exception is what leaves a forward of any model in its middle.
        def stop(*arguments: object, **options: object) -> None:
            raise EarlyExit(make(*arguments, **options))

        with methods_replaced({self._vision_call: stop}):
            try:
                run(inputs)
            except EarlyExit as exit_:
                return exit_.output
        return None

    def _states(self, output: Any) -> Tensor | None:  # Any: as above
        """Each token's state, and beside it those that are added to it later: [tokens, parts * width]; None: no states.

        Side by side, so that they are rows of one tensor, and go with their picture wherever it goes.
        """
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            return None
        parts = [pooled, *(getattr(output, "deepstack_features", None) or ())]
        self._trial.gives_list = not isinstance(pooled, Tensor)
        self._trial.num_parts = len(parts)
        return torch.cat([_flat(part) for part in parts], dim=1)


def vision_call_of(backbone: Backbone) -> tuple[nn.Module, str] | None:
    """Where a vision-language model of transformers makes states of pictures: in the innermost model that can."""
    # The outer ones (a model with a language head) pass the call on; modules come from the outside in.
    found = [module for module in backbone.modules() if callable(getattr(module, _MAKES_TOKENS, None))]
    return (found[-1], _MAKES_TOKENS) if found else None


def _flat(part: Any) -> Tensor:  # Any: a tensor [.., width] or several
    """All tokens of all pictures [tokens, width]."""
    tensors = [part] if isinstance(part, Tensor) else list(part)
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors])


def _black_pictures(shapes: Ragged) -> Ragged:
    """Black pictures [slices, ...] of the shapes that a tensor [slices, 0, ...] says: one zero, seen as many."""
    values = shapes.values
    return replace(shapes, values=values.new_zeros(()).expand(len(values), *values.shape[2:]))
