"""What vision-language models have in common that can go on from what a frozen vision tower gave."""

from abc import abstractmethod

from torch import Tensor

from vembed.model.backbones.kept_pictures import PictureCut
from vembed.model.base import BaseEmbeddingModel
from vembed.types import Inputs


class PictureKeepingModel(BaseEmbeddingModel):
    """A model whose vision tower, if it is frozen, runs once per picture. `pictures`: where it is cut."""

    pictures: PictureCut

    @abstractmethod
    def real_states(self, inputs: Inputs) -> Tensor:
        """What the whole model gives for the tokens of all rows that are no padding, [tokens, width]."""

    @property
    def keeps_states(self) -> bool:
        """Whether there is something to keep of what frozen parts give: of pictures, under a frozen vision tower."""
        return "vision" in self.frozen

    def with_fixed_features(self, inputs: Inputs) -> Inputs:
        """Finished inputs with what enters the language model in the place of pictures, if the vision tower is frozen.

        `forward` gives the same for both inputs.
        """
        if not self.keeps_states or inputs.num_rows == 0:
            return inputs
        return self.pictures.take(self.real_states, inputs)
