"""Tiny late-interaction models: transformers' own ColPali, ColQwen2 and ColModernVBERT, with their real processors."""

from pathlib import Path

from transformers import (
    ColModernVBertConfig,
    ColModernVBertForRetrieval,
    ColPaliConfig,
    ColPaliForRetrieval,
    ColQwen2Config,
    ColQwen2ForRetrieval,
    Idefics3ImageProcessor,
    Qwen2VLImageProcessor,
    SiglipImageProcessor,
)
from transformers.models.colmodernvbert import ColModernVBertProcessor
from transformers.models.colpali import ColPaliProcessor
from transformers.models.colqwen2 import ColQwen2Processor

from tests.tiny.saving import IMAGE_SIZE, save
from tests.tiny.tokenizers import gemma_tokenizer, modernvbert_tokenizer, qwen2_tokenizer

TOKEN_WIDTH = 16


def tiny_colpali(folder: str | Path, seed: int = 0) -> str:
    """ColPaliForRetrieval over a tiny PaliGemma: images of 32 x 32 pixels become 16 tokens."""
    tokenizer = gemma_tokenizer()
    image_processor = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    image_processor.image_seq_length = 16
    processor = ColPaliProcessor(image_processor, tokenizer)
    text = {
        "model_type": "gemma",
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 20,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "vision_use_head": False,
        "projection_dim": 24,
    }
    vlm = {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": vision,
        "projection_dim": 24,
        "hidden_size": 24,
        "image_token_index": processor.image_token_id,
        "vocab_size": len(tokenizer),
    }
    save(ColPaliForRetrieval, ColPaliConfig(vlm_config=vlm, embedding_dim=TOKEN_WIDTH), folder, seed)
    processor.save_pretrained(folder)
    return str(folder)


def tiny_colqwen2(folder: str | Path, seed: int = 0) -> str:
    """ColQwen2ForRetrieval over a tiny Qwen2-VL: images keep their shape, in patches of 8 x 8 pixels."""
    tokenizer = qwen2_tokenizer()
    image_processor = Qwen2VLImageProcessor(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 18 * 18, "longest_edge": 48 * 48}
    )
    processor = ColQwen2Processor(image_processor, tokenizer)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 24,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    ids = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }
    vlm = {"model_type": "qwen2_vl", "text_config": text, "vision_config": vision, **ids}
    save(ColQwen2ForRetrieval, ColQwen2Config(vlm_config=vlm, embedding_dim=TOKEN_WIDTH), folder, seed)
    processor.save_pretrained(folder)
    return str(folder)


def tiny_colmodernvbert(folder: str | Path, seed: int = 0) -> str:
    """ColModernVBertForRetrieval: pictures are cut into tiles of 32 x 32 pixels, each of which becomes 4 tokens."""
    tokenizer = modernvbert_tokenizer()
    image_processor = Idefics3ImageProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": IMAGE_SIZE}, do_image_splitting=True
    )
    processor = ColModernVBertProcessor(image_processor, tokenizer, image_seq_len=4)
    text = {
        "model_type": "modernbert",
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "local_attention": 16,
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "reference_compile": False,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 20,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 4,
        "vision_use_head": False,
    }
    vlm = {
        "model_type": "modernvbert",
        "text_config": text,
        "vision_config": vision,
        "pixel_shuffle_factor": 4,
        "image_token_id": processor.image_token_id,
    }
    save(ColModernVBertForRetrieval, ColModernVBertConfig(vlm_config=vlm, embedding_dim=TOKEN_WIDTH), folder, seed)
    processor.save_pretrained(folder)
    return str(folder)
