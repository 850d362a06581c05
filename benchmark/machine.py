"""The machine that a benchmark ran on, in one line: figures hold for machines of its kind."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def machine_in_words() -> str:
    """Processor with its family, the cores that this process may use, torch and transformers."""
    facts = _cpu_facts()
    processor = facts.get("model name") or platform.processor() or platform.machine()
    family = f", family {facts['cpu family']}, model {facts['model']}" if "cpu family" in facts else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"machine: {processor}{family}; {cores} cores; {versions}"


def _cpu_facts() -> dict[str, str]:
    """What Linux says of the first core, by name; nothing on other systems."""
    if not _CPU_INFO.exists():
        return {}
    lines = _CPU_INFO.read_text().split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
