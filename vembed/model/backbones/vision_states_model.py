"""Base of vision-language models that can run from kept outputs of a frozen vision tower."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from vembed.model.backbones.vision_states import SplitAtVision
from vembed.model.base import BaseEmbeddingModel
from vembed.model.settings import Tower
from vembed.types import Inputs


class VisionStatesModel(BaseEmbeddingModel):
    """A model whose vision tower, if frozen, runs once in a step. pictures: replaces its run by the kept outputs."""

    keeps_states_of: ClassVar[Tower | None] = "vision"
    pictures: SplitAtVision

    @abstractmethod
    def real_states(self, inputs: Inputs) -> Tensor:
        """The whole model's outputs for the tokens of all rows, without padding, [tokens, width]."""

    def with_fixed_states(self, inputs: Inputs) -> Inputs:
        """Finished inputs with the vision tower's outputs in the place of pixels; without a graph."""
        return self.pictures.take(self.real_states, inputs)
