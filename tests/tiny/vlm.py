"""Tiny vision-language models of the real architectures, with their real processors and templates like their own."""

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.tiny.saving import save

# A turn per message, pictures where they stand in it, and the beginning of an answer.
_CHATML = """
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}{%- for part in message.content %}
{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'text' %}{{ part.text }}{%- endif %}
{%- endfor %}{%- endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}
""".strip()

# Qwen2-VL and Qwen2.5-VL open with a system turn of their own where the messages bring none.
_QWEN2_CHATML = (
    "{%- if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}\n" + _CHATML
)

_TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}


def tiny_qwen2_vl(folder: str | Path, seed: int = 0) -> str:
    """Qwen2VLForConditionalGeneration: images keep their shape, in patches of 8 x 8 pixels, four to a token."""
    tokenizer = _qwen_tokenizer()
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 24, "mlp_ratio": 2, "num_heads": 2, **_qwen_patches()}
    config = Qwen2VLConfig(text_config=_qwen_text(tokenizer), vision_config=vision, **_qwen_ids(tokenizer))
    save(Qwen2VLForConditionalGeneration, config, folder, seed)
    video = Qwen2VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=2)
    Qwen2VLProcessor(_qwen_images(), tokenizer, video, chat_template=_QWEN2_CHATML).save_pretrained(folder)
    return str(folder)


def tiny_qwen2_5_vl(folder: str | Path, seed: int = 0) -> str:
    """Qwen2_5_VLForConditionalGeneration: as Qwen2-VL, but most vision layers look at windows."""
    tokenizer = _qwen_tokenizer()
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "out_hidden_size": 24,
        "intermediate_size": 32,
        "num_heads": 2,
        "window_size": 32,
        "fullatt_block_indexes": [1],
        **_qwen_patches(),
    }
    config = Qwen2_5_VLConfig(text_config=_qwen_text(tokenizer), vision_config=vision, **_qwen_ids(tokenizer))
    save(Qwen2_5_VLForConditionalGeneration, config, folder, seed)
    video = Qwen2VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=2)
    Qwen2_5_VLProcessor(_qwen_images(), tokenizer, video, chat_template=_QWEN2_CHATML).save_pretrained(folder)
    return str(folder)


def tiny_qwen3_vl(folder: str | Path, seed: int = 0, *, tied: bool = True) -> str:
    """Qwen3VLForConditionalGeneration: features of several vision layers enter the language model.

    tied: the language head is the word embedding, as in the 2B and 4B models (not in the 8B).
    """
    tokenizer = _qwen_tokenizer()
    text = {**_qwen_text(tokenizer), "head_dim": 12}
    vision = {
        "depth": 3,
        "hidden_size": 16,
        "out_hidden_size": 24,
        "intermediate_size": 32,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
        **_qwen_patches(),
    }
    ids = _qwen_ids(tokenizer)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **ids)
    save(Qwen3VLForConditionalGeneration, config, folder, seed)
    video = Qwen3VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=2)
    Qwen3VLProcessor(_qwen_images(), tokenizer, video, chat_template=_CHATML).save_pretrained(folder)
    return str(folder)


def _qwen_patches() -> dict[str, int]:
    return {"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _qwen_images() -> Qwen2VLImageProcessor:
    size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    return Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)


def _qwen_text(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {
        **_TEXT,
        "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _qwen_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """Every byte, a few merges, and the special tokens of the Qwen family."""
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    merges = [("Ġ", "a"), ("e", "r"), ("i", "n"), ("o", "f"), ("t", "h"), ("th", "e")]
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Qwen2Tokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer
