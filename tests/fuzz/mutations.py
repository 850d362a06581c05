"""Small damage to files, each a function of a random generator: of bytes, of JSON values, and of a folder's files."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What readers of text, numbers and nested values stumble over, as it stands in a JSON or YAML file.
ODD_VALUES = (
    "null",
    "true",
    "-0",
    "1e999",
    "NaN",
    "-Infinity",
    "1" + "0" * 400,
    "9" * 5000,
    "0.1",
    '""',
    '" "',
    r'"\ud800"',
    r'"\u0000"',
    r'"\u001b[2J"',
    '"' + "x" * 300 + '.png"',
    '"' + "long " * 20_000 + '"',
    '"NA"',
    '"[]"',
    "\"['a' 'b']\"",
    "[]",
    "[[]]",
    '[["a"], "b"]',
    "[null]",
    "{}",
    '{"text": 3}',
    '{"text": "a", "image": "b.png"}',
    '{"bytes": "", "path": null}',
    "[" * 3000 + "]" * 3000,
    "[" * 100_000,
    '{"a":' * 2000 + "1" + "}" * 2000,
)
_TOKENS = (
    b'"',
    b"'",
    b",",
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b"\0",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\\",
    b"\xff",
    b"\xef\xbb\xbf",
)


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to four places changed."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(_BYTE_MUTATIONS)(data, draw)
    return data


def mutate_text(text: str, draw: random.Random) -> bytes:
    """The text as UTF-8 with a sign that its format gives a meaning put somewhere, or damaged as bytes are."""
    data = text.encode()
    if draw.random() < 0.5:
        return mutate_bytes(data, draw)
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(_TOKENS) + data[at:]


def mutate_json(value: Any, draw: random.Random) -> str:  # Any: JSON
    """The value as JSON text with one value in it, at any depth, replaced by an odd one."""
    places = list(_places(value))
    text = json.dumps(_replaced(value, draw.choice(places), "\0odd\0"), ensure_ascii=False)
    return text.replace(json.dumps("\0odd\0"), draw.choice(ODD_VALUES))


def mutate_file(file: Path, draw: random.Random) -> None:
    """Damage the file: JSON in its values or its bytes, other files in their bytes; or replace it by something else."""
    if draw.random() < 0.05:
        _replace_file(file, draw)
        return
    data = file.read_bytes()
    if file.suffix == ".json" and draw.random() < 0.6:
        file.write_text(mutate_json(json.loads(data), draw), encoding="utf-8", errors="surrogatepass")
    else:
        file.write_bytes(mutate_bytes(data, draw))


def _replace_file(file: Path, draw: random.Random) -> None:
    """Put an empty file, a folder, a pipe, a link to nothing or a link to a device in the place of the file."""
    file.unlink()
    kind = draw.choice(("empty", "folder", "pipe", "link", "device", "gone"))
    if kind == "empty":
        file.touch()
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link":
        file.symlink_to("nowhere")
    elif kind == "device":
        file.symlink_to("/dev/zero")


def _places(value: Any) -> "list[tuple[Any, ...]]":  # Any: JSON, and its keys and positions
    inner: list[tuple[Any, ...]] = [()]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        inner += [(key, *rest) for rest in _places(part)]
    return inner


def _replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:  # Any: as above
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _replaced(copy[place[0]], place[1:], new)
    return copy


def _flip(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return data
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _overwrite(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(data) + 1), draw.choice((1, 4, 32))
    return data[:at] + draw.choice((b"\0", b"\xff", draw.randbytes(1))) * size + data[at + size :]


def _drop(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + data[at + draw.choice((1, 2, 16)) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(data) + 1), draw.choice((1, 8, 64))
    return data[: at + size] + data[at:]


def _splice(data: bytes, draw: random.Random) -> bytes:
    a, b = draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)
    return data[:a] + data[b : b + 24] + data[a:]


_BYTE_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _overwrite,
    _drop,
    _repeat,
    _splice,
)
