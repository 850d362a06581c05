"""Tiny text models of the real architectures with their real tokenizers; texts end after 32 tokens."""

import json
from pathlib import Path

import transformers
from safetensors.torch import save_file
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tests.tiny.saving import save, write_json
from tests.tiny.text_tokenizers import (
    TEXT_LENGTH,
    modernbert_tokenizer,
    mpnet_tokenizer,
    roberta_tokenizer,
    t5_tokenizer,
    xlm_roberta_tokenizer,
)
from tests.tiny.tokenizers import bert_tokenizer

WIDTH = 24
_SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}


def tiny_mpnet(folder: str | Path, seed: int = 0) -> str:
    """MPNetModel."""
    config = MPNetConfig(**_SHAPE, max_position_embeddings=TEXT_LENGTH + 2)
    return _written(folder, MPNetModel, config, mpnet_tokenizer(), seed)


def tiny_roberta(folder: str | Path, seed: int = 0) -> str:
    """RobertaModel."""
    config = RobertaConfig(**_SHAPE, max_position_embeddings=TEXT_LENGTH + 2, type_vocab_size=1)
    return _written(folder, RobertaModel, config, roberta_tokenizer(), seed)


def tiny_xlm_roberta(folder: str | Path, seed: int = 0) -> str:
    """XLMRobertaModel."""
    config = XLMRobertaConfig(**_SHAPE, max_position_embeddings=TEXT_LENGTH + 2, type_vocab_size=1)
    return _written(folder, XLMRobertaModel, config, xlm_roberta_tokenizer(), seed)


def tiny_distilbert(folder: str | Path, seed: int = 0) -> str:
    """DistilBertModel."""
    config = DistilBertConfig(dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=40, max_position_embeddings=TEXT_LENGTH)
    return _written(folder, DistilBertModel, config, bert_tokenizer(), seed)


def tiny_modernbert(folder: str | Path, seed: int = 0) -> str:
    """ModernBertModel, one layer of three with global attention, the others with a window of 8 tokens."""
    shape = {**_SHAPE, "num_hidden_layers": 3}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertConfig(**shape, max_position_embeddings=TEXT_LENGTH, local_attention=8, **ends)
    return _written(folder, ModernBertModel, config, modernbert_tokenizer(), seed)


def tiny_gte(folder: str | Path, seed: int = 0) -> str:
    """GteModel, the new GTE: rotary positions, XLM-R's tokenizer."""
    config = transformers.GteConfig(**_SHAPE, max_position_embeddings=TEXT_LENGTH)
    return _written(folder, transformers.GteModel, config, xlm_roberta_tokenizer(), seed)


def tiny_nomic_bert(folder: str | Path, seed: int = 0) -> str:
    """NomicBertModel."""
    config = transformers.NomicBertConfig(**_SHAPE, max_position_embeddings=TEXT_LENGTH)
    return _written(folder, transformers.NomicBertModel, config, bert_tokenizer(), seed)


def tiny_t5(folder: str | Path, seed: int = 0) -> str:
    """T5EncoderModel, as gtr-t5, sentence-t5 and Instructor have it."""
    config = T5Config(d_model=WIDTH, d_kv=12, d_ff=40, num_layers=3, num_heads=2)
    return _written(folder, T5EncoderModel, config, t5_tokenizer(), seed)


def _written(
    folder: str | Path, model_class: type, config: object, tokenizer: PreTrainedTokenizerBase, seed: int
) -> str:
    config.vocab_size = len(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    save(model_class, config, folder, seed)
    tokenizer.save_pretrained(folder)
    return str(folder)


_NEW_CONFIG = """from transformers import GteConfig


class NewConfig(GteConfig):
    model_type = "new"
"""
_NEW_MODEL = """from transformers import GteModel

from .configuration_new import NewConfig


class NewModel(GteModel):
    config_class = NewConfig
"""


def tiny_new(folder: str | Path, seed: int = 0) -> str:
    """A GTE as it lies on the hub: of type "new", which only the code in its folder opens."""
    model = transformers.GteModel.from_pretrained(tiny_gte(folder, seed))
    save_file(model.state_dict(), Path(folder) / "model.safetensors", metadata={"format": "pt"})
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config |= {
        "model_type": "new",
        "architectures": ["NewModel"],
        "auto_map": {"AutoConfig": "configuration_new.NewConfig", "AutoModel": "modeling_new.NewModel"},
    }
    write_json(path, config)
    (Path(folder) / "configuration_new.py").write_text(_NEW_CONFIG)
    (Path(folder) / "modeling_new.py").write_text(_NEW_MODEL)
    return str(folder)
