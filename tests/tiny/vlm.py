"""Tiny vision-language models of the real architectures, with their real processors and templates like their own."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
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
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.tiny import own_code
from tests.tiny.own_code.modeling_plain_llava import PlainLlavaConfig, PlainLlavaForCausalLM
from tests.tiny.own_code.processing_plain_llava import PlainLlavaProcessor
from tests.tiny.saving import IMAGE_SIZE, save, write_json
from tests.tiny.tokenizers import gemma_tokenizer, qwen2_tokenizer, smolvlm_tokenizer

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

_SMOL_TEMPLATE = """
<|im_start|>{% for message in messages %}{{ message.role | capitalize }}
{%- if message.content[0].type == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}
{%- for part in message.content %}
{%- if part.type == 'text' %}{{ part.text }}{% elif part.type == 'image' %}{{ '<image>' }}{% endif %}
{%- endfor %}{{ '<end_of_utterance>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
""".strip()

# Gemma knows no system turn: what one says opens the user's turn.
_GEMMA_TEMPLATE = """
{{ bos_token }}
{%- set ns = namespace(before='') %}
{%- for message in messages %}
{%- if message.role == 'system' %}{% set ns.before = message.content[0].text + '\n\n' %}
{%- else %}{{ '<start_of_turn>' + message.role + '\n' + ns.before }}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part.text | trim }}{% endif %}
{%- endfor %}{{ '<end_of_turn>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
""".strip()

LLAVA_TEMPLATE = """
{%- for message in messages %}{{ '<|im_start|>' + message.role + ' ' }}
{%- for part in message.content %}{% if part.type == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}
{%- for part in message.content %}{% if part.type == 'text' %}{{ '\n' + part.text }}{% endif %}{% endfor %}
{{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
""".strip()

# Yi-VL's form: contents are words with a placeholder among them, not lists of parts.
_YI_TEMPLATE = """
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content + '\n\n' }}
{%- else %}{{ '### Human: ' + message.content + '\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Assistant:' }}{% endif %}
""".strip()
_PROCESSING = "processing_plain_llava"

_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 20,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "vision_use_head": False,
}

TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}


_QWEN_PATCHES = {"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
_QWEN3_VISION = {
    "depth": 3,
    "hidden_size": 16,
    "out_hidden_size": 24,
    "intermediate_size": 32,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
    **_QWEN_PATCHES,
}


def tiny_qwen2_vl(folder: str | Path, seed: int = 0) -> str:
    """Qwen2VLForConditionalGeneration: images keep their shape, in patches of 8 x 8 pixels, four to a token."""
    tokenizer = qwen2_tokenizer()
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 24, "mlp_ratio": 2, "num_heads": 2, **_QWEN_PATCHES}
    config = Qwen2VLConfig(text_config=_qwen_text(tokenizer), vision_config=vision, **_qwen_ids(tokenizer))
    save(Qwen2VLForConditionalGeneration, config, folder, seed)
    video = Qwen2VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=2)
    Qwen2VLProcessor(_qwen_images(), tokenizer, video, chat_template=_QWEN2_CHATML).save_pretrained(folder)
    return str(folder)


def tiny_qwen2_5_vl(folder: str | Path, seed: int = 0) -> str:
    """Qwen2_5_VLForConditionalGeneration: as Qwen2-VL, but most vision layers look at windows."""
    tokenizer = qwen2_tokenizer()
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "out_hidden_size": 24,
        "intermediate_size": 32,
        "num_heads": 2,
        "window_size": 32,
        "fullatt_block_indexes": [1],
        **_QWEN_PATCHES,
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
    tokenizer = qwen2_tokenizer()
    text = {**_qwen_text(tokenizer), "head_dim": 12}
    ids = _qwen_ids(tokenizer)
    config = Qwen3VLConfig(text_config=text, vision_config=_QWEN3_VISION, tie_word_embeddings=tied, **ids)
    save(Qwen3VLForConditionalGeneration, config, folder, seed)
    video = Qwen3VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=2)
    Qwen3VLProcessor(_qwen_images(), tokenizer, video, chat_template=_CHATML).save_pretrained(folder)
    return str(folder)


def tiny_qwen3_vl_moe(folder: str | Path, seed: int = 0) -> str:
    """Qwen3VLMoeForConditionalGeneration: as Qwen3-VL, each token read by two of four experts."""
    tokenizer = qwen2_tokenizer()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    text = {**_qwen_text(tokenizer), "head_dim": 12, **experts}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=_QWEN3_VISION, **_qwen_ids(tokenizer))
    save(Qwen3VLMoeForConditionalGeneration, config, folder, seed)
    video = Qwen3VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=2)
    Qwen3VLProcessor(_qwen_images(), tokenizer, video, chat_template=_CHATML).save_pretrained(folder)
    return str(folder)


def tiny_smolvlm(folder: str | Path, seed: int = 0) -> str:
    """SmolVLMForConditionalGeneration: pictures are cut into tiles of 32 x 32 pixels, 4 tokens each."""
    tokenizer = smolvlm_tokenizer()
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": IMAGE_SIZE}}
    save(SmolVLMForConditionalGeneration, SmolVLMConfig(**_smol(tokenizer, "smolvlm_vision")), folder, seed)
    images, video = SmolVLMImageProcessor(**sizes), SmolVLMVideoProcessor(**sizes)
    processor = SmolVLMProcessor(images, tokenizer, video, image_seq_len=4, chat_template=_SMOL_TEMPLATE)
    processor.save_pretrained(folder)
    return str(folder)


def tiny_idefics3(folder: str | Path, seed: int = 0) -> str:
    """Idefics3ForConditionalGeneration: as SmolVLM."""
    tokenizer = smolvlm_tokenizer()
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": IMAGE_SIZE}}
    save(Idefics3ForConditionalGeneration, Idefics3Config(**_smol(tokenizer, "idefics3_vision")), folder, seed)
    processor = Idefics3Processor(
        Idefics3ImageProcessor(**sizes), tokenizer, image_seq_len=4, chat_template=_SMOL_TEMPLATE
    )
    processor.save_pretrained(folder)
    return str(folder)


def tiny_llava_onevision(folder: str | Path, seed: int = 0) -> str:
    """LlavaOnevisionForConditionalGeneration: a picture alone is read whole and in tiles of 32 x 32, others whole."""
    tokenizer = qwen2_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    grid = [[IMAGE_SIZE * rows, IMAGE_SIZE * columns] for rows in (1, 2) for columns in (1, 2)]
    text = {"model_type": "qwen2", **TEXT, "vocab_size": len(tokenizer), **special_ids(tokenizer)}
    config = LlavaOnevisionConfig(
        text_config=text,
        vision_config=_SIGLIP,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    save(LlavaOnevisionForConditionalGeneration, config, folder, seed)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid)
    processor = LlavaOnevisionProcessor(
        images,
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return str(folder)


def tiny_gemma3(folder: str | Path, seed: int = 0) -> str:
    """Gemma3ForConditionalGeneration: a picture is 4 tokens, which see each other both ways; short local attention."""
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = gemma_tokenizer(names)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    text = {**TEXT, "head_dim": 12, "vocab_size": len(tokenizer), "sliding_window": 8, **special_ids(tokenizer)}
    config = Gemma3Config(
        text_config=text | {"layer_types": ["sliding_attention", "full_attention"]},
        vision_config=_SIGLIP,
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    save(Gemma3ForConditionalGeneration, config, folder, seed)
    images = Gemma3ImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_seq_length=4)
    processor = Gemma3Processor(images, tokenizer, chat_template=_GEMMA_TEMPLATE, image_seq_length=4)
    processor.save_pretrained(folder)
    return str(folder)


def tiny_paligemma(folder: str | Path, seed: int = 0) -> str:
    """PaliGemmaForConditionalGeneration: no chat template; all tokens of a row see each other."""
    tokenizer = gemma_tokenizer()
    images = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    text = {"model_type": "gemma", **TEXT, "head_dim": 12, "vocab_size": len(tokenizer), **special_ids(tokenizer)}
    config = PaliGemmaConfig(
        text_config=text,
        vision_config={**_SIGLIP, "projection_dim": 24},
        image_token_index=processor.image_token_id,
        projection_dim=24,
        hidden_size=24,
    )
    save(PaliGemmaForConditionalGeneration, config, folder, seed)
    processor.save_pretrained(folder)
    return str(folder)


def tiny_plain_llava(folder: str | Path, seed: int = 0) -> str:
    """A model that transformers does not know: its folder brings the code of model and processor (`own_code`)."""
    tokenizer = qwen2_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = {**TEXT, "vocab_size": len(tokenizer), **special_ids(tokenizer)}
    number = tokenizer.convert_tokens_to_ids("<image>")
    config = PlainLlavaConfig(text_config=text, vision_config=_SIGLIP, image_token_id=number)
    names = {"AutoConfig": "PlainLlavaConfig", "AutoModelForCausalLM": "PlainLlavaForCausalLM"}
    config.auto_map = {key: f"modeling_plain_llava.{name}" for key, name in names.items()}
    save(PlainLlavaForCausalLM, config, folder, seed)
    images = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    PlainLlavaProcessor(images, tokenizer, chat_template=_YI_TEMPLATE).save_pretrained(folder)
    settings = Path(folder) / "processor_config.json"
    content = {**json.loads(settings.read_text()), "auto_map": {"AutoProcessor": f"{_PROCESSING}.PlainLlavaProcessor"}}
    write_json(settings, content)
    for path in Path(own_code.__file__).parent.glob("*_plain_llava.py"):
        shutil.copy(path, folder)
    return str(folder)


def _smol(tokenizer: Any, vision: str) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "llama", **TEXT, "vocab_size": len(tokenizer), **special_ids(tokenizer)},
        "vision_config": {**_SIGLIP, "model_type": vision},
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
        "scale_factor": 2,
    }


def special_ids(tokenizer: Any) -> dict[str, int | None]:
    """A tokenizer's numbers as a text model's config names them."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def _qwen_images() -> Qwen2VLImageProcessor:
    size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    return Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)


def _qwen_text(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {
        **TEXT,
        "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
        **special_ids(tokenizer),
    }


def _qwen_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
