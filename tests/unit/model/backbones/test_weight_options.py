"""Weights in other dtypes, other attention, compiled towers: what they give, and where they are refused."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch._dynamo.utils import counters

from tests.tiny import tiny_bert, tiny_clip
from tests.unit.model.learning.test_lora import train_a_step
from vembed.errors import ConfigError, ModelError
from vembed.model.learning import compilation
from vembed.model.learning.dtypes import keep_trainable_in_float32
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.training.precision import cast_trainable_to_float32, choose_precision
from vembed.training.settings import TrainingSettings
from vembed.types import Item


def load(folder, **settings):
    return VisualRetrievalModel.from_pretrained(str(folder), ModelSettings(**settings))


def settle(model, **settings):
    cast_trainable_to_float32(model.model, ModelSettings(**settings), choose_precision(TrainingSettings(device="cpu")))


def cosines(first, second):
    return torch.nn.functional.cosine_similarity(first, second, dim=-1)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["clip", "siglip", "bert", "vit", "dinov2", "timm", "composed", "qwen3_vl", "colpali"])
def test_weights_of_less_precision_embed_nearly_alike(name, dtype, fresh, model_of, items_for):
    model = fresh(name, torch_dtype=dtype)
    weights = [p for network in model.model.towers().values() for p in network.parameters()]
    assert {p.dtype for p in weights} == {getattr(torch, dtype)}
    items = items_for(model)
    embeddings = model.encode(items)
    assert embeddings.vectors.dtype == torch.float32
    mask = slice(None) if embeddings.mask is None else embeddings.mask
    assert cosines(embeddings.vectors[mask], model_of(name).encode(items).vectors[mask]).min() > 0.99


SIGLIP, VIT = (pytest.param(name, marks=pytest.mark.slow) for name in ("siglip", "vit"))


@pytest.mark.parametrize("name", ["clip", SIGLIP, "bert", VIT, "own_code", "vit_pair", "qwen3_vl"])
def test_adapters_and_heads_learn_in_float32_beside_low_weights(name, fresh, items_for, tmp_path):
    model = fresh(name, torch_dtype="bfloat16", use_lora=True)
    settle(model, torch_dtype="bfloat16", use_lora=True)
    infos = parameter_infos(model.model)
    assert {info.parameter.dtype for info in infos if info.parameter.requires_grad} == {torch.float32}
    assert {info.parameter.dtype for info in infos if not info.parameter.requires_grad} == {torch.bfloat16}
    items = items_for(model)
    before = model.encode(items).vectors
    train_a_step(model, items)
    after = model.encode(items).vectors
    assert (after - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path, merge_adapters=False)
    code = name == "own_code"
    whole = load(tmp_path, trust_remote_code=code)  # over the base as it is in its file
    assert cosines(whole.encode(items).vectors, after).min() > 0.999
    again = load(tmp_path, torch_dtype="bfloat16", trust_remote_code=code)
    assert cosines(again.encode(items).vectors, after).min() > 0.999


@pytest.mark.parametrize("name", ["clip", SIGLIP, "composed", "vit_pair"])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_frozen_tower_stays_low_beside_one_that_learns(name, tower, fresh, items_for, tmp_path):
    model = fresh(name, torch_dtype="bfloat16", freeze=(tower,))
    settle(model, torch_dtype="bfloat16")
    dtypes = {part: {p.dtype for p in network.parameters()} for part, network in model.model.towers().items()}
    assert dtypes.pop(tower) == {torch.bfloat16}
    assert next(iter(dtypes.values())) == {torch.float32}
    items = items_for(model)
    before = model.encode(items).vectors
    train_a_step(model, items)
    after = model.encode(items).vectors
    assert (after - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    assert cosines(load(tmp_path).encode(items).vectors, after).min() > 0.999


def test_auto_is_the_dtype_of_the_file(tmp_path):
    folder = tiny_bert(tmp_path / "bert", pooling="mean")
    load(folder, torch_dtype="bfloat16").save_pretrained(tmp_path / "low")
    assert load(tmp_path / "low", torch_dtype="auto").model.text_tower.model.dtype == torch.bfloat16
    assert load(tmp_path / "low").model.text_tower.model.dtype == torch.float32
    assert load(folder, torch_dtype="auto").model.text_tower.model.dtype == torch.float32


def test_a_dtype_without_effect_or_without_a_scaler_is_refused(fresh):
    with pytest.raises(
        ConfigError, match=r"torch_dtype: bfloat16 would have no effect.*set use_lora, or freeze a tower"
    ):
        settle(fresh("bert", torch_dtype="bfloat16"), torch_dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"would have no effect.*with all that it runs through"):
        settle(fresh("qwen3_vl", torch_dtype="bfloat16", freeze=("vision",)), torch_dtype="bfloat16")
    with pytest.raises(ConfigError, match="float16 weights vanish unless they are scaled"):
        settle(fresh("bert", torch_dtype="float16", use_lora=True), torch_dtype="float16")
    settle(fresh("composed", torch_dtype="float16", freeze=("text", "vision")), torch_dtype="float16")
    model = fresh("bert", torch_dtype="auto")
    settle(model, torch_dtype="auto")


def test_weights_of_4_bits_are_not_trained_themselves(fresh):
    model = fresh("bert")
    layer = model.model.text_tower.model.encoder.layer[0].output.dense
    layer.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)  # as bitsandbytes packs
    with pytest.raises(
        ConfigError, match="quantization: weights of 4 bits cannot learn; set use_lora: true, or freeze"
    ):
        settle(model, quantization="4bit")


def test_casting_keeps_values_and_is_done_once(fresh):
    model = fresh("clip", torch_dtype="bfloat16", freeze=("text",)).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keep_trainable_in_float32(model)
    assert all(torch.equal(tensor.to(before[name].dtype), before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["clip", "siglip", "bert", "vit", "dinov2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_computed_as_asked_with_equal_results(name, attention, fresh, model_of, items_for):
    model = fresh(name, attn_implementation=attention)
    for network in model.model.towers().values():
        assert network.config._attn_implementation == attention
    items = items_for(model)
    assert torch.allclose(model.encode(items).vectors, model_of(name).encode(items).vectors, atol=1e-5)


def test_attention_that_cannot_be_is_refused(fresh):
    with pytest.raises(
        ModelError, match="attn_implementation eager: TimmWrapperModel computes attention by code of its"
    ):
        fresh("timm", attn_implementation="eager")
    with pytest.raises(ModelError, match="attn_implementation sdpa: transformers has no such attention for this model"):
        fresh("mpnet", attn_implementation="sdpa")
    with pytest.raises(ModelError, match="flash_attention_2 needs the package flash-attn, which is not installed; use"):
        fresh("bert", attn_implementation="flash_attention_2")


def pickled(folder, state):
    """The folder with its weights in a pickle."""
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def test_pickled_weights_are_read_when_asked(texts, tmp_path):
    folder = Path(tiny_bert(tmp_path / "bert", pooling="mean"))
    plain = load(folder)
    pickled(folder, plain.model.text_tower.model.state_dict())
    with pytest.raises(ModelError, match=r"pickled weights only \(pytorch_model.bin\).*allow_pickled_weights: true"):
        load(folder)
    opened = load(folder, allow_pickled_weights=True)
    assert torch.equal(opened.get_text_features(texts), plain.get_text_features(texts))
    adapted = load(folder, allow_pickled_weights=True, use_lora=True)
    train_a_step(adapted, [Item(text=text) for text in texts])
    adapted.save_pretrained(tmp_path / "adapter", merge_adapters=False)
    assert load(tmp_path / "adapter", allow_pickled_weights=True)


@pytest.mark.parametrize("length", [0, 6, 300])
def test_a_damaged_pickle_is_refused(length, tmp_path):
    folder = Path(tiny_bert(tmp_path / "bert", pooling="mean"))
    pickled(folder, load(folder).model.text_tower.model.state_dict())
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"model folder .*bert' cannot be loaded: "):
        load(folder, allow_pickled_weights=True)
    file.write_bytes(b"\x80\x02r\x00")
    with pytest.raises(ModelError, match="its weights are damaged or cut short"):
        load(folder, allow_pickled_weights=True)


class Attack:
    """Pickled, it is a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_never_run(tmp_path):
    folder = Path(tiny_clip(tmp_path / "clip"))
    trace = tmp_path / "it ran"
    pickled(folder, {"weight": Attack(trace)})
    pickle.loads(pickle.dumps(Attack(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()
    for settings in ({}, {"allow_pickled_weights": True}, {"allow_pickled_weights": True, "trust_remote_code": True}):
        with pytest.raises(ModelError, match=r"pickled weights only|a pickle of more than tensors; it was not run"):
            load(folder, **settings)
    assert not trace.exists()


def test_compiling_needs_a_compiler(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"torch_compile needs a C\+\+ compiler.*looked for no-such-compiler"):
        fresh("bert", torch_compile=True)


@pytest.mark.slow
def test_compiled_towers_give_equal_embeddings_and_gradients(fresh, texts, tmp_path):
    models = [fresh("bert", use_lora=True, lora_dropout=0.1, torch_compile=compiled) for compiled in (False, True)]
    assert torch._dynamo.config.recompile_limit >= compilation._MAX_RECOMPILATIONS
    items = [Item(text=text) for text in texts]
    for model in models:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.model.named_parameters():
                if ".lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    plain, compiled = (model.encode(items, batch_size=4).vectors for model in models)
    assert torch.allclose(compiled, plain, atol=1e-5)
    found = []
    for model in models:
        model.model.train()
        inputs = model.processor.finish(model.processor.prepare(items, "document"))
        torch.manual_seed(0)
        with torch.no_grad():
            first = model.model(inputs).vectors
        torch.manual_seed(0)
        second = model.model(inputs).vectors
        assert torch.allclose(first, second, atol=1e-6), "a chunk's second forward repeats the first, dropout included"
        (second @ second.T).square().mean().backward()
        found.append({name: p.grad for name, p in model.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    total = math.sqrt(sum(g.square().sum().item() for g in found[0].values()))
    difference = math.sqrt(sum((found[0][key] - found[1][key]).square().sum().item() for key in found[0]))
    assert difference / total < 1e-5
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    models[1].save_pretrained(tmp_path, merge_adapters=False)
    names = [name for file in tmp_path.rglob("*.safetensors") for name in tensor_names(file)]
    assert len(names) > 20
    assert not [name for name in names if "_orig_mod" in name]
    assert torch.allclose(load(tmp_path).encode(items).vectors, plain, atol=1e-5)


def tensor_names(file):
    with safe_open(file, "pt") as opened:
        return list(opened.keys())
