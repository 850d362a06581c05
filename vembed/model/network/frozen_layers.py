"""Frozen layers: the first ones of a tower, with its embeddings; without gradients and dropout."""

from collections.abc import Iterator

from torch import nn

from vembed.errors import ModelError
from vembed.model.adapters.layers import is_adapter
from vembed.model.network.parameters import block_paths, layer_numbers
from vembed.model.settings import Tower


class FrozenLayers:
    """The first `num_layers` layers of one tower, and its embeddings.

    Layers are recognised by parameters' names. Raises ModelError for a network without any, or with no more than these.
    """

    def __init__(self, tower: Tower, network: nn.Module, num_layers: int) -> None:
        self.tower = tower
        self.num_layers = num_layers
        self._network = network
        self._layer_paths = _layer_paths(tower, network)
        most = len(self._layer_paths) - 1
        if num_layers > most:
            raise ModelError(
                f"freeze_layers: the {tower} tower ({type(network).__name__}) has {most + 1} layers; so at most {most}"
                f" can be frozen below one that learns, not {num_layers}. All are frozen by freeze: [{tower}]"
            )

    def freeze(self) -> None:
        """Turn off the gradients of its parameters. Raises ModelError where there are adapters on its layers."""
        parameters = dict(self.parameters())
        adapters = [name for name in parameters if is_adapter(name)]
        if adapters:
            raise ModelError(
                f"freeze_layers: the adapter that goes on learning is on frozen layers too, such as {adapters[0]}; set"
                " adapter: merge, or freeze fewer layers"
            )
        for parameter in parameters.values():
            parameter.requires_grad_(False)

    def eval(self) -> None:
        """Put embeddings and frozen layers into eval mode: without dropout."""
        for module in self.modules():
            module.eval()

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of embeddings and frozen layers, adapters on them included, by their names within the network."""
        named = dict(self._network.named_parameters())
        plain = [name for name in named if not is_adapter(name)]
        layers = dict(zip(plain, layer_numbers(plain)[0], strict=True))
        blocks = tuple(f"{path}." for path in self._layer_paths[: self.num_layers])
        for name, parameter in named.items():
            if name.startswith(blocks) or layers.get(name, len(self._layer_paths)) == 0:
                yield name, parameter

    def modules(self) -> Iterator[nn.Module]:
        """The modules that are defined before the first trainable layer, except those that contain it."""
        top = self._layer_paths[self.num_layers]
        for name, module in self._network.named_modules():
            if name == top:
                return
            if name and not top.startswith(f"{name}."):
                yield module

    def words(self) -> str:
        """The frozen layers in words, for a log.

        >>> network = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
        >>> FrozenLayers("text", network, 1).words()
        'text: embeddings and 1 of 3 layers'
        """
        return f"{self.tower}: embeddings and {self.num_layers} of {len(self._layer_paths)} layers"


def _layer_paths(tower: Tower, network: nn.Module) -> list[str]:
    """The paths of a network's layers, first to last. Raises ModelError for none, or several stacks of layers."""
    paths = block_paths([name for name, _ in network.named_parameters() if not is_adapter(name)])
    if not paths or len({path.rpartition(".")[0] for path in paths}) > 1:
        raise ModelError(
            f"freeze_layers: the layers of the {tower} tower ({type(network).__name__}) are not numbered in one row;"
            f" leave {tower} out, or freeze: [{tower}]"
        )
    return paths
