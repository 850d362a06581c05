"""A fingerprint of a folder's weights: equal for the same weights in however many files, unequal for others.

A few bytes from the beginning, middle and end of every tensor are read, so that a folder of any size takes no time.
Training changes nearly every number of a tensor, so that tuned weights do not pass for those of their base.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vembed.errors import CheckpointError
from vembed.model.folder.find import HEADS_FILE, SPEC_FILE, TRAINING_FILE
from vembed.model.spec import ModelSpec

_SAMPLE = 1024
_READ_WHOLE = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"}
_NOTES = {SPEC_FILE, TRAINING_FILE, "training_state.json", "trainer_state.json"}
_LENGTH_SIZE = 8


def fingerprint(folder: Path) -> str:
    """The fingerprint of the safetensors (else of the pickled) weights in a folder. Raises CheckpointError."""
    files = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in (HEADS_FILE, TRAINING_FILE)]
    digests = dict(entry for path in files for entry in _tensors(path))
    if not files:
        digests = {path.name: _sampled(path) for path in sorted(folder.glob("*.bin"))}
    if not digests:
        raise CheckpointError(f"{folder} holds no weights")
    content = "\n".join(f"{name} {digests[name]}" for name in sorted(digests))
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def reading_fingerprint(folder: Path, spec: ModelSpec) -> str:
    """A fingerprint of all that decides what the model in a folder gives: its weights, heads and adapters, its
    tokenizer's and image processor's files, its code, and how it is used.

    What a run notes beside them (the spec's file, training state) has no part in it. Raises CheckpointError.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in _NOTES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    parts = [f"spec {json.dumps(spec.model_dump(mode='json'), sort_keys=True)}"]
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            parts += [f"{name} {tensor} {digest}" for tensor, digest in sorted(_tensors(path))]
        elif path.suffix == ".bin":
            parts.append(f"{name} {_sampled(path)}")
        elif path.suffix in _READ_WHOLE:
            parts.append(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _tensors(path: Path) -> Iterator[tuple[str, str]]:
    """Each tensor of a safetensors file, with a digest of its kind and of samples of its bytes."""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(_LENGTH_SIZE))
            header = json.loads(file.read(length))
        except (struct.error, ValueError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"{path} is damaged: its header cannot be read") from error
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = (_LENGTH_SIZE + length + offset for offset in entry["data_offsets"])
            kind = f"{entry['dtype']} {entry['shape']} "
            yield name, kind + hashlib.sha256(_samples(file, path, start, end)).hexdigest()


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        return f"{size} {hashlib.sha256(_samples(file, path, 0, size)).hexdigest()}"


def _samples(file: BinaryIO, path: Path, start: int, end: int) -> bytes:
    """The first, middle and last bytes between two places of a file."""
    parts = []
    for place in (start, (start + end) // 2, max(start, end - _SAMPLE)):
        file.seek(place)
        wanted = min(_SAMPLE, end - place)
        parts.append(file.read(wanted))
        if len(parts[-1]) != wanted:
            raise CheckpointError(f"{path} is shorter than its header says; copy or download it again")
    return b"".join(parts)
