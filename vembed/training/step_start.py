"""Where a step began, to go back there when it cannot be finished: weights change only at its end."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vembed.data.batches.loader import LoaderState
from vembed.training.rng import capture_rng, restore_rng
from vembed.training.state import TrainState


@dataclass(frozen=True)
class StepStart:
    """What the batches of a step move before its end. statistics: of batch norms that learn, with their values then."""

    loader: LoaderState | None
    num_truncated_texts: int
    generators: Mapping[str, Tensor]
    statistics: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, model: nn.Module, state: TrainState) -> "StepStart":
        """The start of the step that comes next."""
        learning = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        statistics = [(buffer, buffer.clone()) for module in learning for buffer in module.buffers()]
        return cls(state.loader, state.num_truncated_texts, capture_rng(), tuple(statistics))

    def restore(self, state: TrainState) -> None:
        """Put all of it back."""
        state.loader, state.num_truncated_texts = self.loader, self.num_truncated_texts
        for buffer, before in self.statistics:
            buffer.copy_(before)
        restore_rng(self.generators)
