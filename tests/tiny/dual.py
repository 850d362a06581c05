"""Tiny dual encoders beyond CLIP and SigLIP, each with its own processor. All texts end after 16 tokens."""

from pathlib import Path

from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPImageProcessor,
    CLIPProcessor,
    GemmaTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerBase,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from tests.tiny.eva_clip import EvaCLIPConfig, EvaCLIPModel
from tests.tiny.saving import IMAGE_SIZE, save
from tests.tiny.tokenizers import (
    DUAL_LENGTH,
    bert_tokenizer,
    clip_tokenizer,
    siglip2_tokenizer,
    xlm_roberta_tokenizer,
)

NAFLEX_PATCHES = 12
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
_SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
_VISION = {"hidden_size": 20, "intermediate_size": 32, "image_size": IMAGE_SIZE, "patch_size": 8, **_LAYERS}


def tiny_siglip2(folder: str | Path, seed: int = 0) -> str:
    """SigLIP 2 of one image size: SiglipModel with a Gemma tokenizer, as google/siglip2-base-patch16-224."""
    tokenizer = siglip2_tokenizer(GemmaTokenizer, model_input_names=["input_ids"])
    vision = {**_VISION, "hidden_size": 24}
    save(SiglipModel, SiglipConfig(text_config=_siglip_text(tokenizer), vision_config=vision), folder, seed)
    image_processor = SiglipImageProcessor(size=_SQUARE)
    SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_naflex(folder: str | Path, seed: int = 0) -> str:
    """SigLIP 2 NaFlex: pictures of any shape as at most 12 patches of 16 pixels, over a grid of 3 x 3 positions."""
    tokenizer = siglip2_tokenizer(Siglip2Tokenizer, model_input_names=["input_ids"])
    vision = {"hidden_size": 24, "intermediate_size": 32, "patch_size": 16, "num_patches": 9, **_LAYERS}
    save(Siglip2Model, Siglip2Config(text_config=_siglip_text(tokenizer), vision_config=vision), folder, seed)
    image_processor = Siglip2ImageProcessor(patch_size=16, max_num_patches=NAFLEX_PATCHES)
    Siglip2Processor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_metaclip2(folder: str | Path, seed: int = 0) -> str:
    """MetaClip2Model with an XLM-RoBERTa tokenizer, embedding width 16."""
    tokenizer = xlm_roberta_tokenizer()
    text = _text(len(tokenizer), tokenizer) | {"max_position_embeddings": DUAL_LENGTH}
    save(MetaClip2Model, MetaClip2Config(text_config=text, vision_config=_VISION, projection_dim=16), folder, seed)
    CLIPProcessor(image_processor=_clip_images(), tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_chinese_clip(folder: str | Path, seed: int = 0) -> str:
    """ChineseCLIPModel with a BERT tokenizer, embedding width 16."""
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = DUAL_LENGTH
    text = _text(len(tokenizer), tokenizer) | {"max_position_embeddings": DUAL_LENGTH}
    save(ChineseCLIPModel, ChineseCLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16), folder, seed)
    image_processor = ChineseCLIPImageProcessor(size=_SQUARE, do_center_crop=False)
    ChineseCLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_altclip(folder: str | Path, seed: int = 0) -> str:
    """AltCLIPModel with an XLM-RoBERTa tokenizer, embedding width 16; positions are numbered from 2."""
    tokenizer = xlm_roberta_tokenizer()
    text = _text(len(tokenizer), tokenizer) | {"max_position_embeddings": DUAL_LENGTH + 2, "project_dim": 12}
    save(AltCLIPModel, AltCLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16), folder, seed)
    CLIPProcessor(image_processor=_clip_images(), tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_own_code(folder: str | Path, seed: int = 0) -> str:
    """A dual encoder of a class that transformers does not have; its code lies beside its weights, as EVA-CLIP's."""
    tokenizer = clip_tokenizer()
    text = _text(len(tokenizer), tokenizer) | {"max_position_embeddings": DUAL_LENGTH}
    config = EvaCLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16)
    EvaCLIPConfig.register_for_auto_class()
    EvaCLIPModel.register_for_auto_class("AutoModel")
    save(EvaCLIPModel, config, folder, seed)
    CLIPProcessor(image_processor=_clip_images(), tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def _text(vocab_size: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 24,
        "intermediate_size": 40,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **_LAYERS,
    }


def _siglip_text(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    own = {"max_position_embeddings": DUAL_LENGTH, "projection_size": 24, "hidden_act": "gelu_pytorch_tanh"}
    return _text(len(tokenizer), tokenizer) | own


def _clip_images() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=_SQUARE)
