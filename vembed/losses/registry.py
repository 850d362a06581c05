"""The losses by name. Reading a loss's settings imports no torch; its function is imported when it is built."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vembed.losses.settings import InfoNCESettings
from vembed.registry import Registry
from vembed.utils.settings import Section

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss: the section with its options, and its function or where that is ("package.module:function").

    The function takes (ScoreView, Targets, the section) and returns a scalar.
    """

    settings: type[Section]
    function: "str | Callable[..., Tensor]"

    def load(self) -> "Callable[..., Tensor]":
        """The function, imported if need be."""
        if not isinstance(self.function, str):
            return self.function
        module, name = self.function.split(":")
        function: Callable[..., Tensor] = getattr(importlib.import_module(module), name)
        return function


LossRegistry: Registry[Loss] = Registry("loss_type")
LossRegistry.register("infonce", Loss(InfoNCESettings, "vembed.losses.functions.infonce:infonce"))
