"""Experiment trackers by name, which get a run's figures beside metrics.jsonl. Imports no torch.

A tracker is registered as a context manager that opens it for a run, and closes it however the run ends:

    @contextmanager
    def open_mine(run: TrackedRun) -> Iterator[Callback]:
        with somewhere(run.folder) as place:
            yield Scalars(run, place.write)

    CallbackRegistry.register("mine", open_mine)
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vembed.registry import Registry

if TYPE_CHECKING:
    import torch

    from vembed.training.loop import Callback
    from vembed.training.plan import Plan


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is opened for.

    folder: `output_dir`/trackers/<the tracker's name>, its own, which need not exist; overwrite_output_dir deletes it.
    step: the number of finished steps, 0 in a new run. lines: those of metrics.jsonl so far. A resumed run may have got
    further before it died: lines that a tracker was given then and that are not in `lines` come again, or never.
    """

    folder: Path
    plan: "Plan"
    device: "torch.device"
    step: int
    lines: Sequence[Mapping[str, Any]]  # Any: JSON


OpenTracker = Callable[[TrackedRun], "AbstractContextManager[Callback]"]
CallbackRegistry: Registry[OpenTracker] = Registry("tracker")
CallbackRegistry.register_lazy("tensorboard", "vembed.training.trackers.tensorboard:open_tensorboard")
