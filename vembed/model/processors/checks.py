"""Whether a model and its processor fit together, found out when they are opened and not in the middle of a run."""

from contextlib import suppress
from typing import Any

import PIL.Image

from vembed.errors import DataError, ModelError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.processors.base import ItemProcessor
from vembed.types import ImageSource, Item, Side

_PICTURE = (40, 32)  # pixels
# These look up another token in the place of an image's, so that it may lie beyond the table.
_REPLACES_IMAGE_TOKENS = ("colpali", "gemma3", "paligemma")


def check_fit(model: BaseEmbeddingModel, processor: ItemProcessor, name: str) -> tuple[str, ...]:
    """The tokens that the processor must refuse in texts, its `unreadable_tokens`: the model has no embedding of them.

    Raises ModelError, or what a library raises, for a processor whose other tokens or pictures the model cannot read.
    That a picture takes more tokens than the settings allow is told with the first one that is given.
    """
    _check_rotary_sections(model, name)
    unreadable = check_vocabulary(model, processor, name)
    if processor.spec.supports(["image"]):
        _check_picture(processor)
    return unreadable


def _check_rotary_sections(model: BaseEmbeddingModel, name: str) -> None:
    """Raise ModelError for sections of rotary embeddings that are no whole numbers, before a forward finds them."""
    for backbone in model.backbones().values():
        rotary = getattr(backbone.config.get_text_config(), "rope_parameters", None)
        sections = rotary.get("mrope_section") if isinstance(rotary, dict) else None
        if sections is not None and not (isinstance(sections, list) and all(type(one) is int for one in sections)):
            raise ModelError(
                f"model {name!r}: mrope_section in its config.json is a list of whole numbers, not {sections!r:.60}"
            )


def _check_picture(processor: ItemProcessor) -> None:
    picture = PIL.Image.new("RGB", _PICTURE, "red")
    try:
        processor.finish(processor.prepare([Item(images=(ImageSource(pil=picture),))], "document"))
    except DataError as error:
        if error.__cause__ is not None:  # a library's words: no picture can be read
            raise error.__cause__ from None


def check_vocabulary(model: BaseEmbeddingModel, processor: ItemProcessor, name: str) -> tuple[str, ...]:
    """The added tokens beyond the table of the text tower that only a text which spells them is given.

    EmbeddingGemma has one. Raises ModelError, with both numbers, for a tokenizer that gives others beyond the table.
    A table may have more rows than there are tokens.
    """
    tokenizer = processor.tokenizer
    num_rows = _table_rows(model) if tokenizer is not None else None
    if tokenizer is None or num_rows is None:
        return ()
    _check_placeholders(model, processor, num_rows, name)
    outside = {token: number for token, number in tokenizer.get_vocab().items() if number >= num_rows}
    own = {*_own_tokens(processor)} - {*processor.placeholder_ids}
    added = tokenizer.get_added_vocab()
    emitted = {token: number for token, number in outside.items() if token not in added or number in own}
    if emitted or any(number >= num_rows for number in own):
        token, number = max(emitted.items(), key=lambda item: item[1], default=("", max(own)))
        raise ModelError(
            f"model {name!r}: its tokenizer gives tokens up to number {number:,} ({token!r}), and its embedding table"
            f" has {num_rows:,} rows; tokenizer and weights are of different models"
        )
    return tuple(sorted(outside))


def _own_tokens(processor: ItemProcessor) -> list[int]:
    """The tokens that a text gets beside its own: beginnings, ends, prompts, padding, and those that fill queries."""
    sides: tuple[Side, Side] = ("query", "document")
    numbers = [processor.tokenizer.pad_token_id, processor.tokenizer.unk_token_id]
    for side in sides:
        with suppress(DataError):  # a limit of tokens that leaves none for a text is told with the first one
            numbers += processor.prepare([Item(text="a")], side).tensors["input_ids"].values.flatten().tolist()
    return [number for number in numbers if number is not None]


def _check_placeholders(model: BaseEmbeddingModel, processor: ItemProcessor, num_rows: int, name: str) -> None:
    """Raise ModelError for image tokens that are not those of the model's config, or lie beyond its table."""
    placeholders = processor.placeholder_ids
    configs = [backbone.config for backbone in model.backbones().values()]
    if not placeholders or model.spec.own_code is not None:
        return
    for config in (nested for one in configs for nested in (one, getattr(one, "vlm_config", None))):
        wanted = getattr(config, "image_token_id", None)
        if wanted is not None and wanted not in placeholders:
            raise ModelError(
                f"model {name!r}: its processor writes token {placeholders[0]:,} for an image, and config.json says"
                f" image_token_id: {wanted:,}; they are of different models"
            )
    replaced = any(config.model_type in _REPLACES_IMAGE_TOKENS for config in configs)
    if max(placeholders) >= num_rows and not replaced:
        raise ModelError(
            f"model {name!r}: its processor writes token {max(placeholders):,} for an image, and its embedding table"
            f" has {num_rows:,} rows; they are of different models"
        )


def _table_rows(model: BaseEmbeddingModel) -> int | None:
    """The rows of the text tower's embedding table; None where a model's own code does not say which that is."""
    network: Any = model.towers().get("text")  # Any: transformers is untyped here
    try:
        weight = network.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0])
