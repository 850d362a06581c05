"""The most memory that was in use since a moment: of the process (CPU) or of the accelerator's tensors."""

import sys
from pathlib import Path

import torch

MIB = 1024 * 1024
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5): sets VmHWM back to what is resident now


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far. Where the system cannot (macOS, locked /proc), the peak stays that of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return


def peak_memory_mib(device: torch.device) -> float:
    """Peak since `reset_peak_memory`, in MiB: tensors on a CUDA device, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return _peak_resident_bytes() / MIB


def used_memory_bytes(device: torch.device) -> int:
    """In use now: tensors on a CUDA device, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status_bytes("VmRSS") if _STATUS.exists() else _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    import resource  # noqa: PLC0415 - not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(key: str) -> int:
    """A field of /proc/self/status, which counts in kB."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)
