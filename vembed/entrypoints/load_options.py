"""Options by which a command loads a model: what it may read and run, its dtype, and what is imported before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from vembed.configuration.layers import Setting, import_plugins
from vembed.errors import UsageError
from vembed.model.settings import Dtype, ModelSettings


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The options that a command has for loading a model.

    torch_dtype: in which the weights are held; None: float32. encoder_mode: the family to use instead of the detected
    one. plugins: modules to import first, which may bring families.
    """

    torch_dtype: str | None = None
    trust_remote_code: bool = False
    allow_pickled_weights: bool = False
    encoder_mode: str | None = None
    plugins: Sequence[str] = ()

    @property
    def settings(self) -> ModelSettings:
        """The model's settings by these options. Raises UsageError for an unknown dtype."""
        if self.torch_dtype is not None and self.torch_dtype not in get_args(Dtype):
            raise UsageError(f"--torch_dtype {self.torch_dtype!r} is unknown; known are: {', '.join(get_args(Dtype))}")
        values = {
            "torch_dtype": self.torch_dtype,
            "trust_remote_code": self.trust_remote_code or None,
            "allow_pickled_weights": self.allow_pickled_weights or None,
            "encoder_mode": self.encoder_mode,
        }
        return ModelSettings.model_validate({key: value for key, value in values.items() if value is not None})

    def import_plugins(self, origin: str = "--plugins") -> None:
        """Import the plugins. Raises ConfigError for one that fails; `origin` says there who named it."""
        import_plugins({"plugins": Setting(list(self.plugins), origin)})
