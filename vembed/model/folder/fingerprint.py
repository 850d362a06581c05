"""A fingerprint of a folder's weights: equal for the same weights in any number of files, different for others.

Only a few bytes from the beginning, middle and end of each tensor are hashed, so that it is fast for any size. Training
changes nearly every number of a tensor, so that tuned weights differ from their base.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vembed.errors import CheckpointError
from vembed.model.folder.find import HEADS_FILE, SPEC_FILE, TRAINING_FILE
from vembed.model.folder.tensors import read_entries
from vembed.model.spec import ModelSpec

_SAMPLE = 1024  # bytes
_HASHED_IN_FULL = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"}
_NOT_HASHED = {SPEC_FILE, TRAINING_FILE, "training_state.json", "trainer_state.json"}


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


def embedding_fingerprint(folder: Path, spec: ModelSpec) -> str:
    """A fingerprint of all that embeddings depend on: weights, heads, adapters, tokenizer, image processor, code, spec.

    Equal fingerprints give equal embeddings. A run's own files (training state) are left out. Raises CheckpointError.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in _NOT_HASHED
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    parts = [f"spec {json.dumps(spec.model_dump(mode='json'), sort_keys=True)}"]
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            parts += [f"{name} {tensor} {digest}" for tensor, digest in sorted(_tensors(path))]
        elif path.suffix == ".bin":
            parts.append(f"{name} {_sampled(path)}")
        elif path.suffix in _HASHED_IN_FULL:
            parts.append(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _tensors(path: Path) -> Iterator[tuple[str, str]]:
    """Name and digest (of dtype, shape and sampled bytes) of each tensor in a safetensors file."""
    entries = read_entries(path)
    with path.open("rb") as file:
        for name, entry in entries.items():
            kind = f"{entry.dtype} {list(entry.shape)} "
            yield name, kind + hashlib.sha256(_samples(file, path, entry.start, entry.end)).hexdigest()


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        return f"{size} {hashlib.sha256(_samples(file, path, 0, size)).hexdigest()}"


def _samples(file: BinaryIO, path: Path, start: int, end: int) -> bytes:
    """The first, middle and last bytes between two offsets of a file."""
    parts = []
    for place in (start, (start + end) // 2, max(start, end - _SAMPLE)):
        file.seek(place)
        wanted = max(0, min(_SAMPLE, end - place))
        parts.append(file.read(wanted))
        if len(parts[-1]) != wanted:
            raise CheckpointError(f"{path} is shorter than its header says; copy or download it again")
    return b"".join(parts)
