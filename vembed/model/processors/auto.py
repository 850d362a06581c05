"""The processor of every family whose texts and images are read by a tokenizer and an image processor."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from vembed.data.hashing import content_hash
from vembed.data.images import read_image
from vembed.errors import DataError, ModelError
from vembed.model.backbones.pretrained import pretrained_processor
from vembed.model.files import ModelFolders
from vembed.model.processors.pictures import ImageReader, TimmImages, TransformersImages
from vembed.model.processors.texts import TextReader
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import ImageTransform, Inputs, Item, LoadedItem, Ragged, Side

MAX_IMAGE_PIXELS = 100_000_000


class ItemProcessor:
    """Items to a model's inputs: `input_ids` and `attention_mask` per text row, `pixel_values` per image."""

    def __init__(
        self,
        spec: ModelSpec,
        texts: TextReader | None,
        images: ImageReader | None,
        *,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        self.spec = spec
        self.max_image_pixels = max_image_pixels
        self._texts = texts
        self._images = images

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "ItemProcessor":
        """The processor that the folders hold. Raises ModelError when its files are missing."""
        code = settings.trust_remote_code
        texts = images = None
        if folders.text is not None:
            tokenizer = pretrained_processor(
                transformers.AutoTokenizer, folders.text, trust_remote_code=code, kind="tokenizer"
            )
            _refuse_without_vocabulary(tokenizer, folders.text)
            texts = TextReader(tokenizer, spec)
        if folders.image is not None:
            processor = pretrained_processor(
                transformers.AutoImageProcessor, folders.image, trust_remote_code=code, kind="image processor"
            )
            images = _image_reader(processor, spec)
        return cls(spec, texts, images)

    def with_image_limit(self, max_image_pixels: int) -> "ItemProcessor":
        """The same processor, refusing images of more pixels."""
        return type(self)(self.spec, self._texts, self._images, max_image_pixels=max_image_pixels)

    def load(self, item: Item, transform: ImageTransform | None = None, draw: int = 0) -> LoadedItem:
        """Decode, transform and resize an item's images to uint8 `pixel_values` [3, height, width] each.

        Raises DataError for an image that cannot be read, ModelError for an item that the model cannot read.
        """
        self._check(item)
        images = tuple({"pixel_values": self._picture(item, index, transform)} for index in range(len(item.images)))
        return LoadedItem(item.text, images, content_hash(item), draw, item.origin)

    def prepare(self, items: Sequence[Item | LoadedItem], side: Side) -> Inputs:
        """Inputs of these rows: prompts put before texts, texts padded to the longest, images still uint8."""
        loaded = [item if isinstance(item, LoadedItem) else self.load(item) for item in items]
        tensors: dict[str, Ragged] = {}
        num_truncated = 0
        texts = [self.spec.prompt(side) + item.text for item in loaded if item.text is not None]
        if texts:
            assert self._texts is not None
            encoded = self._texts.encode(texts)
            counts = torch.tensor([int(item.text is not None) for item in loaded])
            tensors["input_ids"] = Ragged(encoded.input_ids, counts)
            tensors["attention_mask"] = Ragged(encoded.attention_mask, counts)
            num_truncated = encoded.num_truncated
        pixels = [image["pixel_values"] for item in loaded for image in item.images]
        if pixels:
            counts = torch.tensor([len(item.images) for item in loaded])
            tensors["pixel_values"] = Ragged(torch.stack(pixels), counts)
        return Inputs(len(loaded), tensors, num_truncated)

    def finish(self, inputs: Inputs) -> Inputs:
        """The same inputs with float32 pixels, rescaled and normalised; to be called on the device, per chunk."""
        pixels = inputs.tensors.get("pixel_values")
        if pixels is None or pixels.values.dtype != torch.uint8:
            return inputs
        assert self._images is not None
        finished = replace(pixels, values=self._images.normalize(pixels.values))
        tensors: Mapping[str, Ragged] = {**inputs.tensors, "pixel_values": finished}
        return replace(inputs, tensors=tensors)

    def save(self, text_folder: Path, image_folder: Path) -> None:
        """Write the tokenizer's and the image processor's files."""
        if self._texts is not None:
            self._texts.tokenizer.save_pretrained(text_folder)
        if self._images is not None:
            self._images.save(image_folder)

    def _check(self, item: Item) -> None:
        where = f"{item.origin}: " if item.origin else ""
        if item.text is None and not item.images:
            raise DataError(f"{where}an item needs a text, an image, or both")
        if item.text is not None and not _is_unicode(item.text):
            raise DataError(f"{where}the text holds half a character (a lone surrogate), which no tokenizer can read")
        spec = self.spec
        if (item.text is not None and not spec.can(["text"])) or (item.images and not spec.can(["image"])):
            given = "a text" if not spec.can(["text"]) else "an image"
            raise ModelError(f"{where}a {spec.family} model reads {spec.reads()}; it was given {given}")

    def _picture(self, item: Item, index: int, transform: ImageTransform | None) -> Tensor:
        assert self._images is not None
        picture = read_image(item.images[index], max_pixels=self.max_image_pixels)
        return self._images.resize(picture if transform is None else transform(picture))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse_without_vocabulary(tokenizer: Any, folder: Path) -> None:  # Any: transformers is untyped here
    """transformers makes an empty tokenizer when the files are missing, which would turn all words into one."""
    names = sorted(set(tokenizer.vocab_files_names.values()))
    if names and not any((folder / name).is_file() for name in names):
        raise ModelError(f"model folder {str(folder)!r} has no tokenizer: none of {', '.join(names)} is there")


def _image_reader(processor: object, spec: ModelSpec) -> ImageReader:
    if isinstance(processor, transformers.models.timm_wrapper.TimmWrapperImageProcessor):
        return TimmImages(processor, spec.image_size)
    return TransformersImages(processor, spec.image_size)
