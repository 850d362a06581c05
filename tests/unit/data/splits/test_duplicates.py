"""Equal files by reading little."""

import os
from pathlib import Path

from vembed.data.splits import duplicates
from vembed.data.splits.duplicates import file_content_keys


def _write(folder, **contents):
    paths = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        paths[name] = str(folder / name)
    return paths


def test_equal_contents_have_equal_keys_and_others_do_not(tmp_path):
    middle = bytes(20_000)
    paths = _write(
        tmp_path,
        a=b"x" + middle + b"y",
        a2=b"x" + middle + b"y",
        other_end=b"x" + middle + b"z",
        other_middle=b"x" + middle[:10_000] + b"!" + middle[:9_999] + b"y",
        longer=b"x" + middle + b"yy",
        small=b"1",
        small2=b"1",
        small3=b"2",
        empty=b"",
        empty2=b"",
    )
    keys = file_content_keys(paths.values())
    same = {frozenset(name for name in paths if keys[paths[name]] == keys[path]) for path in paths.values()}
    expected = [
        {"a", "a2"},
        {"other_end"},
        {"other_middle"},
        {"longer"},
        {"small", "small2"},
        {"small3"},
        {"empty", "empty2"},
    ]
    assert same == {frozenset(names) for names in expected}


def test_files_of_a_size_of_their_own_are_not_read(tmp_path, monkeypatch):
    paths = _write(tmp_path, a=b"1", b=b"22", c=b"333", d=b"444", e=b"4444")
    read = []
    real = duplicates._ends_key
    monkeypatch.setattr(duplicates, "_ends_key", lambda path: read.append(Path(path).name) or real(path))
    assert len(set(file_content_keys(paths.values()).values())) == 5
    assert read == ["c", "d"]


def test_a_missing_file_has_a_key_of_its_own(tmp_path):
    keys = file_content_keys([str(tmp_path / "no"), str(tmp_path / "nor this"), str(tmp_path)])
    assert len(set(keys.values())) == 3


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    """Two pipes have one size; to open one would wait for a writer for ever."""
    names = [tmp_path / name for name in ("a.png", "b.png", "zero.png", "null.png")]
    for pipe in names[:2]:
        os.mkfifo(pipe)
    names[2].symlink_to("/dev/zero")
    names[3].symlink_to("/dev/null")
    keys = file_content_keys([*map(str, names), "x" * 300, "y\0", "\ud800"])
    assert len(set(keys.values())) == 7
