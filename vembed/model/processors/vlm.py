"""The processor of vision-language models: a row is one sequence of tokens, its images among them.

For one row that is, by transformers' own processor,

    text = processor.apply_chat_template([system: instruction], [user: images, text])
    inputs = processor(text=[text], images=[images])       # input_ids [1, tokens], pixel_values [slices, ...], ...

Here images are read in the loader's workers, before there is a batch (`load`), rows lie one after the other without
padding (`prepare`), and a chunk is padded when it is run (`finish`). A slice is an entry of a tensor's first axis, of
which a row owns some: a picture, a crop or a patch, by architecture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import PIL.Image
import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vembed.errors import DataError, ModelError
from vembed.model.backbones.pretrained import pretrained_processor, refuse_own_code
from vembed.model.backbones.vlm_generic import IMAGE_TOKENS
from vembed.model.folder.find import ModelFolders
from vembed.model.processors.auto import refuse_large_sizes
from vembed.model.processors.base import MAX_IMAGE_PIXELS, ItemProcessor
from vembed.model.processors.conversation import Conversation, common_ending
from vembed.model.processors.picture_lengths import PictureLengths
from vembed.model.processors.picture_parts import PictureParts
from vembed.model.processors.texts import forget_last_call
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import AnyItem, Inputs, Item, LoadedItem, Ragged, Side

_IMAGE_FILE = "preprocessor_config.json"  # which releases of transformers before 5 write, and other tools read
_MOST_PIXELS = 100_000_000  # an edge in a size may count pixels of the whole picture
_NOT_READ = ("attention_mask", "labels")  # `finish` makes the mask anew; labels are for generation
# Image processors that keep a picture's aspect ratio. The edges in their `size` are numbers of pixels, of all of it.
_BOUNDED = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")


@dataclass(frozen=True)
class VlmRow:
    """A row's tensors: those with an entry per token, [tokens] each, and those of its images, [slices, ...] each.

    was_cut: text was left out for the length limit.
    """

    tokens: Mapping[str, Tensor]
    images: Mapping[str, Tensor]
    was_cut: bool = False


class VlmProcessor(ItemProcessor):
    """Items to sequences by the model's own processor and chat template.

    load: all pictures of an item to what the image processor makes of them, in uint8 where that loses nothing
    (`PictureParts`). prepare: every row's tokens, one row after the other, without padding. finish: the tokens of a
    chunk padded to its longest row, `attention_mask`, and the floats of the pixels.

    Subclasses may override, beside ItemProcessor's methods: `instruction`, `mark_tokens`, `tokenize_rows` and
    `token_tensor_names`.
    """

    reads_pictures_together = True

    def __init__(
        self,
        spec: ModelSpec,
        processor: Any,
        *,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        has_image_file: bool = False,
    ) -> None:
        super().__init__(spec, max_image_pixels=max_image_pixels)
        self._has_image_file = has_image_file
        self._processor = processor  # Any above: transformers is untyped here
        self._tokenizer = processor.tokenizer
        _bound_pixels(processor.image_processor, spec)
        # Most have one placeholder token; some also mark where an image begins, ends, or turns to its next line.
        image_ids = getattr(processor, "image_token_ids", [getattr(processor, "image_token_id", None)])
        self._image_ids = [token for token in image_ids if token is not None]
        self.placeholder_ids = self._image_ids
        self._pictures = PictureParts(processor)
        self._conversation = Conversation(processor, starts_answer=spec.starts_answer)
        self._ending = common_ending(self._encode, lambda text: self._render("query", text, 0))
        # Which outputs have an entry per token differs by architecture (token_type_ids and the like), and is seen from
        # the shapes that a row of one picture and one letter gives.
        blank = self._pictures.read([PIL.Image.new("RGB", (32, 32))])
        probe = self._pictures.call(blank, **self._text_arguments(self._render("query", "a", 1)))
        length = probe["input_ids"].shape[1]
        self._lengths = PictureLengths(self._num_tokens_of)
        self._token_names = [
            name for name, value in probe.items() if value.shape == (1, length) and name not in _NOT_READ
        ]

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "VlmProcessor":
        """The processor that the folder holds. Raises ModelError when its files are missing."""
        assert folders.text is not None
        refuse_own_code(folders.text, settings)
        code = settings.trust_remote_code
        loader = transformers.AutoProcessor
        processor = pretrained_processor(loader, folders.text, trust_remote_code=code, kind="processor")
        parts = ("tokenizer", "image_processor", "image_token")
        if any(getattr(processor, part, None) is None for part in parts):
            raise ModelError(
                f"model folder {str(folders.text)!r} has no processor for texts and images: transformers finds a"
                f" {type(processor).__name__} there. A vision-language model needs the files of its tokenizer and its"
                " image processor, and an image token"
            )
        refuse_large_sizes(processor.image_processor, folders.text, _MOST_PIXELS)
        return cls(spec, processor, has_image_file=(folders.text / _IMAGE_FILE).is_file())

    @property
    def tokenizer(self) -> Any:  # Any: transformers is untyped here
        """The tokenizer of the processor."""
        return self._tokenizer

    def read_pictures(self, pictures: Sequence[PIL.Image.Image]) -> Mapping[str, Tensor]:
        """The image processor's tensors of all pictures of an item."""
        return self._pictures.read(pictures)

    def check(self, item: Item) -> None:
        """As of every model; raises DataError also for a text with the token that stands for a picture, read as one."""
        super().check(item)
        tokens = {str(self._processor.image_token), *self._tokenizer.convert_ids_to_tokens(self._image_ids)}
        found = sorted(token for token in tokens if item.text is not None and token in item.text)
        if found:
            raise DataError(f"{_where(item)}the text holds {found[0]!r}, which stands for an image in this model")

    def check_loaded(self, item: LoadedItem) -> None:
        """Raise DataError for pictures that leave no room for a text on either side."""
        limit = self.spec.max_length
        if limit is None or not item.images or self._lengths.fits(item.images[0], limit):
            return
        refusals = []
        for side in get_args(Side):
            try:
                self.tokenize_rows([item], side)
            except DataError as error:
                refusals.append(error)
        if len(refusals) == len(get_args(Side)):
            raise refusals[0]

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """Inputs of these rows: `input_ids` and what else there is per token, and the tensors of images."""
        rows = self.tokenize_rows(self.load_all(items), side)
        if not rows:
            return Inputs(0, {})
        names = {name for row in rows for name in row.images}
        tensors = {name: _joined([row.tokens[name] for row in rows]) for name in rows[0].tokens}
        tensors |= {name: _joined([row.images.get(name) for row in rows]) for name in sorted(names)}
        return Inputs(len(rows), tensors, sum(row.was_cut for row in rows))

    def finish(self, inputs: Inputs) -> Inputs:
        """The same inputs with tokens padded to the longest row and float32 pixels; on the device, per chunk."""
        if inputs.num_rows == 0 or "attention_mask" in inputs.tensors:
            return inputs
        tensors = dict(inputs.tensors)
        counts = tensors["input_ids"].counts
        lengths = counts.tolist()
        real = Ragged(torch.ones_like(tensors["input_ids"].values), counts)  # [tokens of all rows]
        for name, flat in [("attention_mask", real), *((name, tensors[name]) for name in self.token_tensor_names())]:
            padding = _padding_token(self._tokenizer) if name == "input_ids" else 0
            rows = torch.split(flat.values, lengths)
            padded = pad_sequence(list(rows), True, padding, self.spec.padding_side)  # batch first
            # So far a slice was a token; from here on it is a row of the model's input: one per row.
            tensors[name] = Ragged(padded, torch.ones_like(counts))  # [rows, tokens]
        pixels = tensors.get("pixel_values")
        if pixels is not None and pixels.values.dtype == torch.uint8 and len(pixels.values):
            mask = tensors.get("pixel_attention_mask")
            finished = self._pictures.finish(pixels.values, None if mask is None else mask.values)
            tensors["pixel_values"] = replace(pixels, values=finished)
        return replace(inputs, tensors=tensors)

    @property
    def counts_tokens(self) -> bool:
        """True: rows are not padded before `finish`, so that each has as many tokens as slices of `input_ids`."""
        return True

    def num_tokens(self, inputs: Inputs) -> Tensor:
        """Tokens of each row, those of its images among them, int64 [rows]."""
        return inputs.tensors["input_ids"].counts

    def save(self, text_folder: Path, image_folder: Path) -> None:
        """Write the files of the processor and its chat template; the image processor's own where it had one."""
        forget_last_call(self._processor.tokenizer)
        self._processor.save_pretrained(text_folder)
        if self._has_image_file:
            self._processor.image_processor.save_pretrained(text_folder)

    def is_read_alike_elsewhere(self) -> bool:
        """Whether sentence-transformers makes the same inputs of the files.

        It renders chat templates of parts, with instructions as system messages, and nothing else.
        """
        prompts = [self.spec.query_prompt, self.spec.document_prompt, *self.spec.other_prompts.values()]
        return self._conversation.in_messages and (self._conversation.with_system or not any(prompts))

    def instruction(self, side: Side) -> str:
        """The instruction that stands before the content of the side's rows."""
        return self.spec.prompt(side)

    def mark_tokens(self, tokens: Mapping[str, Tensor], item: LoadedItem) -> Mapping[str, Tensor]:
        """A row's tensors [tokens] before it is cut, and further ones that a kind of model needs, to be overridden."""
        return tokens

    def tokenize_rows(self, loaded: Sequence[LoadedItem], side: Side) -> list[VlmRow]:
        """Rows of text alone are tokenised together, which is faster; rows with images one by one."""
        texts = [item for item in loaded if not item.images]
        encoded = iter(self._encode_all([self._render(side, item.text, 0) for item in texts]))
        rows = []
        for item in loaded:
            if item.images:
                rows.append(self._image_row(item, side))
            else:
                ids = torch.tensor(next(encoded))  # [tokens]
                # What else there is per token says of which kind it is (token_type_ids), and 0 is text.
                zeros = torch.zeros_like(ids)
                tokens = dict.fromkeys(self.token_tensor_names(), zeros) | {"input_ids": ids}
                tokens |= {IMAGE_TOKENS: zeros.bool()}
                rows.append(self._cut(VlmRow(self.mark_tokens(tokens, item), {}), item))
        return rows

    def _image_row(self, item: LoadedItem, side: Side) -> VlmRow:
        """A row with images, each of which is as many placeholder tokens as the model makes states of it."""
        read = item.images[0]  # `load` reads all of an item's images as one entry
        text = self._render(side, item.text, int(read["num_images"]))
        output = dict(self._pictures.call(read, **self._text_arguments(text)))
        tokens = {name: output.pop(name)[0] for name in self._token_names}  # [tokens], of [1, tokens]
        tokens[IMAGE_TOKENS] = torch.isin(tokens["input_ids"], torch.tensor(self._image_ids))
        images = {name: self._pictures.by_slice(value) for name, value in output.items() if name not in _NOT_READ}
        return self._cut(VlmRow(self.mark_tokens(tokens, item), images), item)

    def _num_tokens_of(self, read: Mapping[str, Tensor]) -> int:
        """Tokens of pictures without a text, on the side of more of them."""
        texts = [self._render(side, None, int(read["num_images"])) for side in get_args(Side)]
        return max(self._pictures.call(read, **self._text_arguments(text))["input_ids"].shape[1] for text in texts)

    def _cut(self, row: VlmRow, item: LoadedItem) -> VlmRow:
        """The row with its text cut to the length limit; what follows the text, and the image tokens, stay.

        before: instruction, images, text[: num_text], ending              tokens in all: max_length + excess
        after:  instruction, images, text[: num_text - excess], ending     tokens in all: max_length
        """
        ids, limit = row.tokens["input_ids"], self.spec.max_length
        excess = 0 if limit is None else len(ids) - limit
        if excess <= 0:
            return row
        stop = len(ids) - len(self._ending)  # where the text ends
        num_text = len(self._encode_plain(item.text or ""))
        # The model puts an image's states in the place of its tokens: with one of these missing they would not fit.
        if excess > num_text:
            what = "its images and the chat template" if item.images else "the chat template"
            raise DataError(
                f"{_where(item)}max_length {limit}: {what} alone take {len(ids) - num_text} tokens; set a larger"
                " max_length" + (", or a smaller max_pixels where the model has one" if item.images else "")
            )
        kept = torch.cat([torch.arange(stop - excess), torch.arange(stop, len(ids))])  # [max_length]
        return replace(row, tokens={name: value[kept] for name, value in row.tokens.items()}, was_cut=True)

    def _render(self, side: Side, text: str | None, num_images: int) -> str:
        """The row as the one string that is tokenised, one placeholder for each image."""
        return self._conversation.render(self.instruction(side), text, num_images)

    def _text_arguments(self, text: str) -> dict[str, Any]:  # Any: arguments of the processor
        return {"text": [text], **self._special_tokens(text)}

    def _special_tokens(self, text: str) -> dict[str, bool]:
        """No second beginning-of-text token where the chat template wrote one, as transformers does it.

        The same for all rows, so that the first text may speak for all of a batch.
        """
        first = self._tokenizer.bos_token
        has_own = self._conversation.has_template and first is not None and text.startswith(first)
        return {"add_special_tokens": False} if has_own else {}

    def _encode(self, text: str) -> list[int]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(list(texts), **self._special_tokens(texts[0]))["input_ids"]
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        """The tokens of a text by itself, without those that begin or end a sequence."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def token_tensor_names(self) -> list[str]:
        """The names of tensors with an entry per token, which `finish` pads; to be extended with `mark_tokens`."""
        return [*self._token_names, IMAGE_TOKENS]


def _padding_token(tokenizer: Any) -> int:  # Any: transformers is untyped here
    own = tokenizer.pad_token_id
    return int(own if own is not None else tokenizer.eos_token_id or 0)


def _joined(values: Sequence[Tensor | None]) -> Ragged:
    """The rows' slices [slices, ...], one after the other, padded with zeros to the largest size along every axis.

    None: a row without images, which owns no slice.
    """
    given = [value for value in values if value is not None]
    counts = torch.tensor([0 if value is None else len(value) for value in values])
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in given), strict=True)]  # of one slice
    return Ragged(torch.cat([_padded(value, shape) for value in given]), counts)


def _padded(value: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor [slices, ...] with zeros at the end of each axis but the first, up to `shape`."""
    missing = [wanted - size for wanted, size in zip(shape, value.shape[1:], strict=True)]
    if not any(missing):
        return value
    # torch takes a pair, before and after, for each axis from the last one back.
    return torch.nn.functional.pad(value, [side for size in reversed(missing) for side in (0, size)])


def _bound_pixels(image_processor: Any, spec: ModelSpec) -> None:  # Any: transformers is untyped here
    """Bound the pixels of images that keep their aspect ratio, in place. Raises ModelError where there is no bound."""
    if spec.min_pixels is None and spec.max_pixels is None:
        return
    if type(image_processor).__name__ not in _BOUNDED:
        key = "max_pixels" if spec.max_pixels is not None else "min_pixels"
        raise ModelError(f"{key}: this model's image processor ({type(image_processor).__name__}) has no such bound")
    size = dict(image_processor.size)
    size |= {"shortest_edge": spec.min_pixels} if spec.min_pixels is not None else {}
    size |= {"longest_edge": spec.max_pixels} if spec.max_pixels is not None else {}
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if least is not None and most is not None and least > most:
        given, other = ("min_pixels", "max_pixels") if spec.max_pixels is None else ("max_pixels", "min_pixels")
        raise ModelError(
            f"{given}: the image processor of this model would read pictures of at least {least} and at most {most}"
            f" pixels; set {other} too"
        )
    image_processor.size = type(image_processor.size)(**size)


def _where(item: Item | LoadedItem) -> str:
    return f"{item.origin}: " if item.origin else ""
