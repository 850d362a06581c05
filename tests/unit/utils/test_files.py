from pathlib import Path

import pytest

from vembed.errors import CheckpointError
from vembed.utils.files import atomic_file, atomic_folder, is_leftover, recover, user_cache


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
    (tmp_path / ".best.new").mkdir()
    assert all(is_leftover(path) for path in tmp_path.iterdir())
    recover(target)
    assert (target / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["best"]


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
