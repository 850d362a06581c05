"""Gradient caching in pytorch-lightning 2.x (`pip install "vembed-factory[lightning]"`).

`GradCacheModule` is a LightningModule for any encoders; `GradCacheMixin` gives a module of one's own a `cached_loss`:

    class MyModule(GradCacheMixin, LightningModule):
        def training_step(self, batch, batch_idx):
            sides = [ChunkedSide(self.encoder, inputs, chunk_size=32) for inputs in batch]
            return self.cached_loss(sides, self.loss_fn)

The loss's backward runs the chunks again, so Lightning's own precision, accumulation, clipping and loggers work as
ever. With several devices, gradients are averaged once per backward over all parameters, not by the hooks of
DistributedDataParallel, which would count each chunk of a parameter as its last.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vembed.errors import UsageError
from vembed.grad_cache.cachex.deferred import deferred_loss
from vembed.grad_cache.cachex.functional import ChunkedSide
from vembed.grad_cache.cachex.tree_utils import move
from vembed.grad_cache.grad_cache import GradCache
from vembed.utils.distributed import average_gradients

try:
    from pytorch_lightning import LightningModule
except ModuleNotFoundError as error:
    raise UsageError('pytorch-lightning is not installed; pip install "vembed-factory[lightning]"') from error

if TYPE_CHECKING:
    _Base = LightningModule
else:
    _Base = object


class GradCacheMixin(_Base):
    """`cached_loss` for a LightningModule, which stands behind it among the bases.

    For automatic optimisation return the loss from `training_step`; for manual, give it to `manual_backward`. One
    device, or several by the strategy "ddp".
    """

    _unsynchronized: ExitStack | None = None

    def cached_loss(
        self, sides: Sequence[ChunkedSide], loss_function: Callable[..., Tensor], *, retain: float = 0.0
    ) -> Tensor:
        """The loss over all rows of all sides, a scalar. Its backward, once, is the cached one; `retain` as there.

        Raises UsageError under a strategy that shards the model.
        """
        self._synchronize_again()
        wrapper = self._wrapper()
        if wrapper is not None:
            self._unsynchronized = ExitStack()
            self._unsynchronized.enter_context(wrapper.no_sync())
        return deferred_loss(sides, loss_function, retain=retain)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, and then the exchange of gradients."""
        super().backward(loss, *args, **kwargs)
        if self._unsynchronized is not None:
            average_gradients(self.parameters())
        self._synchronize_again()

    def _synchronize_again(self) -> None:
        if self._unsynchronized is not None:
            self._unsynchronized.close()
            self._unsynchronized = None

    def _wrapper(self) -> DistributedDataParallel | None:
        wrapper = self.trainer.strategy.model
        if isinstance(wrapper, DistributedDataParallel):
            return wrapper
        if self.trainer.world_size > 1:
            name = type(self.trainer.strategy).__name__
            raise UsageError(f'gradient caching works on one device or with strategy="ddp", not with {name}')
        return None


class GradCacheModule(GradCacheMixin, LightningModule):
    """Trains encoders by a contrastive loss over whole batches, in the memory of one chunk.

    A batch is a sequence with one input per encoder, or for the one encoder; it stays where the data loader left it,
    and each chunk is moved to the device when its turn comes. The arguments are those of `GradCache`, but for mixed
    precision, which is the Trainer's. `make_optimizer` takes the parameters that learn. The loss is logged as
    "train_loss".
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        chunk_sizes: int | Sequence[int],
        loss_fn: Callable[..., Tensor],
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        *,
        split_input_fn: Callable[[Any, int], Sequence[Any]] | None = None,  # Any: the caller's own inputs
        get_rep_fn: Callable[[Any], Any] | None = None,
        retain: float = 0.0,
        automatic_optimization: bool = True,
    ) -> None:
        super().__init__()
        self.cache = _OnDevice(models, chunk_sizes, loss_fn, split_input_fn, get_rep_fn, retain=retain)
        self.encoders = nn.ModuleList(self.cache.models)
        self.loss_fn = loss_fn
        self.make_optimizer = make_optimizer
        self.automatic_optimization = automatic_optimization

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The loss of the batch; with manual optimisation its update as well."""
        loss = self.cached_loss(self.cache.sides(*batch), self.cache.compute_loss, retain=self.cache.retain)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=1)
        if not self.automatic_optimization:
            found = self.optimizers()
            optimizers = found if isinstance(found, list) else [found]
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """That of `make_optimizer`."""
        return self.make_optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch as it is."""
        return batch


class _OnDevice(GradCache):
    """Moves each chunk to its model."""

    def model_call(self, model: nn.Module, model_input: Any) -> Any:
        device = next(model.parameters()).device
        return super().model_call(model, move(model_input, device))
