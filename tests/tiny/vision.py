"""Tiny vision encoders beyond ViT, DINOv2 and timm, each with its own processor. All images are 32 x 32."""

from pathlib import Path

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    ConvNextImageProcessor,
    ConvNextModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from tests.tiny.saving import IMAGE_SIZE, save

NUM_REGISTERS = 3
_SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
_VIT = {"hidden_size": 24, "intermediate_size": 32, "image_size": IMAGE_SIZE, "patch_size": 8, **_LAYERS}


def tiny_dinov3_vit(folder: str | Path, seed: int = 0) -> str:
    """DINOv3ViTModel, 24 wide, with a CLS token and 3 registers."""
    save(DINOv3ViTModel, DINOv3ViTConfig(**_VIT, num_register_tokens=NUM_REGISTERS), folder, seed)
    DINOv3ViTImageProcessor(size=_SQUARE).save_pretrained(folder)
    return str(folder)


def tiny_dinov3_convnext(folder: str | Path, seed: int = 0) -> str:
    """DINOv3ConvNextModel of two stages, 24 wide, whose first token is the mean of the others."""
    config = DINOv3ConvNextConfig(hidden_sizes=[8, 24], depths=[1, 1], image_size=IMAGE_SIZE)
    config.layer_scale_init_value = 1.0
    save(DINOv3ConvNextModel, config, folder, seed)
    DINOv3ViTImageProcessor(size=_SQUARE).save_pretrained(folder)
    return str(folder)


def tiny_mae(folder: str | Path, seed: int = 0) -> str:
    """ViTMAEForPreTraining with its decoder, as facebook/vit-mae-base: it masks three quarters of an image."""
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_intermediate_size": 24,
        "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
    }
    save(ViTMAEForPreTraining, ViTMAEConfig(**_VIT, **decoder), folder, seed)
    ViTImageProcessor(size=_SQUARE).save_pretrained(folder)
    return str(folder)


def tiny_siglip_vision(folder: str | Path, seed: int = 0) -> str:
    """SiglipVisionModel, 24 wide, which pools by attention."""
    save(SiglipVisionModel, SiglipVisionConfig(**_VIT), folder, seed)
    SiglipImageProcessor(size=_SQUARE).save_pretrained(folder)
    return str(folder)


def tiny_naflex_vision(folder: str | Path, seed: int = 0) -> str:
    """Siglip2VisionModel, 24 wide, which reads pictures of any shape as at most 12 patches."""
    config = Siglip2VisionConfig(hidden_size=24, intermediate_size=32, patch_size=16, num_patches=9, **_LAYERS)
    save(Siglip2VisionModel, config, folder, seed)
    Siglip2ImageProcessor(patch_size=16, max_num_patches=12).save_pretrained(folder)
    return str(folder)


def tiny_clip_vision(folder: str | Path, seed: int = 0) -> str:
    """CLIPVisionModelWithProjection, 24 wide, projected to 16."""
    save(CLIPVisionModelWithProjection, CLIPVisionConfig(**_VIT, projection_dim=16), folder, seed)
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=_SQUARE).save_pretrained(folder)
    return str(folder)


def tiny_convnext(folder: str | Path, seed: int = 0) -> str:
    """ConvNextModel of two stages, 24 wide over 4 x 4 places; its processor crops by a share of its own."""
    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 24], depths=[1, 1], image_size=IMAGE_SIZE)
    config.layer_scale_init_value = 1.0
    save(ConvNextModel, config, folder, seed)
    ConvNextImageProcessor(size={"shortest_edge": IMAGE_SIZE}).save_pretrained(folder)
    return str(folder)


def tiny_swin(folder: str | Path, seed: int = 0) -> str:
    """SwinModel, 24 wide, which averages its patches."""
    config = SwinConfig(
        image_size=IMAGE_SIZE, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    save(SwinModel, config, folder, seed)
    ViTImageProcessor(size=_SQUARE).save_pretrained(folder)
    return str(folder)
