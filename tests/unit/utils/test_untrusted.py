"""The guard around foreign bytes: every exception of a library becomes ours, and only regular files are read."""

import os
import socket
from pathlib import Path

import pyarrow
import pytest

from vembed.data import images
from vembed.errors import DataError, ModelError
from vembed.types import ImageSource
from vembed.utils.untrusted import is_folder, is_there, library_errors, library_message, printable, read_regular_file


class PanicException(BaseException):
    """Of this name, and no Exception, as libraries written in Rust raise it."""


@pytest.mark.parametrize(
    "error",
    [ValueError("bad page"), RecursionError("bad page"), PanicException("bad page"), AssertionError("bad page")],
)
def test_whatever_a_library_raises_becomes_our_error_with_its_place(error: BaseException) -> None:
    with (
        pytest.raises(DataError, match=r"^a\.parquet: a damaged page: bad page$") as caught,
        library_errors(DataError, "a.parquet: a damaged page"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ModelError("ours")])
def test_interrupts_exits_and_our_own_errors_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, library_errors(DataError, "a.parquet"):
        raise error
    assert caught.value is error


class OutOfMemoryError(RuntimeError):
    """Of this name, and no MemoryError, as torch has it."""


@pytest.mark.parametrize(
    "error", [MemoryError(), OutOfMemoryError("CUDA out of memory"), type("Of", (OutOfMemoryError,), {})()]
)
def test_memory_that_runs_out_is_no_fault_of_the_file(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, library_errors(DataError, "a.parquet"):
        raise error
    assert caught.value is error


def test_memory_is_the_files_fault_where_it_says_how_much_is_taken() -> None:
    for error in (MemoryError("malloc of size 9 failed"), pyarrow.ArrowMemoryError("malloc of size 9 failed")):
        with (
            pytest.raises(DataError, match=r"^a\.parquet: malloc of size 9 failed$"),
            library_errors(DataError, "a.parquet", or_too_large=True),
        ):
            raise error
    with pytest.raises(OutOfMemoryError), library_errors(DataError, "a.parquet", or_too_large=True):
        raise OutOfMemoryError("CUDA out of memory")


def test_our_own_assertions_are_told_from_those_of_a_library() -> None:
    with pytest.raises(AssertionError), library_errors(DataError, "a.png"):
        images._pixel_bytes(ImageSource())  # asserts that it has a picture
    with pytest.raises(DataError), library_errors(DataError, "a.png"):
        raise AssertionError("of a library")


def test_a_librarys_message_is_one_short_printable_line() -> None:
    assert library_message(ValueError("\n" + "x" * 1000 + "\nmore")) == "x" * 300
    assert library_message(ValueError("a\x1b[2Jb")) == "a\\x1b[2Jb"
    assert library_message(KeyError()) == "KeyError"


def test_only_regular_files_are_read_and_only_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"12345")
    (tmp_path / "link.png").symlink_to(file)
    assert read_regular_file(file, max_bytes=5) == read_regular_file(tmp_path / "link.png", max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="over 4 bytes"):
        read_regular_file(file, max_bytes=4)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match="it is a pipe"):
        read_regular_file(tmp_path / "pipe.png", max_bytes=5)
    with pytest.raises(OSError, match="it is a device"):
        read_regular_file("/dev/zero", max_bytes=5)
    with pytest.raises(OSError, match=r"folder|directory"):
        read_regular_file(tmp_path, max_bytes=5)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
        with pytest.raises(OSError):  # noqa: PT011 (the system's own words)
            read_regular_file(tmp_path / "socket.png", max_bytes=5)


def test_a_terminal_gets_no_control_characters_and_every_language() -> None:
    assert printable("größe 靴 👩‍👧 می‌خواهم\n\t") == "größe 靴 👩‍👧 می‌خواهم\n\t"
    assert printable("\x1b]0;title\x07\r\x9b2J\u202eabc\u2066\u2028\x7f\ud800") == (
        "\\x1b]0;title\\x07\\r\\x9b2J\\u202eabc\\u2066\\u2028\\x7f\\ud800"
    )


def test_a_folder_that_is_refused_is_closed_and_a_file_of_an_unknown_size_is_read_whole(tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(OSError, match=r"folder|directory"):
            read_regular_file(tmp_path, max_bytes=5)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 (names alone)
    with pytest.raises(OSError, match=r"folder|directory"):
        read_regular_file(tmp_path, max_bytes=5)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 (as above)
    assert b"Name:" in read_regular_file("/proc/self/status", max_bytes=1 << 20)  # its size reads 0
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="over 1,048,576 bytes"):
        read_regular_file(tmp_path / "sparse.png", max_bytes=1 << 20)


def test_an_empty_name_is_not_the_current_folder():
    assert is_folder(".")
    assert not is_folder("")
    assert not is_there("")
