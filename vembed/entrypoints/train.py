"""What `vembed train` does: train, look at a run before it starts (--dry_run), or measure a few steps (--measure N)."""

from vembed.config import Config
from vembed.entrypoints.config import show
from vembed.trainer import Trainer, TrainResult


def train(config: Config) -> TrainResult:
    """Train as the config says."""
    return Trainer.from_config(config).train()


def dry_run(config: Config) -> str:
    """The resolved config with origins, the model, its groups, steps, rows and memory. Trains and writes nothing."""
    overview = Trainer.from_config(config).overview()
    return "\n".join([show(config), *overview.lines()])


def measure(config: Config, num_steps: int) -> str:
    """Memory and speed of `num_steps` real steps, and what limits them. Keeps and writes nothing."""
    return "\n".join(Trainer.from_config(config).measure(num_steps).lines())


def summary(result: TrainResult) -> str:
    """A finished run in a few lines."""
    lines = [f"steps   {result.num_steps}", f"final   {result.final}"]
    if result.best is not None:
        best = result.best
        lines.append(f"best    step {best.step}, {best.metric} {best.value:.4f} on the validation sets")
    if result.report is not None:
        lines.append(f"report  {result.report}")
    return "\n".join(lines)
