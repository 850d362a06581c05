"""TensorBoard: every number of metrics.jsonl as a scalar, in `<output_dir>/trackers/tensorboard`.

tensorboard --logdir output
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vembed.errors import ConfigError
from vembed.training.trackers.registry import TrackedRun
from vembed.training.trackers.scalars import Scalars
from vembed.utils.files import disk_errors

try:
    from torch.utils.tensorboard import SummaryWriter
except ModuleNotFoundError as error:
    raise ConfigError(
        f'report_to: tensorboard needs the package {error.name}; pip install "vembed-factory[tracking]"'
    ) from error


@contextmanager
def open_tensorboard(run: TrackedRun) -> Iterator[Scalars]:
    """Writes event files that have every step once, as often as the run was resumed.

    TensorBoard drops what came before from `purge_step` on. A checkpoint may be older than the evaluation of its own
    step, so that step goes too, and comes back from the lines that the checkpoint has seen.
    """
    new_here = not run.folder.exists()  # a resumed run too, if it had no TensorBoard before
    with disk_errors(run.folder):
        writer = SummaryWriter(str(run.folder), purge_step=run.step)

    def write(step: int, numbers: Mapping[str, float]) -> None:
        with disk_errors(run.folder):
            for name, number in numbers.items():
                writer.add_scalar(name, number, step)
            writer.flush()  # or a run that is killed would lack what is older than its checkpoint

    try:
        tracker = Scalars(run, write)
        for line in run.lines:
            if new_here or line["step"] == run.step:
                tracker.write_line(line)
        yield tracker
    finally:
        with disk_errors(run.folder):
            writer.close()
