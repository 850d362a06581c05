"""Tiny models of the real architectures, written as ordinary Hugging Face folders: random weights, real files.

Every function takes the folder to write and returns it as a str. Weights depend on `seed` only; nothing is downloaded.
All images are 32 x 32; texts end after 16 tokens (CLIP, SigLIP) or 32 (BERT).
"""

import json
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipTokenizer,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

CORPUS = [
    "a photo of a red circle",
    "two blue squares on a green field",
    "the small yellow triangle beside a large picture",
    "what colour is the shape in this image",
    "either/or and 1234567890 signs: !?.,;-_()",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ",
]
IMAGE_SIZE = 32
BERT_LENGTH = 32
DUAL_LENGTH = 16


def tiny_bert(folder: str | Path, pooling: str | None = None, seed: int = 0, width: int = 24) -> str:
    """BertModel; with `pooling` (mean | cls | ...) also the files of a sentence-transformers model."""
    config = BertConfig(
        vocab_size=300,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=BERT_LENGTH,
        pad_token_id=0,
    )
    tokenizer = _bert_tokenizer(config.vocab_size)
    config.vocab_size = len(tokenizer)
    _save(BertModel, config, folder, seed)
    tokenizer.save_pretrained(folder)
    if pooling is not None:
        write_sentence_transformers_files(folder, pooling, width)
    return str(folder)


def tiny_clip(folder: str | Path, seed: int = 0) -> str:
    """CLIPModel with its processor, embedding width 16."""
    tokenizer = _clip_tokenizer()
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
    _save(CLIPModel, CLIPConfig(text_config=text, vision_config=vision, projection_dim=16), folder, seed)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_siglip(folder: str | Path, seed: int = 0) -> str:
    """SiglipModel with its processor, embedding width 24; texts are padded to 16 tokens."""
    tokenizer = _siglip_tokenizer(folder)
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
    _save(SiglipModel, SiglipConfig(text_config=text, vision_config=vision), folder, seed)
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
    _save(ViTModel, config, folder, seed, add_pooling_layer=False)
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
    _save(Dinov2Model, config, folder, seed)
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
    _save(TimmWrapperModel, config, folder, seed)
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
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "1_Pooling" / "config.json", pooling_config)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    (folder / "2_Normalize").mkdir(exist_ok=True)


def _save(
    model_class: type[PreTrainedModel], config: object, folder: str | Path, seed: int, **arguments: object
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config, **arguments)
        _spread(model)
    model.save_pretrained(folder)


def _spread(model: PreTrainedModel) -> None:
    """Move weights off their near-zero starting values, so that different inputs give clearly different outputs."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=min(0.15, parameter[0].numel() ** -0.5))
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    if any(name.endswith("running_var") for name, _ in model.named_buffers()):
        _settle_batch_norm(model)


@torch.no_grad()
def _settle_batch_norm(model: PreTrainedModel) -> None:
    """Give batch norms the statistics of coloured noise, as training would; otherwise biases drown the picture."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    colours = 2 * torch.randn(64, 3, 1, 1)
    model.train()(pixel_values=colours + 0.5 * torch.randn(64, 3, IMAGE_SIZE, IMAGE_SIZE))
    for norm in norms:
        norm.momentum = 0.1


def _bert_tokenizer(vocab_size: int) -> BertTokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=BERT_LENGTH)


def _clip_tokenizer() -> CLIPTokenizer:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    letters = sorted(alphabet)
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [token for token in model["vocab"] if token not in set(tokens)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=DUAL_LENGTH)


def _siglip_tokenizer(folder: str | Path) -> SiglipTokenizer:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=120, hard_vocab_limit=False,
            unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, minloglevel=2,
        )  # fmt: skip
    return SiglipTokenizer(
        vocab_file=str(Path(folder) / "spiece.model"), model_max_length=DUAL_LENGTH, model_input_names=["input_ids"]
    )


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
