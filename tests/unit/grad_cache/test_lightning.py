"""Under pytorch-lightning the cached step is the plain one: automatic, manual, accumulated, clipped, on two ranks."""

import importlib
import sys
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

pytest.importorskip("pytorch_lightning")

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.environments import TorchElasticEnvironment

from tests.gradients import assert_gradients_equal, relative_difference
from tests.ranks import Results, run_ranks
from tests.unit.grad_cache.encoders import Encoder, pictures, texts
from vembed.errors import UsageError
from vembed.grad_cache.cachex.functional import ChunkedSide
from vembed.grad_cache.cachex.tree_utils import take_rows
from vembed.grad_cache.loss import DistributedContrastiveLoss, SimpleContrastiveLoss
from vembed.grad_cache.pytorch_lightning.pl_gradcache import GradCacheMixin, GradCacheModule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),  # of its own and about workers of the data loader
    pytest.mark.filterwarnings("ignore:::lightning_fabric"),
]

NUM_ROWS, SCALE = 6, 5.0
Batches = list[tuple[dict[str, Tensor], dict[str, Tensor]]]


def batches(bert: str, count: int, rows: slice = slice(None)) -> Batches:
    return [
        (take_rows(dict(texts(bert, NUM_ROWS, first=step)), *rows.indices(NUM_ROWS)[:2]),
         take_rows(pictures(NUM_ROWS, first=10 * step), *rows.indices(NUM_ROWS)[:2]))
        for step in range(count)
    ]  # fmt: skip


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def narrow(reps: Tensor) -> Tensor:
    return reps[:, :20]


def module_of(
    bert: str, vit: str, chunk_size: int, loss: type[SimpleContrastiveLoss], **options: float
) -> GradCacheModule:
    models = [Encoder(bert), Encoder(vit)]
    return GradCacheModule(models, chunk_size, loss(scale=SCALE), sgd, get_rep_fn=narrow, **options)


def fit(module: LightningModule, data: Batches, **options: object) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(data, batch_size=None))
    return trainer


def weights(module: nn.Module) -> Results:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def plain_weights(bert: str, vit: str, data: Batches, *, accumulate: int = 1, clip: float = 1e9) -> Results:
    """The loop that everybody would write."""
    models = nn.ModuleList([Encoder(bert), Encoder(vit)])
    optimizer = sgd(models.parameters())
    for start in range(0, len(data), accumulate):
        optimizer.zero_grad()
        for queries, documents in data[start : start + accumulate]:
            reps = [narrow(model(**side)) for model, side in zip(models, (queries, documents), strict=True)]
            (SimpleContrastiveLoss(scale=SCALE)(*reps) / accumulate).backward()
        nn.utils.clip_grad_norm_(models.parameters(), clip)
        optimizer.step()
    return weights(models)


@pytest.mark.parametrize("chunk_size", [2, NUM_ROWS])
@pytest.mark.parametrize("automatic", [True, False])
def test_two_steps_are_two_plain_steps(bert_folder, vit_folder, automatic, chunk_size):
    data = batches(bert_folder, 2)
    expected = plain_weights(bert_folder, vit_folder, data)
    module = module_of(bert_folder, vit_folder, chunk_size, SimpleContrastiveLoss, automatic_optimization=automatic)
    trainer = fit(module, data)
    assert trainer.global_step == 2
    assert 0 < trainer.callback_metrics["train_loss"] < 5
    assert_gradients_equal(weights(module.encoders), expected)


def test_accumulation_and_clipping_are_lightnings(bert_folder, vit_folder):
    data = batches(bert_folder, 4)
    expected = plain_weights(bert_folder, vit_folder, data, accumulate=2, clip=0.05)
    module = module_of(bert_folder, vit_folder, 2, SimpleContrastiveLoss, retain=0.5)
    fit(module, data, accumulate_grad_batches=2, gradient_clip_val=0.05)
    assert_gradients_equal(weights(module.encoders), expected)


def test_mixed_precision_is_lightnings(bert_folder, vit_folder):
    """The replays run in bfloat16 as the first pass does, though backward is called outside of its autocast."""
    data, dtypes = batches(bert_folder, 1), []
    module = module_of(bert_folder, vit_folder, 2, SimpleContrastiveLoss).float()
    before = weights(module.encoders)
    layer = module.encoders[0].model.encoder.layer[1].output.dense
    layer.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    fit(module, data, precision="bf16-mixed")
    assert dtypes == [torch.bfloat16] * 6
    exact = module_of(bert_folder, vit_folder, 2, SimpleContrastiveLoss).float()
    fit(exact, data)
    steps = [
        {name: one[name] - before[name] for name in before} for one in map(weights, (module.encoders, exact.encoders))
    ]
    assert 1e-4 < relative_difference(*steps) < 0.1


class OwnModule(GradCacheMixin, LightningModule):
    """A training step of one's own, with a parameter that only the loss reads."""

    def __init__(self, bert: str, chunk_size: int | None) -> None:
        super().__init__()
        self.encoder, self.chunk_size = Encoder(bert), chunk_size
        self.log_scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        def loss(queries: Tensor, documents: Tensor) -> Tensor:
            return SimpleContrastiveLoss(scale=self.log_scale.exp())(queries, documents)

        def encode(chunk: dict[str, Tensor]) -> Tensor:
            return self.encoder(**chunk)

        return self.cached_loss([ChunkedSide(encode, side, self.chunk_size) for side in batch], loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.parameters())


def test_a_module_of_ones_own_takes_the_mixin(bert_folder):
    data = [(dict(texts(bert_folder, NUM_ROWS, step)), dict(texts(bert_folder, NUM_ROWS, step + 3))) for step in (0, 1)]
    cached, plain = OwnModule(bert_folder, 2), OwnModule(bert_folder, None)
    for module in (cached, plain):
        fit(module, data)
    assert cached.log_scale.item() != pytest.approx(0.3, abs=1e-3)
    assert_gradients_equal(weights(cached), weights(plain))


def test_a_strategy_that_shards_is_refused(bert_folder, vit_folder, monkeypatch):
    module = module_of(bert_folder, vit_folder, 2, SimpleContrastiveLoss)
    sharded = SimpleNamespace(world_size=2, strategy=SimpleNamespace(model=module))
    monkeypatch.setattr(GradCacheModule, "trainer", sharded)
    with pytest.raises(UsageError, match='one device or with strategy="ddp", not with SimpleNamespace'):
        module.training_step(batches(bert_folder, 1)[0], 0)


def test_without_lightning_the_error_names_the_extra(monkeypatch):
    name = GradCacheModule.__module__
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=r"vembed-factory\[lightning\]"):
        importlib.import_module(name)


def train_rank(rank: int, bert: str, vit: str) -> Results:
    """What a rank's half of each batch leaves in the weights, in every way that gradients are exchanged."""
    data = batches(bert, 2, slice(0, 2) if rank == 0 else slice(2, NUM_ROWS))
    results: Results = {}
    for name, automatic, chunk_size, accumulate in (
        ("automatic", True, 1, 1),
        ("manual", False, 1, 1),
        ("one_chunk", True, NUM_ROWS, 1),
        ("accumulated", True, 2, 2),
    ):
        module = module_of(bert, vit, chunk_size, DistributedContrastiveLoss, automatic_optimization=automatic)
        fit(module, data, devices=2, strategy="ddp", plugins=[TorchElasticEnvironment()], use_distributed_sampler=False,
            accumulate_grad_batches=accumulate)  # fmt: skip
        results |= {f"{name}/{key}": value for key, value in weights(module.encoders).items()}
    return results


def test_two_processes_train_as_one(bert_folder, vit_folder, tmp_path):
    found = run_ranks(train_rank, tmp_path / "ranks", bert_folder, vit_folder)
    data = batches(bert_folder, 2)
    for name in ("automatic", "manual", "one_chunk", "accumulated"):
        expected = plain_weights(bert_folder, vit_folder, data, accumulate=2 if name == "accumulated" else 1)
        for results in found:
            ours = {key.removeprefix(f"{name}/"): one for key, one in results.items() if key.startswith(f"{name}/")}
            assert_gradients_equal(ours, expected)
