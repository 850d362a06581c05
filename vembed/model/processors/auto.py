"""The processor of families that have a tokenizer and an image processor, each by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import transformers
from torch import Tensor

from vembed.errors import ModelError
from vembed.model.backbones.pretrained import pretrained_processor
from vembed.model.folder.find import ModelFolders, read_table
from vembed.model.processors.base import MAX_IMAGE_PIXELS, ItemProcessor
from vembed.model.processors.naflex import NaflexImages
from vembed.model.processors.pictures import ImageReader, TimmImages, TransformersImages
from vembed.model.processors.texts import TextReader, forget_last_call
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import AnyItem, HeldItem, Inputs, LoadedItem, Ragged, Side

_PATCH_SIZE = 16
MAX_SIDE = 8192  # pixels
_SIZE_NAMES = ("size", "crop_size", "pad_size", "min_pixels", "max_pixels", "patch_size", "merge_size")


class TowerProcessor(ItemProcessor):
    """Items to a model's inputs: `input_ids` and `attention_mask` per text row, `pixel_values` per image.

    Where prompts are not pooled, `pooled_tokens` per text row. NaFlex has further tensors per image: the mask of its
    patches, and their grid.
    """

    def __init__(
        self,
        spec: ModelSpec,
        texts: TextReader | None,
        images: ImageReader | None,
        *,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        patch_size: int = _PATCH_SIZE,
    ) -> None:
        super().__init__(spec, max_image_pixels=max_image_pixels)
        self._texts = texts
        self._images = images
        self._patch_size = patch_size
        if spec.pad_to is None:
            self.token_masks = ("attention_mask", "pooled_tokens")

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "TowerProcessor":
        """The processor that the folders hold. Raises ModelError when its files are missing."""
        texts = images = None
        patch_size = _PATCH_SIZE
        if folders.text is not None:
            texts = TextReader(load_tokenizer(folders.text, settings), spec)
        if folders.image is not None:
            images = image_reader(load_image_processor(folders.image, settings), spec)
            patch_size = _patch_size_of(folders.image)
        return cls(spec, texts, images, patch_size=patch_size)

    @property
    def tokenizer(self) -> Any:  # Any: transformers is untyped here
        """The tokenizer; None without texts."""
        return None if self._texts is None else self._texts.tokenizer

    def read_picture(self, picture: PIL.Image.Image) -> Mapping[str, Tensor]:
        """uint8 `pixel_values` [3, height, width], or NaFlex's tensors."""
        assert self._images is not None
        return self._images.read(picture)

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """Inputs of these rows: texts with prompts, padded to the longest; images still uint8."""
        loaded = self.load_all(items)
        tensors: dict[str, Ragged] = {}
        num_truncated = 0
        texts = [item.text for item in loaded if item.text is not None]
        if texts:
            assert self._texts is not None
            encoded = self._texts.encode(texts, self.spec.prompt(side))
            counts = torch.tensor([int(item.text is not None) for item in loaded])
            tensors["input_ids"] = Ragged(encoded.input_ids, counts)
            tensors["attention_mask"] = Ragged(encoded.attention_mask, counts)
            if encoded.pooled_tokens is not None:
                tensors["pooled_tokens"] = Ragged(encoded.pooled_tokens, counts)
            num_truncated = encoded.num_truncated
        return Inputs(len(loaded), tensors | stack_images(loaded), num_truncated)

    def finish(self, inputs: Inputs) -> Inputs:
        """The same inputs with float32 pixels, rescaled and normalised; to be called on the device, per chunk."""
        pixels = inputs.tensors.get("pixel_values")
        if pixels is None or pixels.values.dtype != torch.uint8:
            return inputs
        assert self._images is not None
        finished = self._images.finish({name: ragged.values for name, ragged in inputs.tensors.items()})
        tensors: Mapping[str, Ragged] = {**inputs.tensors, "pixel_values": replace(pixels, values=finished)}
        return replace(inputs, tensors=tensors)

    def count_tokens(self, items: Sequence[HeldItem], side: Side) -> list[int]:
        """Tokens of each row's text and patches of its images (of 16 x 16 pixels if the model has no patch size)."""
        texts = super().count_tokens([LoadedItem(item.text, (), item.content_hash) for item in items], side)
        return [
            count + (len(item.images) * self._num_patches if item.images else 0)
            for count, item in zip(texts, items, strict=True)
        ]

    @cached_property
    def _num_patches(self) -> int:
        """Patches of an image, the same for every picture."""
        pixels = self.read_picture(PIL.Image.new("RGB", (64, 64)))["pixel_values"]
        if pixels.ndim == 2:  # patches already
            return len(pixels)
        return max(1, (pixels.shape[1] // self._patch_size) * (pixels.shape[2] // self._patch_size))

    def save(self, text_folder: Path, image_folder: Path) -> None:
        """Write the tokenizer's and the image processor's files."""
        if self._texts is not None:
            forget_last_call(self._texts.tokenizer)
            self._texts.tokenizer.save_pretrained(text_folder)
        if self._images is not None:
            self._images.save(image_folder)


def _patch_size_of(folder: Path) -> int:
    """The patch size in pixels in a model's config.json; 16 if it has none."""
    config = read_table(folder / "config.json")
    vision = config.get("vision_config", config) if isinstance(config, dict) else {}
    size = vision.get("patch_size") if isinstance(vision, dict) else None
    return size if isinstance(size, int) and size > 0 else _PATCH_SIZE


def stack_images(loaded: Sequence[LoadedItem]) -> dict[str, Ragged]:
    """The tensors of all images, by name, each [images, ...]; {} without images."""
    images = [image for item in loaded for image in item.images]
    if not images:
        return {}
    counts = torch.tensor([len(item.images) for item in loaded])
    return {name: Ragged(torch.stack([image[name] for image in images]), counts) for name in images[0]}


def load_tokenizer(folder: Path, settings: ModelSettings) -> Any:  # Any: transformers is untyped here
    """The tokenizer in `folder`. Raises ModelError when its files are missing."""
    code = settings.trust_remote_code
    tokenizer = pretrained_processor(transformers.AutoTokenizer, folder, trust_remote_code=code, kind="tokenizer")
    _refuse_without_vocabulary(tokenizer, folder)
    return tokenizer


def load_image_processor(folder: Path, settings: ModelSettings) -> Any:  # Any: transformers is untyped here
    """The image processor in `folder`. Raises ModelError when its files are missing."""
    loader, code = transformers.AutoImageProcessor, settings.trust_remote_code
    processor = pretrained_processor(loader, folder, trust_remote_code=code, kind="image processor")
    refuse_large_sizes(processor, folder, MAX_SIDE)
    return processor


def refuse_large_sizes(processor: Any, folder: Path, limit: int) -> None:  # Any: transformers is untyped here
    """Raise ModelError for an image processor that would make pictures of a size that takes all memory."""
    for name in _SIZE_NAMES:
        value = getattr(processor, name, None)
        for size in [value] if value is None or isinstance(value, int | float) else dict(value).values():
            if isinstance(size, int | float) and not 0 < size <= limit:
                raise ModelError(f"{folder}: the image processor has {name}: {size:,}; expected 1 to {limit:,}")


def image_reader(processor: object, spec: ModelSpec) -> ImageReader:
    """The reader that splits an image processor into resizing and normalisation."""
    if isinstance(processor, transformers.models.timm_wrapper.TimmWrapperImageProcessor):
        return TimmImages(processor, spec.image_size)
    if spec.max_num_patches is not None:
        return NaflexImages(processor, spec.max_num_patches)
    return TransformersImages(processor, spec.image_size)


def _refuse_without_vocabulary(tokenizer: Any, folder: Path) -> None:  # Any: transformers is untyped here
    """Raise ModelError without vocabulary files: transformers would make an empty tokenizer, with all words unknown."""
    names = sorted(set(tokenizer.vocab_files_names.values()))
    if names and not any((folder / name).is_file() for name in names):
        raise ModelError(f"model folder {str(folder)!r} has no tokenizer: none of {', '.join(names)} is there")
