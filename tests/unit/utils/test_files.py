import os
from pathlib import Path

import pytest

from vembed.errors import CheckpointError
from vembed.utils.files import atomic_file, atomic_folder, leftover_of, recover, remove, user_cache


def write_old(folder):
    folder.mkdir()
    (folder / "a.txt").write_text("old")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "best"
    write_old(target)
    with atomic_folder(target) as new:
        (new / "b").mkdir()
        (new / "b" / "c.txt").write_text("new")
        assert (target / "a.txt").read_text() == "old"
    assert (target / "b" / "c.txt").read_text() == "new"
    assert names(target) == ["b"]
    assert names(tmp_path) == ["best"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    target = tmp_path / "best"
    write_old(target)
    expected = CheckpointError if isinstance(error, OSError) else type(error)

    def fail_half_way():
        with atomic_folder(target) as new:
            (new / "half.txt").write_text("half")
            raise error

    with pytest.raises(expected):
        fail_half_way()
    assert (target / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["best"]


def test_what_a_dead_process_left_is_put_right(tmp_path):
    target = tmp_path / "best"
    write_old(tmp_path / ".best.old")  # died between the two renames
    (tmp_path / ".best.new").mkdir()  # as earlier versions called it
    (tmp_path / ".best.0a1b2c3d.new").mkdir()
    assert {leftover_of(path) for path in tmp_path.iterdir()} == {"best"}
    (tmp_path / ".best.of.all.old").mkdir()  # another name's
    recover(target)
    assert (target / "a.txt").read_text() == "old"
    assert names(tmp_path) == [".best.of.all.old", "best"]


def test_a_replaced_folder_is_not_put_back(tmp_path):
    target = tmp_path / "best"
    write_old(tmp_path / ".best.old")  # died after both renames
    target.mkdir()
    recover(target)
    assert names(target) == []
    assert names(tmp_path) == ["best"]


def test_a_file_is_written_wholly_or_not_at_all(tmp_path):
    file = tmp_path / "run.json"
    file.write_text("old")

    def fail_half_way():
        with atomic_file(file) as new:
            new.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert file.read_text() == "old"
    with atomic_file(file) as new:
        new.write_text("new")
    assert file.read_text() == "new"
    assert names(tmp_path) == ["run.json"]


def test_the_users_cache_is_where_their_system_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("features") == tmp_path / "vembed" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache("features") == Path.home() / ".cache" / "vembed" / "features"


def test_two_that_write_one_file_at_once_each_write_it_whole(tmp_path):
    """The later one's stands there in the end, none of it mixed with the other's."""
    file = tmp_path / "vectors.npz"
    with atomic_file(file) as first, atomic_file(file) as second:
        first.write_text("a" * 9)
        second.write_text("b" * 3)
    assert file.read_text() == "a" * 9
    assert names(tmp_path) == ["vectors.npz"]


def test_two_that_write_one_folder_at_once_each_write_it_whole(tmp_path):
    with atomic_folder(tmp_path / "merged") as first, atomic_folder(tmp_path / "merged") as second:
        (first / "a").write_text("")
        (second / "b").write_text("")
    assert names(tmp_path / "merged") == ["a"]
    assert names(tmp_path) == ["merged"]


def test_what_a_writer_of_a_file_left_that_died_goes_with_the_next_one(tmp_path):
    lefts = [tmp_path / name for name in (".a.json.01234567.new", ".a.json.new", ".b.json.01234567.new")]
    for left in lefts:
        left.write_text("half")
        os.utime(left, (1.0, 1.0))
    (tmp_path / ".a.json.89abcdef.new").write_text("another is at it")
    with atomic_file(tmp_path / "a.json") as new:
        new.write_text("{}")
    assert names(tmp_path) == [".a.json.89abcdef.new", ".b.json.01234567.new", "a.json"]


@pytest.mark.parametrize("target", ["folder", "file", "nothing"])
def test_of_a_link_the_link_alone_is_removed(tmp_path, target):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("1")
    link = tmp_path / "link"
    link.symlink_to({"folder": elsewhere, "file": elsewhere / "precious", "nothing": tmp_path / "gone"}[target])
    remove(link)
    assert not link.is_symlink()
    assert (elsewhere / "precious").read_text() == "1"


def test_files_and_folders_are_removed_and_what_is_gone_stays_gone(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name in ("folder", "file", "never"):
        remove(tmp_path / name)
    assert names(tmp_path) == []


@pytest.mark.parametrize("dangling", [False, True])
def test_a_folder_that_was_linked_to_another_place_is_replaced_not_followed(tmp_path, dangling):
    elsewhere = tmp_path / "elsewhere"
    write_old(elsewhere)
    (tmp_path / "best").symlink_to(tmp_path / "gone" if dangling else elsewhere)
    (tmp_path / ".best.old").symlink_to(elsewhere)
    with atomic_folder(tmp_path / "best") as new:
        (new / "b").write_text("new")
    assert not (tmp_path / "best").is_symlink()
    assert names(tmp_path / "best") == ["b"]
    assert names(elsewhere) == ["a.txt"]
    assert names(tmp_path) == ["best", "elsewhere"]


def test_a_link_that_was_put_aside_comes_back_as_a_link(tmp_path):
    write_old(tmp_path / "elsewhere")
    (tmp_path / ".best.old").symlink_to(tmp_path / "elsewhere")
    recover(tmp_path / "best")
    assert (tmp_path / "best").is_symlink()
    assert names(tmp_path / "best") == ["a.txt"]
