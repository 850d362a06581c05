"""Tiny models of the real architectures, written as ordinary Hugging Face folders: random weights, real files.

Every function takes the folder to write and returns it as a str. Weights depend on `seed` only; nothing is downloaded.
All images are 32 x 32; texts end after 16 tokens (CLIP, SigLIP) or 32 (BERT).
"""

from pathlib import Path

from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from tests.tiny.saving import IMAGE_SIZE, save, write_json
from tests.tiny.tokenizers import BERT_LENGTH, DUAL_LENGTH, bert_tokenizer, clip_tokenizer, siglip_tokenizer


def tiny_bert(
    folder: str | Path, pooling: str | None = None, seed: int = 0, width: int = 24, length: int = BERT_LENGTH
) -> str:
    """BertModel; with `pooling` (mean | cls | ...) also the files of a sentence-transformers model."""
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=length,
        pad_token_id=0,
    )
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = length
    config.vocab_size = len(tokenizer)
    save(BertModel, config, folder, seed)
    tokenizer.save_pretrained(folder)
    if pooling is not None:
        write_sentence_transformers_files(folder, pooling, width)
    return str(folder)


def tiny_clip(folder: str | Path, seed: int = 0) -> str:
    """CLIPModel with its processor, embedding width 16."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": DUAL_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 20,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
    }
    save(CLIPModel, CLIPConfig(text_config=text, vision_config=vision, projection_dim=16), folder, seed)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_siglip(folder: str | Path, seed: int = 0) -> str:
    """SiglipModel with its processor, embedding width 24; texts are padded to 16 tokens."""
    tokenizer = siglip_tokenizer(folder)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": DUAL_LENGTH,
        "projection_size": 24,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_act": "gelu_pytorch_tanh",
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
    }
    save(SiglipModel, SiglipConfig(text_config=text, vision_config=vision), folder, seed)
    image_processor = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_vit(folder: str | Path, seed: int = 0) -> str:
    """ViTModel, 20 wide, without a pooling layer."""
    config = ViTConfig(
        hidden_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    save(ViTModel, config, folder, seed, add_pooling_layer=False)
    ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    return str(folder)


def tiny_dinov2(folder: str | Path, seed: int = 0) -> str:
    """Dinov2Model, 20 wide."""
    config = Dinov2Config(
        hidden_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    save(Dinov2Model, config, folder, seed)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    BitImageProcessor(
        size={"shortest_edge": 36}, crop_size=size, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ).save_pretrained(folder)
    return str(folder)


def tiny_timm(
    folder: str | Path, seed: int = 0, *, architecture: str = "test_efficientnet", image_size: int = IMAGE_SIZE
) -> str:
    """TimmWrapperModel around a small timm model, by default an EfficientNet (convolutions and batch norm)."""
    pretrained_cfg = {
        "input_size": [3, image_size, image_size],
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    arguments = {"img_size": image_size} if "vit" in architecture else None
    config = TimmWrapperConfig(
        architecture=architecture, num_labels=0, pretrained_cfg=pretrained_cfg, model_args=arguments
    )
    save(TimmWrapperModel, config, folder, seed)
    return str(folder)


def write_sentence_transformers_files(folder: str | Path, pooling: str, width: int) -> None:
    """modules.json, 1_Pooling, 2_Normalize and settings as sentence-transformers itself writes them."""
    folder = Path(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    keys = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}
    pooling_config = {"word_embedding_dimension": width}
    pooling_config |= {f"pooling_mode_{key}": name == pooling for name, key in keys.items()}
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling_config)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    (folder / "2_Normalize").mkdir(exist_ok=True)
