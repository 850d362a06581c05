"""The processor of transformers' own late-interaction models: ColPali, ColQwen2 and ColModernVBERT.

A row becomes one sequence of tokens for its text, and one for each of its images. Texts get the format of queries on
either side, since these processors have no other; images get that of documents.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import transformers
from torch import Tensor

from vembed.errors import DataError, ModelError
from vembed.model.backbones.pretrained import pretrained_processor
from vembed.model.folder.find import ModelFolders
from vembed.model.late_interaction.tokenization import document_flags, encode_texts, skiplist_ids
from vembed.model.processors.auto import refuse_large_sizes
from vembed.model.processors.base import MAX_IMAGE_PIXELS, ItemProcessor
from vembed.model.processors.texts import forget_last_call
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import AnyItem, Inputs, LoadedItem, Ragged, Side

_MOST_PIXELS = 100_000_000  # an edge in a size may count pixels of the whole picture
NUM_AUGMENTATION_TOKENS = 10  # as in each of the three processors
_MOST_AROUND_PICTURE = 64  # tokens of the format that surely no architecture exceeds


class _Reader(ABC):
    """Formats of one architecture: a query's and an image's text, and an image's tensors."""

    def __init__(self, processor: Any) -> None:  # Any: transformers is untyped here
        self.processor = processor

    @property
    def augmentation(self) -> str:
        """The augmentation tokens that follow every query, as text."""
        token: str = self.processor.query_augmentation_token
        return token * NUM_AUGMENTATION_TOKENS

    @abstractmethod
    def query(self, text: str) -> tuple[str, str]:
        """A query's text as it is tokenised: its prefix, and the rest."""

    @abstractmethod
    def picture(self, image: Mapping[str, Tensor]) -> str:
        """An image's text as it is tokenised, with its placeholder tokens. image: its tensors, of `read`."""

    @abstractmethod
    def read(self, picture: PIL.Image.Image) -> dict[str, Tensor]:
        """RGB picture -> tensors with an axis of slices first, `pixel_values` among them in uint8."""

    def finish(self, pixels: Tensor) -> Tensor:
        """uint8 `pixel_values` [slices, 3, height, width] -> float32 of the same shape, normalised."""
        own = self.processor.image_processor
        mean, std = tuple(own.image_mean), tuple(own.image_std)
        finished: Tensor = own.rescale_and_normalize(
            pixels, own.do_rescale, own.rescale_factor, own.do_normalize, mean, std
        )
        return finished.float()

    def _image_outputs(self, picture: Any, **options: object) -> Any:  # Any: transformers is untyped here
        own = self.processor.image_processor
        return own(picture, do_rescale=False, do_normalize=False, return_tensors="pt", **options)


class _ColPaliReader(_Reader):
    def query(self, text: str) -> tuple[str, str]:
        own = self.processor
        return f"{own.tokenizer.bos_token}{own.query_prefix}", f"{text}{self.augmentation}\n"

    def picture(self, image: Mapping[str, Tensor]) -> str:
        own = self.processor
        return f"{own.image_token * own.image_seq_length}{own.tokenizer.bos_token}{own.visual_prompt_prefix}\n"

    def read(self, picture: PIL.Image.Image) -> dict[str, Tensor]:
        return {"pixel_values": self._image_outputs(picture)["pixel_values"]}


class _ColQwen2Reader(_Reader):
    """Pictures keep their shape; their slices are patches, [patches, channels * frames * side * side]."""

    def query(self, text: str) -> tuple[str, str]:
        return str(self.processor.query_prefix), f"{text}{self.augmentation}\n"

    def picture(self, image: Mapping[str, Tensor]) -> str:
        own = self.processor
        num_tokens = int(image["image_grid_thw"].prod()) // own.image_processor.merge_size**2
        return str(own.visual_prompt_prefix).replace(own.image_token, own.image_token * num_tokens)

    def read(self, picture: PIL.Image.Image) -> dict[str, Tensor]:
        output = self._image_outputs(picture)
        return {"pixel_values": output["pixel_values"], "image_grid_thw": output["image_grid_thw"]}

    def finish(self, pixels: Tensor) -> Tensor:
        own = self.processor.image_processor
        frames = (3, own.temporal_patch_size, own.patch_size**2)
        return super().finish(pixels.reshape(-1, *frames)).flatten(1)


class _ColModernVBertReader(_Reader):
    """Images are split into tiles, which are the slices."""

    def query(self, text: str) -> tuple[str, str]:
        return str(self.processor.query_prefix), f"{text}{self.augmentation}"

    def picture(self, image: Mapping[str, Tensor]) -> str:
        own = self.processor
        rows, columns = image["image_tiles"][0].tolist()
        tiles = own.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
        return str(own.visual_prompt_prefix).replace(own.image_token, tiles)

    def read(self, picture: PIL.Image.Image) -> dict[str, Tensor]:
        output = self._image_outputs([picture], return_row_col_info=True)
        pixels = output["pixel_values"][0]  # integers as floats
        return {
            "pixel_values": pixels.to(torch.uint8),
            "pixel_attention_mask": output["pixel_attention_mask"][0].bool(),
            "image_tiles": torch.tensor([[output["rows"][0][0], output["cols"][0][0]]]),
        }


_READERS: Mapping[str, type[_Reader]] = {
    "colpali": _ColPaliReader,
    "colqwen2": _ColQwen2Reader,
    "colmodernvbert": _ColModernVBertReader,
}


class LateRetrievalProcessor(ItemProcessor):
    """Items to `input_ids` and `attention_mask` per sequence, `pixel_values` per patch, tile or image.

    `scored`: bool per token, True for tokens whose vectors are kept. `is_document`: bool per row, True for documents,
    whose vectors are pooled.
    """

    token_masks = ("attention_mask", "scored")

    def __init__(self, spec: ModelSpec, reader: _Reader, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> None:
        super().__init__(spec, max_image_pixels=max_image_pixels)
        self._reader = reader
        self._skiplist = skiplist_ids(reader.processor.tokenizer, spec.late.skipped_words if spec.late else ())
        image_token = getattr(reader.processor, "image_token_id", None)
        self.placeholder_ids = () if image_token is None else (image_token,)

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "LateRetrievalProcessor":
        """The processor that the folder holds. Raises ModelError when its files are missing."""
        assert folders.text is not None
        assert spec.late is not None
        processor = pretrained_processor(
            transformers.AutoProcessor, folders.text, trust_remote_code=settings.trust_remote_code, kind="processor"
        )
        refuse_large_sizes(processor.image_processor, folders.text, _MOST_PIXELS)
        processor.tokenizer.padding_side = spec.padding_side
        if spec.min_pixels is not None or spec.max_pixels is not None:
            _set_pixel_limits(processor.image_processor, spec)
        return cls(spec, _READERS[spec.late.architecture](processor))

    @property
    def tokenizer(self) -> Any:  # Any: transformers is untyped here
        """The tokenizer of the processor."""
        return self._reader.processor.tokenizer

    def read_picture(self, picture: PIL.Image.Image) -> Mapping[str, Tensor]:
        """uint8 `pixel_values` [slices, ...], and the architecture's further tensors of a picture."""
        return self._reader.read(picture)

    def check_loaded(self, item: LoadedItem) -> None:
        """Raise DataError for a picture of more tokens than max_length."""
        limit, token = self.spec.max_length, self._reader.processor.image_token
        if limit is not None and any(
            self._reader.picture(image).count(token) + _MOST_AROUND_PICTURE > limit for image in item.images
        ):
            self.prepare([item], "document")

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """Inputs of these rows: a sequence for the text, one for each image, all padded to the longest."""
        if not items:
            return Inputs(0, {})
        loaded = self.load_all(items)
        sequences = [sequence for item in loaded for sequence in self._sequences(item, side)]
        limit = self.spec.max_length
        encoded = encode_texts(self._reader.processor.tokenizer, ["".join(parts) for parts in sequences], limit)
        if encoded.num_truncated:
            self._refuse_truncated_images(loaded, sequences, encoded.input_ids)
        counts = torch.tensor([(item.text is not None) + len(item.images) for item in loaded])
        scored = encoded.attention_mask.bool()
        if self.spec.mask_prompts:
            scored &= self._content_mask(encoded.input_ids, encoded.starts, [len(before) for before, _ in sequences])
        if side == "document":
            scored &= ~torch.isin(encoded.input_ids, self._skiplist)
        tensors = {
            "input_ids": Ragged(encoded.input_ids, counts),
            "attention_mask": Ragged(encoded.attention_mask, counts),
            "scored": Ragged(scored, counts),
            "is_document": document_flags(len(loaded), side),
        }
        return Inputs(len(loaded), tensors | join_images(loaded), encoded.num_truncated)

    def finish(self, inputs: Inputs) -> Inputs:
        """The same inputs with float32 pixels, rescaled and normalised; to be called on the device, per chunk."""
        pixels = inputs.tensors.get("pixel_values")
        if pixels is None or pixels.values.dtype != torch.uint8 or not len(pixels.values):
            return inputs
        finished = replace(pixels, values=self._reader.finish(pixels.values))
        return replace(inputs, tensors={**inputs.tensors, "pixel_values": finished})

    def save(self, text_folder: Path, image_folder: Path) -> None:
        """Write the files of the whole processor."""
        forget_last_call(self._reader.processor.tokenizer)
        self._reader.processor.save_pretrained(text_folder)

    def _sequences(self, item: LoadedItem, side: Side) -> list[tuple[str, str]]:
        """An item's texts as they are tokenised, its own and its images': the instruction of each, and the rest."""
        sequences = []
        if item.text is not None:
            before, rest = self._reader.query(item.text)
            sequences.append((before + self.spec.prompt(side), rest))
        return sequences + [("", self._reader.picture(image)) for image in item.images]

    def _refuse_truncated_images(
        self, loaded: Sequence[LoadedItem], sequences: Sequence[tuple[str, str]], input_ids: Tensor
    ) -> None:
        """Raise DataError if truncation removed image tokens; texts may be truncated."""
        token = self._reader.processor.image_token
        left = (input_ids == self._reader.processor.image_token_id).sum(dim=1).tolist()
        origins = [item.origin for item in loaded for _ in range((item.text is not None) + len(item.images))]
        for (_, rest), kept, origin in zip(sequences, left, origins, strict=True):
            if rest.count(token) > kept:
                where = f"{origin}: " if origin else ""
                raise DataError(
                    f"{where}max_length {self.spec.max_length}: a picture alone takes {rest.count(token)} tokens; set a"
                    " larger max_length, or a smaller max_pixels where the model has one"
                )

    def _content_mask(self, input_ids: Tensor, starts: Tensor, lengths: list[int]) -> Tensor:
        """Bool [sequences, tokens]: True for image tokens, and for a text's tokens after its instruction."""
        image = input_ids == self._reader.processor.image_token_id
        after = starts >= torch.tensor(lengths)[:, None]
        return torch.where(image.any(dim=1, keepdim=True), image, after)


def join_images(loaded: Sequence[LoadedItem]) -> dict[str, Ragged]:
    """The tensors of all images by name, their slices one after the other; nothing when there are no images."""
    images = [image for item in loaded for image in item.images]
    if not images:
        return {}
    return {
        name: Ragged(
            torch.cat([image[name] for image in images]),
            torch.tensor([sum(len(image[name]) for image in item.images) for item in loaded]),
        )
        for name in images[0]
    }


def _set_pixel_limits(image_processor: Any, spec: ModelSpec) -> None:  # Any: transformers is untyped here
    least = spec.min_pixels or int(image_processor.size["shortest_edge"])
    most = spec.max_pixels or int(image_processor.size["longest_edge"])
    if most < least:
        raise ModelError(f"max_pixels {most}: this model reads pictures of at least {least} pixels; set min_pixels too")
    image_processor.size = type(image_processor.size)(shortest_edge=least, longest_edge=most)
