"""How a command opens a model: what it may read and run, and in which dtype."""

from typing import get_args

from vembed.errors import UsageError
from vembed.model.settings import Dtype, ModelSettings


def opening_settings(
    *,
    torch_dtype: str | None = None,
    trust_remote_code: bool = False,
    allow_pickled_weights: bool = False,
    encoder_mode: str | None = None,
) -> ModelSettings:
    """The settings for opening a model. Raises UsageError for an unknown dtype; None: float32."""
    if torch_dtype is not None and torch_dtype not in get_args(Dtype):
        raise UsageError(f"--torch_dtype {torch_dtype!r} is unknown; known are: {', '.join(get_args(Dtype))}")
    values = {
        "torch_dtype": torch_dtype,
        "trust_remote_code": trust_remote_code or None,
        "allow_pickled_weights": allow_pickled_weights or None,
        "encoder_mode": encoder_mode,
    }
    return ModelSettings.model_validate({key: value for key, value in values.items() if value is not None})
