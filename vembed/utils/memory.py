"""Memory in use, free, and at its peak: of the process (CPU) or of the accelerator's tensors."""

import os
import sys
from pathlib import Path

import torch

MIB = 1024 * 1024
GIB = 1024 * MIB
_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_CGROUP_LIMIT, _CGROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
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
    return _field_bytes(_STATUS, "VmRSS") if _STATUS.exists() else _peak_resident_bytes()


def free_memory_bytes(device: torch.device) -> int:
    """Free bytes of a device for this process: on a CPU what the system calls available, and the container allows."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if not _MEMORY.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(_field_bytes(_MEMORY, "MemAvailable"), _cgroup_free_bytes())


def release_unused_memory(device: torch.device) -> None:
    """Give what an accelerator's allocator holds and no tensor needs back to the device."""
    if device.type in ("cuda", "mps"):
        torch.get_device_module(device).empty_cache()


def _cgroup_free_bytes() -> int:
    """Bytes that the container (cgroup v2) leaves; without a limit more than any machine has."""
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return sys.maxsize if limit == "max" else max(0, int(limit) - int(_CGROUP_USED.read_text()))


def _peak_resident_bytes() -> int:
    if _STATUS.exists():
        return _field_bytes(_STATUS, "VmHWM")
    import resource  # noqa: PLC0415 - not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _field_bytes(path: Path, key: str) -> int:
    """A field of a file like /proc/self/status, which counts in kB."""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)
