"""Trackers by name: what gets a run's figures beside metrics.jsonl. Imports no torch.

A tracker is a function that opens one for a run, and closes it when the run ends in whatever way:

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

    folder: `output_dir`/<the tracker's name>, its own, which need not exist; overwrite_output_dir deletes it. step: the
    last one that is done, 0 in a new run. lines: those of metrics.jsonl so far. A resumed run may have come further
    before it died: what a tracker was given then that is not in `lines` comes again, or never.
    """

    folder: Path
    plan: "Plan"
    device: "torch.device"
    step: int
    lines: Sequence[Mapping[str, Any]]  # Any: JSON


OpenTracker = Callable[[TrackedRun], "AbstractContextManager[Callback]"]
CallbackRegistry: Registry[OpenTracker] = Registry("tracker")
CallbackRegistry.register_lazy("tensorboard", "vembed.training.trackers.tensorboard:open_tensorboard")
