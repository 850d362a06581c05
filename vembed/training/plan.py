"""The plan of a run: number and size of its steps, and after how many of them it logs, evaluates and saves."""

import math
from dataclasses import dataclass

from vembed.data.batches.loader import TrainingLoader
from vembed.errors import ConfigError, DataError
from vembed.training.settings import TrainingSettings


@dataclass(frozen=True)
class Plan:
    """The run in steps. A step is one update of the parameters, after `num_batches_per_step` batches."""

    batch_size: int
    num_batches_per_step: int
    steps_per_epoch: int
    num_steps: int
    logging_steps: int
    eval_steps: int | None
    save_steps: int | None

    @property
    def num_epochs(self) -> int:
        """Epochs that the steps cover, a partial last one counted whole."""
        return math.ceil(self.num_steps / self.steps_per_epoch)


def rows_per_batch(settings: TrainingSettings, world_size: int = 1) -> int:
    """Rows of one loss: batch_size, or this process's share of global_batch_size. Raises ConfigError."""
    if settings.global_batch_size is None:
        return settings.batch_size
    shares = world_size * settings.gradient_accumulation_steps
    if settings.global_batch_size % shares:
        raise ConfigError(
            f"global_batch_size {settings.global_batch_size} does not divide by processes x gradient_accumulation_steps"
            f" = {world_size} x {settings.gradient_accumulation_steps}"
        )
    return settings.global_batch_size // shares


def make_plan(settings: TrainingSettings, loader: TrainingLoader) -> Plan:
    """The plan for a loader's batches. Raises DataError when there is not one batch."""
    batches = loader.num_batches(0)
    if batches == 0:
        raise DataError("the training data does not fill one batch; give it more rows, or lower batch_size")
    steps_per_epoch = math.ceil(batches / settings.gradient_accumulation_steps)
    all_steps = settings.epochs * steps_per_epoch
    return Plan(
        batch_size=rows_per_batch(settings),
        num_batches_per_step=settings.gradient_accumulation_steps,
        steps_per_epoch=steps_per_epoch,
        num_steps=min(all_steps, settings.max_steps or all_steps),
        logging_steps=settings.logging_steps,
        eval_steps=settings.eval_steps,
        save_steps=settings.save_steps,
    )
