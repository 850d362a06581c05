"""The learning rate as a pure function of the step: a linear warmup, then cosine, linear or constant."""

import logging
import math
from dataclasses import dataclass
from typing import Literal

from vembed.training.settings import OptimizerSettings

_log = logging.getLogger(__name__)

Decay = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Schedule:
    """The factor that every group's learning rate is multiplied by, by step.

    The first update already learns (factor 1 / (num_warmup_steps + 1)), and so does the last. A warmup longer than
    the run never reaches 1.

    >>> schedule = Schedule("linear", num_steps=6, num_warmup_steps=1)
    >>> [schedule.factor(step) for step in range(6)]
    [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """

    decay: Decay
    num_steps: int
    num_warmup_steps: int

    def factor(self, step: int) -> float:
        """Factor of the update that follows `step` finished updates (step < num_steps), in (0, 1]."""
        if step < self.num_warmup_steps:
            return (step + 1) / (self.num_warmup_steps + 1)
        left = (self.num_steps - step) / (self.num_steps - self.num_warmup_steps)
        if self.decay == "cosine":
            return 0.5 * (1 - math.cos(math.pi * left))
        return left if self.decay == "linear" else 1.0


def build_schedule(settings: OptimizerSettings, num_steps: int) -> Schedule:
    """The schedule of a run of `num_steps` updates; warns where the warmup outlasts it."""
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = round(settings.warmup_ratio * num_steps)
    elif warmup >= num_steps:
        _log.warning(
            "warmup_steps: %d is as long as the run of %d steps: the rates end at %.0f %% of what is set; lower it, or"
            " take it out for a tenth of the steps (warmup_ratio)",
            warmup, num_steps, 100 * num_steps / (warmup + 1),
        )  # fmt: skip
    return Schedule(settings.lr_scheduler, num_steps, warmup)
