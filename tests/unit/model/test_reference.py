"""What preference optimisation compares with: a model as it was, of every family, whatever is learned afterwards."""

import pytest
import torch
from torch import nn

from tests.cases import CASES
from tests.unit.model.test_contract import EVERY, embed, shake, variant
from vembed.grad_cache.cachex.functional import ChunkedSide
from vembed.model.adapters.layers import layers_with_adapters
from vembed.model.learning.compilation import is_compiled
from vembed.model.learning.lora import has_adapters
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.training.dpo import Reference, frozen_copy
from vembed.types import Item


def learn(model: VisualRetrievalModel) -> None:
    """Change every weight that learns."""
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def seen_by(copy, model, items):
    """Embeddings by a copy of the model's network."""
    return embed(VisualRetrievalModel(copy, model.processor), items)


def assert_stays_at_the_start(model, items):
    before = embed(model, items)
    copy = frozen_copy(model.model)
    assert torch.equal(seen_by(copy, model, items).vectors, before.vectors)
    learn(model)
    assert not torch.allclose(embed(model, items).vectors, before.vectors, atol=1e-4)
    after = seen_by(copy, model, items)
    assert torch.equal(after.vectors, before.vectors)
    assert not after.vectors.requires_grad
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("way", ["plain", "lora"])
@pytest.mark.parametrize("name", EVERY)
def test_of_every_family_it_stays_at_the_start(name, way, fresh, items_for):
    model = fresh(name, **variant(name, way))
    assert_stays_at_the_start(model, items_for(model, CASES[name].mixed))


@pytest.mark.parametrize(
    "settings", [{"freeze": ("vision",)}, {"use_lora": True}, {"use_lora": True, "use_dora": True}]
)
def test_what_does_not_learn_is_shared(settings, fresh, items_for):
    model = fresh("clip", **settings)
    copy = assert_stays_at_the_start(model, items_for(model))
    own = {id(parameter) for parameter in model.model.parameters() if not parameter.requires_grad}
    assert own
    assert own <= {id(parameter) for parameter in copy.parameters()}
    learning = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    assert not {id(parameter) for parameter in learning} & {id(parameter) for parameter in copy.parameters()}
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_adapters_that_do_nothing_yet_are_off(fresh, items_for):
    adapted, plain = fresh("clip", use_lora=True, lora_dropout=0.5), fresh("clip")
    items = items_for(plain)
    copy = assert_stays_at_the_start(adapted, items)
    assert not list(layers_with_adapters(copy))
    assert has_adapters(adapted.model)
    assert torch.equal(seen_by(copy, adapted, items).vectors, embed(plain, items).vectors)


def test_adapters_that_learn_on_stay_as_they_were_opened(fresh, items_for, tmp_path):
    first = fresh("clip", use_lora=True)
    learn(first)
    first.save_pretrained(tmp_path / "adapters", merge_adapters=False)
    again = VisualRetrievalModel.from_pretrained(str(tmp_path / "adapters"), ModelSettings(use_lora=True))
    items = items_for(first)
    copy = assert_stays_at_the_start(again, items)
    assert list(layers_with_adapters(copy))
    assert torch.equal(seen_by(copy, again, items).vectors, embed(first, items).vectors)


def test_heads_and_fusion_that_learn_beside_adapters_are_the_first_ones(fresh, items_for):
    model = shake(fresh("vit_pair_mlp", use_lora=True))
    heads = [info for info in parameter_infos(model.model) if info.part == "heads"]
    assert all(info.parameter.requires_grad for info in heads)
    assert len(heads) >= 2
    assert_stays_at_the_start(model, items_for(model))


def test_it_holds_only_what_learns_once_more(fresh):
    whole, adapted = fresh("clip"), fresh("clip", use_lora=True)
    sizes = [sum(one.numel() * one.element_size() for one in model.model.parameters()) for model in (whole, adapted)]
    buffers = sum(one.numel() * one.element_size() for one in whole.model.buffers())
    assert Reference(whole.model).num_bytes(whole.model) == sizes[0] + buffers
    projections = [
        info.parameter.numel() * 4
        for info in parameter_infos(adapted.model)
        if info.parameter.requires_grad and ".lora_" not in info.name
    ]
    assert Reference(adapted.model).num_bytes(adapted.model) == sum(projections) + buffers


def test_embedding_is_without_dropout_and_leaves_the_random_numbers(bert_folder):
    model = VisualRetrievalModel.from_pretrained(bert_folder)
    for module in model.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.model.train()
    reference = Reference(model.model)
    items = [Item(text=word) for word in "red blue green".split()]
    inputs = model.processor.prepare(items, "document")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole, chunks = (
        reference.embed(ChunkedSide(lambda chunk: reference.model(model.processor.finish(chunk)), inputs, size))
        for size in (None, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(whole.vectors, chunks.vectors, atol=1e-6)
    assert model.model.training
    model.model.eval()
    assert torch.allclose(whole.vectors, embed(model, items).vectors, atol=1e-6)


def test_statistics_of_batch_norm_stay_too(fresh, items_for):
    model = fresh("timm")
    model.model.train_batch_norm = True
    items = items_for(model)
    copy = frozen_copy(model.model)
    before = seen_by(copy, model, items).vectors
    model.model.train()
    embed(model, items)
    assert torch.equal(seen_by(copy, model, items).vectors, before)
    model.model.eval()
    assert not torch.equal(embed(model, items).vectors, before)


@pytest.mark.slow
def test_the_copy_of_compiled_towers_is_compiled_and_its_own(fresh, texts):
    model = fresh("bert", torch_compile=True)
    copy = assert_stays_at_the_start(model, [Item(text=text) for text in texts])
    assert is_compiled(copy)
