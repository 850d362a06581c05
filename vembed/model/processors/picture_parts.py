"""A vision-language processor in two halves: pictures in the loader's workers, texts when a batch is made.

transformers' processors do both in one call. Here the image half runs alone, on all pictures of an item, and its
outputs are given back to the processor when the text is known, by an image processor that only remembers them. So the
placeholders of any architecture become as many tokens as its own processor makes of them.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
import torch
from torch import Tensor

_SIZES = ((61, 47), (40, 70), (33, 33))
_COUNT = "num_images"


class PictureParts:
    """What an image processor makes of an item's pictures, as tensors whose first axis can be cut by rows.

    Pixels stay uint8 where rescaling and normalising them later gives the same floats, which is tried on a few
    pictures; otherwise the image processor does all of its work at once, in float32.
    """

    def __init__(self, processor: Any) -> None:  # Any: transformers is untyped here
        self._processor = processor
        self._images = processor.image_processor
        self._arguments = self._recorded_arguments()
        pictures = [_noise(seed, size) for seed, size in enumerate(_SIZES)]
        outputs = self._run(pictures, whole=True)
        self._lists = frozenset(name for name, value in outputs.items() if not isinstance(value, Tensor))
        pixels = outputs["pixel_values"]
        # Idefics puts all pictures of a row under one entry; the others have an entry per picture or patch.
        self._nested = pixels.ndim == 5 and pixels.shape[0] == 1
        self._whole = False
        self._whole = not all(self._is_exact(some) for some in (pictures[:1], pictures))

    @property
    def in_uint8(self) -> bool:
        """Whether pixels are read as uint8 and finished on the device."""
        return not self._whole

    def read(self, pictures: Sequence[PIL.Image.Image]) -> dict[str, Tensor]:
        """The image processor's outputs for one item's RGB pictures, and how many these are."""
        outputs = self._run(pictures, whole=self._whole)
        tensors = {name: torch.as_tensor(value) for name, value in outputs.items()}
        pixels = tensors["pixel_values"]
        if not self._whole and pixels.dtype != torch.uint8:
            tensors["pixel_values"] = pixels.to(torch.uint8)  # Idefics gives whole numbers as floats
        return tensors | {_COUNT: torch.tensor([len(pictures)])}

    def call(self, read: Mapping[str, Tensor], **arguments: Any) -> Mapping[str, Tensor]:
        """What the whole processor gives for an item whose pictures were read before."""
        count = int(read[_COUNT])
        outputs = {name: value for name, value in read.items() if name != _COUNT}
        values = {name: value.tolist() if name in self._lists else value for name, value in outputs.items()}
        processor = copy.copy(self._processor)
        processor.image_processor = _Remembered(self._images, values)
        output = dict(processor(images=[[_BLANK] * count], **arguments))
        return {name: torch.as_tensor(value) for name, value in output.items()}

    def by_slice(self, values: Tensor) -> Tensor:
        """An output with the slices that belong to its row on the first axis."""
        return values.transpose(0, 1) if self._nested and values.ndim > 1 else values

    def finish(self, pixels: Tensor, mask: Tensor | None) -> Tensor:
        """uint8 pixels to the floats that the model was trained with; padding, where `mask` is 0, is zero again."""
        own = self._images
        planes = pixels if pixels.ndim > 2 else pixels.view(len(pixels), 3, -1, 1)  # patches hold a colour at a time
        finished: Tensor = own.rescale_and_normalize(
            planes, own.do_rescale, own.rescale_factor, own.do_normalize, tuple(own.image_mean), tuple(own.image_std)
        )
        finished = finished.float().reshape(pixels.shape)
        return finished if mask is None else finished * mask.unsqueeze(-3).to(finished.dtype)

    def _run(self, pictures: Sequence[PIL.Image.Image], *, whole: bool) -> dict[str, Any]:  # Any: as above
        flags = {} if whole else {"do_rescale": False, "do_normalize": False}
        return dict(self._images([list(pictures)], **{**self._arguments, **flags, "return_tensors": "pt"}))

    def _is_exact(self, pictures: Sequence[PIL.Image.Image]) -> bool:
        """Whether the two halves give what the image processor gives at once."""
        if not hasattr(self._images, "rescale_and_normalize"):
            return False
        try:
            halves = self.read(pictures)
            finished = self.finish(halves["pixel_values"], halves.get("pixel_attention_mask"))
        except (ValueError, TypeError, RuntimeError, AttributeError):
            return False
        whole = self._run(pictures, whole=True)["pixel_values"]
        return finished.shape == whole.shape and torch.equal(finished, whole.float())

    def _recorded_arguments(self) -> dict[str, Any]:  # Any: as above
        """What the whole processor passes on to its image processor."""
        recorder = _Recorder(self._images)
        processor = copy.copy(self._processor)
        processor.image_processor = recorder
        processor(text=[str(processor.image_token)], images=[[_BLANK]])
        return recorder.arguments


class _Stand:
    """An image processor to look at; what it is asked for is the real one's."""

    def __init__(self, real: Any) -> None:  # Any: transformers is untyped here
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name == "_real":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self._real, name)


class _Recorder(_Stand):
    """Passes its arguments on and keeps them."""

    arguments: dict[str, Any]

    def __call__(self, images: object, **arguments: Any) -> Any:
        self.arguments = arguments
        return self._real(images, **arguments)


class _Remembered(_Stand):
    """Gives outputs of before, whatever pictures it is shown."""

    def __init__(self, real: Any, outputs: Mapping[str, Any]) -> None:
        super().__init__(real)
        self._outputs = outputs

    def fetch_images(self, images: object) -> object:
        """The pictures as they are."""
        return images

    def __call__(self, *images: object, **arguments: object) -> Mapping[str, Any]:
        return dict(self._outputs)


def _noise(seed: int, size: tuple[int, int]) -> PIL.Image.Image:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator)
    return PIL.Image.fromarray(values.numpy())


_BLANK = PIL.Image.new("RGB", (32, 32))
