"""Tiny models in the way of LLaVA: LLaVA itself, LLaVA-NeXT, InternVL; pictures of 32 x 32 pixels, or such tiles."""

from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2Tokenizer,
)

from tests.tiny.saving import IMAGE_SIZE, save
from tests.tiny.tokenizers import qwen2_tokenizer
from tests.tiny.vlm import LLAVA_TEMPLATE, TEXT, special_ids

_SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 20,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "projection_dim": 20,
}
# The last layer but one is read, without the token of the class.
_PATCHES: dict[str, Any] = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "chat_template": LLAVA_TEMPLATE,
}


def tiny_llava(folder: str | Path, seed: int = 0) -> str:
    """LlavaForConditionalGeneration: CLIP's tower, all of it but its last layer."""
    tokenizer = qwen2_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = LlavaConfig(
        text_config=_text(tokenizer),
        vision_config=_CLIP,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    save(LlavaForConditionalGeneration, config, folder, seed)
    images = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=_SQUARE)
    LlavaProcessor(images, tokenizer, **_PATCHES).save_pretrained(folder)
    return str(folder)


def tiny_llava_next(folder: str | Path, seed: int = 0) -> str:
    """LlavaNextForConditionalGeneration: as LLaVA, each picture whole and in tiles."""
    tokenizer = qwen2_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    grid = [[IMAGE_SIZE * rows, IMAGE_SIZE * columns] for rows in (1, 2) for columns in (1, 2)]
    config = LlavaNextConfig(
        text_config=_text(tokenizer),
        vision_config=_CLIP,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    save(LlavaNextForConditionalGeneration, config, folder, seed)
    sizes = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": _SQUARE, "image_grid_pinpoints": grid}
    LlavaNextProcessor(LlavaNextImageProcessor(**sizes), tokenizer, **_PATCHES).save_pretrained(folder)
    return str(folder)


def tiny_internvl(folder: str | Path, seed: int = 0) -> str:
    """InternVLForConditionalGeneration: tiles of a picture, four patches to a token."""
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = qwen2_tokenizer(names)
    vision = {
        "hidden_size": 20,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "patch_size": [8, 8],
    }
    config = InternVLConfig(
        text_config=_text(tokenizer),
        vision_config=vision,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    save(InternVLForConditionalGeneration, config, folder, seed)
    images = GotOcr2ImageProcessor(size=_SQUARE, crop_to_patches=True, max_patches=4)
    template = LLAVA_TEMPLATE.replace("<image>", "<IMG_CONTEXT>")
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(size=_SQUARE), image_seq_length=4, chat_template=template
    )
    processor.save_pretrained(folder)
    return str(folder)


def _text(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {"model_type": "qwen2", **TEXT, "vocab_size": len(tokenizer), **special_ids(tokenizer)}
