"""What vision-language models have in common that can go on from what a frozen vision tower gave."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from vembed.model.backbones.kept_pictures import PictureCut
from vembed.model.base import BaseEmbeddingModel
from vembed.model.settings import Tower
from vembed.types import Inputs


class PictureKeepingModel(BaseEmbeddingModel):
    """A model whose vision tower, if it is frozen, runs once per picture. `pictures`: where it is cut."""

    keeps_states_of: ClassVar[Tower | None] = "vision"
    pictures: PictureCut

    @abstractmethod
    def real_states(self, inputs: Inputs) -> Tensor:
        """What the whole model gives for the tokens of all rows that are no padding, [tokens, width]."""

    def with_fixed_states(self, inputs: Inputs) -> Inputs:
        """Finished inputs with what enters the language model in the place of pictures; no graph."""
        return self.pictures.take(self.real_states, inputs)
