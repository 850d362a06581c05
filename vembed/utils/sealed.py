"""JSON files that say whether they are what was written: beside the values they hold a checksum of these.

A file that is cut, flipped in a bit, or edited by hand is refused by its name. One without a checksum is of an earlier
version, and is believed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from vembed.errors import CheckpointError
from vembed.utils.files import atomic_file
from vembed.utils.json_files import Json, read_json_object
from vembed.utils.untrusted import library_errors

CHECKSUM = "checksum"
_FAULT = "is damaged or missing"


def sealed(values: Mapping[str, object]) -> Json:
    """The values as JSON gives them back, with their checksum.

    >>> sealed({"step": 3})
    {'step': 3, 'checksum': '3425e0fa12428ac3'}
    """
    content: Json = json.loads(json.dumps(values))  # keys are text, and a tuple is a list
    return {**content, CHECKSUM: _checksum(content)}


def write_sealed(file: Path, values: Mapping[str, object]) -> None:
    """Write the values with their checksum, wholly or not at all. Raises CheckpointError when the disk refuses."""
    with atomic_file(file) as new:
        new.write_bytes(sealed_text(values))


def sealed_text(values: Mapping[str, object]) -> bytes:
    """The bytes of a file that holds the values with their checksum."""
    content = sealed(values)
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # a file's name that is not UTF-8
        text = json.dumps(content, indent=2).encode("utf-8")
    return text + b"\n"


def read_sealed(file: Path) -> Json:
    """The values of a file, without their checksum. Raises CheckpointError when they are not what was written."""
    return unsealed(read_object(file), file)


def unsealed(values: Json, file: Path) -> Json:
    """The values of `file` without their checksum, which must be theirs, if there is one. Raises CheckpointError."""
    content = {key: value for key, value in values.items() if key != CHECKSUM}
    with library_errors(CheckpointError, f"{file} is damaged"):
        fits = CHECKSUM not in values or values[CHECKSUM] == _checksum(content)
    if not fits:
        raise CheckpointError(f"{file} is damaged: its checksum says that it holds something else than was written")
    return content


def read_object(file: Path) -> Json:
    """The JSON object in a file, of any content. Raises CheckpointError."""
    content = read_json_object(file, CheckpointError, fault=_FAULT)
    if content is None:
        raise CheckpointError(f"{file} {_FAULT}")
    return content


def _checksum(values: Mapping[str, object]) -> str:
    """Of the values as they are read again, not of the text: spaces and the order of keys do not count."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
