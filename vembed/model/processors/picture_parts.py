"""A vision-language processor in two halves: pictures in the loader's workers, texts when a batch is made.

transformers' processors do both in one call. Here the image half runs alone, on all pictures of an item, and its
outputs are given back to the processor when the text is known, by an image processor that only replays them:

    read = image_processor(images)                                      # read: in a worker
    processor.image_processor = a function that gives `read` whatever it is shown
    inputs = processor(text=[text], images=[as many blank pictures])    # call: when the batch is made

So the placeholders of any architecture become as many tokens as its own processor makes of them.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
import torch
from torch import Tensor

_SIZES = ((61, 47), (40, 70), (33, 33))  # of pictures to try: wide, high and square
_COUNT = "num_images"  # under this name `read` says how many pictures its tensors are of
_BLANK = PIL.Image.new("RGB", (32, 32))


class PictureParts:
    """An image processor's outputs for an item's pictures, as tensors whose first axis is slices of the row.

    Pixels stay uint8, a fourth of the memory, where rescaling and normalising them later gives the same floats, which
    is tried on a few pictures; otherwise the image processor does all of its work at once, in float32.
    """

    def __init__(self, processor: Any) -> None:  # Any: transformers is untyped here
        self._processor = processor
        self._images = processor.image_processor
        self._arguments = self._recorded_arguments()
        pictures = [_noise(seed, size) for seed, size in enumerate(_SIZES)]
        outputs = self._run(pictures, normalize=True)
        # What comes as a list goes back as one: processors count with it in Python.
        self._lists = frozenset(name for name, value in outputs.items() if not isinstance(value, Tensor))
        pixels = outputs["pixel_values"]
        # Idefics puts all pictures of a row under one entry; the others have an entry per picture or patch.
        self._nested = pixels.ndim == 5 and pixels.shape[0] == 1  # [1, pictures, colours, height, width]
        self._in_float = False  # what `_is_exact` tries; one picture may be laid out in another way than several
        self._in_float = not all(self._is_exact(some) for some in (pictures[:1], pictures))

    def read(self, pictures: Sequence[PIL.Image.Image]) -> dict[str, Tensor]:
        """The image processor's outputs for one item's RGB pictures, and how many these are."""
        outputs = self._run(pictures, normalize=self._in_float)
        tensors = {name: torch.as_tensor(value) for name, value in outputs.items()}
        pixels = tensors["pixel_values"]
        if not self._in_float and pixels.dtype != torch.uint8:
            tensors["pixel_values"] = pixels.to(torch.uint8)  # Idefics gives whole numbers as floats
        return tensors | {_COUNT: torch.tensor([len(pictures)])}

    def call(self, read: Mapping[str, Tensor], **arguments: Any) -> Mapping[str, Tensor]:
        """The whole processor's outputs for an item whose pictures were read before.

        read: what `read` gave. arguments: the processor's, its text among them.
        """
        count = int(read[_COUNT])
        outputs = {name: value for name, value in read.items() if name != _COUNT}
        values = {name: value.tolist() if name in self._lists else value for name, value in outputs.items()}
        processor = copy.copy(self._processor)  # a shallow copy, since others use the processor itself
        processor.image_processor = _Replayer(self._images, values)
        output = dict(processor(images=[[_BLANK] * count], **arguments))
        return {name: torch.as_tensor(value) for name, value in output.items()}

    def by_slice(self, values: Tensor) -> Tensor:
        """An output with the slices of its row on the first axis: [slices, ...], of [1, slices, ...] where it is."""
        return values.transpose(0, 1) if self._nested and values.ndim > 1 else values

    def finish(self, pixels: Tensor, mask: Tensor | None) -> Tensor:
        """uint8 pixels to the floats that the model was trained with; padding, where `mask` is 0, is zero again.

        pixels: [slices, ..., colours, height, width], or flat patches [patches, colours * ...] (Qwen-VL).
        mask: [slices, ..., height, width].
        """
        own = self._images
        # Means are subtracted along a colour axis; flat patches hold one colour after the other.
        planes = pixels if pixels.ndim > 2 else pixels.view(len(pixels), 3, -1, 1)  # [patches, colours, ..., 1]
        finished: Tensor = own.rescale_and_normalize(
            planes, own.do_rescale, own.rescale_factor, own.do_normalize, tuple(own.image_mean), tuple(own.image_std)
        )
        finished = finished.float().reshape(pixels.shape)
        return finished if mask is None else finished * mask.unsqueeze(-3).to(finished.dtype)

    def _run(self, pictures: Sequence[PIL.Image.Image], *, normalize: bool) -> dict[str, Any]:  # Any: as above
        """The image processor's outputs, with normalised floats as it would give them, or without that last step."""
        flags = {} if normalize else {"do_rescale": False, "do_normalize": False}
        return dict(self._images([list(pictures)], **{**self._arguments, **flags, "return_tensors": "pt"}))

    def _is_exact(self, pictures: Sequence[PIL.Image.Image]) -> bool:
        """Whether the two halves give what the image processor gives at once."""
        if not hasattr(self._images, "rescale_and_normalize"):
            return False
        try:
            halves = self.read(pictures)
            finished = self.finish(halves["pixel_values"], halves.get("pixel_attention_mask"))
        # Any of these says that this image processor works in another way; at once it still works.
        except (ValueError, TypeError, RuntimeError, AttributeError):
            return False
        whole = self._run(pictures, normalize=True)["pixel_values"]
        return finished.shape == whole.shape and torch.equal(finished, whole.float())

    def _recorded_arguments(self) -> dict[str, Any]:  # Any: as above
        """The arguments that the whole processor passes on to its image processor, so that `read` gives them too."""
        recorder = _Recorder(self._images)
        processor = copy.copy(self._processor)
        processor.image_processor = recorder
        processor(text=[str(processor.image_token)], images=[[_BLANK]])
        return recorder.arguments


class _Proxy:
    """Stands in the place of an image processor, whose attributes it passes on: processors read sizes from them."""

    def __init__(self, real: Any) -> None:  # Any: transformers is untyped here
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name == "_real":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self._real, name)


class _Recorder(_Proxy):
    """Passes its arguments on and keeps them."""

    arguments: dict[str, Any]

    def __call__(self, images: object, **arguments: Any) -> Any:
        self.arguments = arguments
        return self._real(images, **arguments)


class _Replayer(_Proxy):
    """Gives the outputs of an earlier call, whatever pictures it is shown."""

    def __init__(self, real: Any, outputs: Mapping[str, Any]) -> None:
        super().__init__(real)
        self._outputs = outputs

    def fetch_images(self, images: object) -> object:
        """The pictures as they are: there is nothing to load."""
        return images

    def __call__(self, *images: object, **arguments: object) -> Mapping[str, Any]:
        return dict(self._outputs)


def _noise(seed: int, size: tuple[int, int]) -> PIL.Image.Image:
    """A picture of this width and height of random values, most of the 256 among them, so that rounding shows."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator)
    return PIL.Image.fromarray(values.numpy())
