"""A vision-language model that goes on from what its frozen vision encoder gave, so that this runs once per picture.

    take      run the model up to its language model, and keep what enters that in the place of the pictures
    given     run the model, its vision encoder giving that as it is: no picture is looked at

For the time of one run the method that makes tokens of pictures is replaced. Whether a model can be cut like that is
tried on the first rows with pictures: both ways must give the same.
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
from vembed.model.network.stand_ins import MISFITS, Given, Reached, alike, replaced
from vembed.model.vectors.rows import sums_by_row
from vembed.types import Inputs, Ragged

_log = logging.getLogger(__name__)

PICTURE_STATES = "picture_states"  # what enters the language model stands in the inputs under this name
_PIXELS = "pixel_"  # how the names of what only the vision encoder reads begin
_NUM_TRIED = 2
_MAKES_TOKENS = "get_image_features"  # transformers' name for it

Run = Callable[[Inputs], Tensor]  # the whole model: [tokens, width] of the real tokens of all rows


@dataclass
class PictureTokens(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """What the vision encoder gives, as the models of transformers read it and hand it on.

    pooler_output: what stands for the pictures' tokens, [tokens, width], or a list of it. deepstack_features: what is
    added to them after layers of the language model (Qwen3-VL), a list of such for each.
    """

    pooler_output: Tensor | list[Tensor]
    deepstack_features: list[list[Tensor]] | None = None  # transformers lets only the first have none


class _Found:
    """What trying a model has shown, in training and in evaluation; a copy of the model is like it."""

    def __init__(self) -> None:
        self.fits: dict[bool, bool] = {}
        self.gives_list = False
        self.num_parts = 1

    def __deepcopy__(self, _memo: object) -> "_Found":
        return self


class PictureCut:
    """A model of transformers, and which of its modules makes tokens of pictures by which method; None: none does."""

    def __init__(self, backbone: Backbone, seam: tuple[nn.Module, str] | None) -> None:
        self._backbone = backbone
        self._seam = seam
        self._found = _Found()

    def take(self, run: Run, inputs: Inputs) -> Inputs:
        """The inputs with what enters the language model in the place of the pictures, [tokens, width]; no graph.

        As they are, if they hold no pictures or what was taken of them, or if the model cannot be cut, which the log
        says once.
        """
        pixels = inputs.tensors.get("pixel_values")
        if pixels is None or not len(pixels.values) or not self._fits(run, inputs):
            return inputs
        taken = self._taken(run, inputs)
        assert taken is not None
        return taken

    @contextmanager
    def given(self, inputs: Inputs) -> Iterator[Inputs]:
        """The inputs as the model reads them; in the block its vision encoder gives what `take` kept of pictures."""
        states = inputs.tensors.get(PICTURE_STATES)
        if states is None:
            yield inputs
            return
        tensors = {
            name.removeprefix(f"{PICTURE_STATES}."): _filled(ragged)
            if name.startswith(f"{PICTURE_STATES}.")
            else ragged
            for name, ragged in inputs.tensors.items()
            if name != PICTURE_STATES
        }
        known = Given(self._tokens(states.values))
        with replaced({self._seam: known} if self._seam is not None and len(states.values) else {}):
            yield replace(inputs, tensors=tensors)
        if len(states.values) and known.num_calls != 1:
            raise ModelError(
                f"{type(self._backbone).__name__} asked for the pictures' tokens {known.num_calls} times, not once, so"
                " that they cannot be kept; set gradient_cache_states_gib: 0"
            )

    def _tokens(self, states: Tensor) -> PictureTokens:
        """Kept states [tokens, parts * width] as the vision encoder gave them."""
        first, *deep = states.chunk(self._found.num_parts, dim=1)
        return PictureTokens([first] if self._found.gives_list else first, [[one] for one in deep])

    def _fits(self, run: Run, inputs: Inputs) -> bool:
        training, fits = self._backbone.training, self._found.fits
        if training not in fits:
            rows = (inputs.tensors["pixel_values"].counts > 0).nonzero()[:_NUM_TRIED, 0]
            fits[training] = self._is_exact(run, select_rows(inputs, rows))
            if not fits[training]:
                _log.info(
                    "%s cannot be cut above its frozen vision tower, which runs each time that a picture is read",
                    type(self._backbone).__name__,
                )
        return fits[training]

    def _is_exact(self, run: Run, inputs: Inputs) -> bool:
        """Whether the cut model gives what the whole one gives, and its vision encoder the same each time."""
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
                    cut = run(taken)
                with state:
                    for tensor in list_tensors(inputs):
                        torch.rand(1, device=tensor.device)  # other numbers than the first time
                    again = self._taken(run, inputs)
            except MISFITS:
                return False
        assert again is not None
        return alike(cut, whole) and alike(again.tensors[PICTURE_STATES].values, taken.tensors[PICTURE_STATES].values)

    def _taken(self, run: Run, inputs: Inputs) -> Inputs | None:
        with torch.no_grad():
            output = self._reach(run, inputs)
        states = None if output is None else self._states(output)
        ids = inputs.tensors["input_ids"]
        num_tokens = sums_by_row((ids.values == self._backbone.config.image_token_id).sum(dim=1), ids.counts)
        if states is None or len(states) != int(num_tokens.sum()):
            return None
        tensors = {name: ragged for name, ragged in inputs.tensors.items() if not name.startswith(_PIXELS)}
        hollow = {
            f"{PICTURE_STATES}.{name}": replace(
                ragged, values=ragged.values.new_empty(len(ragged.values), 0, *_form(ragged))
            )
            for name, ragged in inputs.tensors.items()
            if name.startswith(_PIXELS)
        }
        return replace(inputs, tensors={**tensors, **hollow, PICTURE_STATES: Ragged(states, num_tokens)})

    def _reach(self, run: Run, inputs: Inputs) -> Any:  # Any: what a model of transformers calls its pictures' tokens
        """What the vision encoder gives; the language model does not run. None where it is not asked."""
        if self._seam is None:
            return None
        module, name = self._seam
        make = getattr(module, name)

        def stop(*arguments: object, **options: object) -> None:
            raise Reached(make(*arguments, **options))

        with replaced({self._seam: stop}):
            try:
                run(inputs)
            except Reached as reached:
                return reached.output
        return None

    def _states(self, output: Any) -> Tensor | None:  # Any: as above
        """Each token's vector, and beside it those that are added to it later: [tokens, parts * width]."""
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            return None
        parts = [pooled, *(getattr(output, "deepstack_features", None) or ())]
        self._found.gives_list = not isinstance(pooled, Tensor)
        self._found.num_parts = len(parts)
        return torch.cat([_flat(part) for part in parts], dim=1)


def seam_of(backbone: Backbone) -> tuple[nn.Module, str] | None:
    """Where a vision-language model of transformers makes tokens of pictures: in the innermost model that can."""
    found = [module for module in backbone.modules() if callable(getattr(module, _MAKES_TOKENS, None))]
    return (found[-1], _MAKES_TOKENS) if found else None


def _flat(part: Any) -> Tensor:  # Any: a tensor [.., width] or several
    """All tokens of all pictures [tokens, width]."""
    tensors = [part] if isinstance(part, Tensor) else list(part)
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors])


def _form(ragged: Ragged) -> torch.Size:
    return ragged.values.shape[1:]


def _filled(hollow: Ragged) -> Ragged:
    """Black pictures of the form that a hollow tensor tells."""
    values = hollow.values
    return replace(hollow, values=values.new_zeros(()).expand(len(values), *values.shape[2:]))
