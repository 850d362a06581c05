"""Fusions by name: how a row's text vector and image vector become one. Imports no torch."""

from typing import TYPE_CHECKING

from vembed.registry import Registry, no_such

if TYPE_CHECKING:
    from vembed.model.vectors.fusion import Fusion

SUM = "sum"
"""No module: the normalised sum of the two unit vectors, which every other fusion starts as."""

FusionRegistry: "Registry[type[Fusion]]" = Registry("fusion")
for _name, _class in (("gated", "GatedFusion"), ("mlp", "MlpFusion"), ("attention", "AttentionFusion")):
    FusionRegistry.register_lazy(_name, f"vembed.model.vectors.fusion:{_class}")


def fusion_names() -> list[str]:
    """The values of the setting `fusion`.

    >>> fusion_names()
    ['attention', 'gated', 'mlp', 'sum']
    """
    return sorted([SUM, *FusionRegistry.list()])


def unknown_fusion(name: str) -> str | None:
    """The message for an unknown fusion, with the nearest known name; None for a known one.

    >>> unknown_fusion("gatd")
    "there is no fusion 'gatd'; did you mean gated? Known: attention, gated, mlp, sum"
    """
    return None if name in fusion_names() else no_such("fusion", name, fusion_names())
