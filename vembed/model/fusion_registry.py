"""Fusions by name: how a row's text vector and image vector become one. Imports no torch."""

from typing import TYPE_CHECKING

from vembed.registry import Registry

if TYPE_CHECKING:
    from vembed.model.fusion import Fusion

SUM = "sum"
"""No module: the normalised sum of the two unit vectors, which every other fusion starts as."""

FusionRegistry: "Registry[type[Fusion]]" = Registry("fusion")
for _name, _class in (("gated", "GatedFusion"), ("mlp", "MlpFusion"), ("attention", "AttentionFusion")):
    FusionRegistry.register_lazy(_name, f"vembed.model.fusion:{_class}")


def fusion_names() -> list[str]:
    """What the setting `fusion` may say.

    >>> fusion_names()
    ['attention', 'gated', 'mlp', 'sum']
    """
    return sorted([SUM, *FusionRegistry.list()])
