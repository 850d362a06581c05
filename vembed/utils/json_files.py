"""JSON files from outside, read whole: of any content, one object, or one object a line."""

import json
from pathlib import Path
from typing import Any

from vembed.errors import VembedError
from vembed.utils.untrusted import library_errors, read_regular_file

Json = dict[str, Any]  # Any: JSON

MOST_BYTES = 2**30


def read_json(
    file: Path, error_type: type[VembedError], *, max_bytes: int = MOST_BYTES, fault: str = "cannot be read"
) -> Any | None:  # Any: JSON
    """The content of a file, None when it does not exist. Raises an `error_type`: `{file} {fault}`, and why."""
    with library_errors(error_type, f"{file} {fault}"):
        try:
            data = read_regular_file(file, max_bytes=max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return json.loads(data.decode("utf-8"))


def read_json_object(
    file: Path, error_type: type[VembedError], *, max_bytes: int = MOST_BYTES, fault: str = "cannot be read"
) -> Json | None:
    """As `read_json`, of a file that holds an object; any other content raises."""
    content = read_json(file, error_type, max_bytes=max_bytes, fault=fault)
    if content is not None and not isinstance(content, dict):
        raise error_type(f"{file} {fault}: it holds no JSON object, but {type(content).__name__}")
    return content


def read_json_lines(
    file: Path, error_type: type[VembedError], *, remedy: str = "", last_may_be_half: bool = False
) -> list[Json]:
    """The objects of a file of one a line; none without the file. Raises an `error_type` that names the line.

    remedy: what to do about a damaged one, for the message. last_may_be_half: pass over lines without an end, as a run
    that was killed leaves them.
    """
    fault, objects = f"is damaged{remedy}", []
    with library_errors(error_type, f"{file} {fault}"):
        try:
            lines = read_regular_file(file, max_bytes=MOST_BYTES).split(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return []
    for number, line in enumerate(lines, 1):
        if not line or (last_may_be_half and not line.endswith(b"}")):
            continue
        with library_errors(error_type, f"{file}:{number} {fault}"):
            content = json.loads(line.decode("utf-8"))
        if not isinstance(content, dict):
            raise error_type(f"{file}:{number} {fault}: it holds no JSON object, but {type(content).__name__}")
        objects.append(content)
    return objects
