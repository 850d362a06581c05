import os
import re

import pytest

from vembed.config import load_config
from vembed.errors import CheckpointError, UsageError
from vembed.training.run import folder as folder_module
from vembed.training.run.folder import (
    RunFolder,
    check_output_dir,
    find_checkpoint,
    hold_output_dir,
    prepare_output_dir,
)
from vembed.training.settings import TrainingSettings


@pytest.fixture
def run(tmp_path):
    """A folder as a run of 30 steps leaves it, with a file of the user's beside."""
    run = RunFolder(tmp_path / "run")
    for folder in (run.path, run.checkpoint(20), run.checkpoint(30), run.best, run.final, run.report):
        folder.mkdir()
    run.config.write_text("model_name: x\n")
    run.write_record({"rows": 3})
    run.metrics.write_text("")
    (run.path / "notes.txt").write_text("mine")
    return run


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def settings(run, **values):
    return TrainingSettings(output_dir=str(run.path), **values)


@pytest.mark.parametrize("left", ["config.yaml", "best", "checkpoint-3", "metrics.jsonl", "report", ".best.old"])
def test_a_folder_that_holds_any_part_of_a_run_is_refused(tmp_path, left):
    (tmp_path / left).mkdir()
    with pytest.raises(UsageError, match=f"{re.escape(left)}.*overwrite_output_dir: true"):
        prepare_output_dir(TrainingSettings(output_dir=str(tmp_path)))
    assert files(tmp_path) == [left]


def test_a_run_without_a_checkpoint_is_not_said_to_go_on(tmp_path):
    (tmp_path / "config.yaml").write_text("model_name: x\n")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no checkpoint to continue.*overwrite_output_dir: true") as caught:
        check_output_dir(TrainingSettings(output_dir=str(tmp_path)))
    assert "latest" not in str(caught.value)


def test_a_new_or_unrelated_folder_is_taken(tmp_path):
    prepare_output_dir(TrainingSettings(output_dir=str(tmp_path / "a" / "b")))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "pairs.csv").write_text("query,positive\n")
    prepare_output_dir(TrainingSettings(output_dir=str(tmp_path)))
    assert files(tmp_path) == ["a", "a/b", "pairs.csv"]


def test_a_file_is_no_output_dir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        check_output_dir(TrainingSettings(output_dir=str(tmp_path / "file")))


def test_a_run_in_use_names_the_ways_on(run):
    with pytest.raises(UsageError, match=r"resume_from_checkpoint: latest.*overwrite_output_dir: true"):
        check_output_dir(settings(run))


def test_checking_changes_nothing(run):
    before = files(run.path)
    check_output_dir(settings(run, overwrite_output_dir=True))
    check_output_dir(settings(run, resume_from_checkpoint="latest"))
    assert files(run.path) == before


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(run):
    prepare_output_dir(settings(run, overwrite_output_dir=True))
    assert files(run.path) == ["notes.txt"]


def test_overwriting_refuses_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    (tmp_path / "report").mkdir()
    with pytest.raises(UsageError, match="not the folder of a run"):
        prepare_output_dir(TrainingSettings(output_dir=str(tmp_path), overwrite_output_dir=True))
    assert files(tmp_path) == ["config.yaml", "report"]


def test_latest_is_the_highest_step(run):
    run.checkpoint(100).mkdir()
    assert find_checkpoint(run, "latest") == run.checkpoint(100)
    assert find_checkpoint(run, str(run.checkpoint(100))) == run.checkpoint(100)


def test_going_back_to_an_older_checkpoint_does_not_silently_drop_newer_ones(run):
    with pytest.raises(UsageError, match="older than checkpoint-30"):
        find_checkpoint(run, str(run.checkpoint(20)))


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path):
    (tmp_path / "other" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"is not a checkpoint of output_dir.*checkpoint-20, checkpoint-30"):
        check_output_dir(settings(run, resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-5")))


def test_nothing_to_resume_is_refused(tmp_path, run):
    with pytest.raises(UsageError, match=r"holds no checkpoint; leave the key out to start$"):
        check_output_dir(TrainingSettings(output_dir=str(tmp_path / "no"), resume_from_checkpoint="latest"))
    run.checkpoint(20).rmdir()
    run.checkpoint(30).rmdir()
    with pytest.raises(UsageError, match="overwrite_output_dir: true"):
        check_output_dir(settings(run, resume_from_checkpoint="latest"))


def test_leftovers_of_a_dead_process_are_cleared_on_resume(run):
    (run.path / ".checkpoint-40.new").mkdir()
    run.best.rename(run.path / ".best.old")
    prepare_output_dir(settings(run, resume_from_checkpoint="latest"))
    assert run.best.is_dir()
    assert not [name for name in files(run.path) if name.startswith(".")]


CONFIG = load_config(None, ["preset=none"]).yaml_text()
RECORD = '{"started": "x"}'
# What a start leaves that is killed, or finds the disk full, after each of its writes; of earlier versions too, which
# wrote config.yaml first, and not at once.
KILLED = {
    "in the record": {".run.json.0a1b2c3d.new": "{"},
    "after the record": {"run.json": RECORD},
    "in the split": {"run.json": RECORD, ".split.json.0a1b2c3d.new": ""},
    "after the split": {"run.json": RECORD, "split.json": "{}"},
    "in the config": {"run.json": RECORD, "split.json": "{}", ".config.yaml.0a1b2c3d.new": CONFIG[:9]},
    "after the config": {"run.json": RECORD, "config.yaml": CONFIG},
    "old: on a full disk": {"config.yaml": ""},
    "old: in the config's first line": {"config.yaml": CONFIG[:7]},
    "old: in the config": {"config.yaml": CONFIG[:300]},
    "old: after the config": {"config.yaml": CONFIG},
    "old: in the split": {"config.yaml": CONFIG, ".split.json.new": ""},
    "old: after the split": {"config.yaml": CONFIG, "split.json": "{}"},
    "old: in the record": {"config.yaml": CONFIG, "split.json": "{}", ".run.json.new": ""},
}


@pytest.mark.parametrize("left", KILLED.values(), ids=KILLED.keys())
def test_a_start_that_died_blocks_its_folder_for_nobody(tmp_path, left):
    """The plain start and the resume say the one way on, and it is one."""
    for name, text in {**left, "notes.txt": "mine"}.items():
        (tmp_path / name).write_text(text)
    plain = TrainingSettings(output_dir=str(tmp_path))
    with pytest.raises(UsageError, match=r"no checkpoint to continue from: delete it and start anew with overwrite_o"):
        check_output_dir(plain)
    with pytest.raises(UsageError, match=r"leave the key out to start, with overwrite_output_dir: true$"):
        check_output_dir(plain.model_copy(update={"resume_from_checkpoint": "latest"}))
    with hold_output_dir(plain.model_copy(update={"overwrite_output_dir": True})):
        prepare_output_dir(plain.model_copy(update={"overwrite_output_dir": True}))
    assert files(tmp_path) == ["notes.txt"]


def test_a_config_that_no_run_wrote_is_moved_aside_not_deleted(tmp_path):
    for number, kept in enumerate(["config.yaml.kept", "config.yaml.kept2"]):
        (tmp_path / "config.yaml").write_text(f"epochs: {number}")
        prepare_output_dir(TrainingSettings(output_dir=str(tmp_path), overwrite_output_dir=True))
        assert (tmp_path / kept).read_text() == f"epochs: {number}"
    assert files(tmp_path) == ["config.yaml.kept", "config.yaml.kept2"]


@pytest.mark.parametrize("names", [["best"], ["split.json"], ["config.yaml", "split.json"], ["checkpoint-3"]])
def test_what_need_not_be_a_runs_is_told_by_every_start_and_stays(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("{}")
    for values in ({}, {"overwrite_output_dir": True}):
        with pytest.raises(UsageError, match=r"nothing in it is deleted.*move these away, or choose") as caught:
            check_output_dir(TrainingSettings(output_dir=str(tmp_path), **values))
        assert ("continue it with resume" in str(caught.value)) == (names == ["checkpoint-3"])
    if names != ["checkpoint-3"]:
        with pytest.raises(UsageError, match=rf"move {', '.join(names)} away"):
            check_output_dir(TrainingSettings(output_dir=str(tmp_path), resume_from_checkpoint="latest"))
    assert files(tmp_path) == names


def test_other_files_that_look_like_leftovers_are_not_a_runs(run):
    for name in (".vimrc.old", ".notes.new"):
        (run.path / name).write_text("mine")
    prepare_output_dir(settings(run, overwrite_output_dir=True))
    assert files(run.path) == [".notes.new", ".vimrc.old", "notes.txt"]


def test_a_deletion_that_is_killed_at_any_point_can_be_done_again(run, monkeypatch):
    (run.path / ".best.0a1b2c3d.new").mkdir()
    for folder in (run.trackers, run.split):
        folder.mkdir()
    deleted, real = [], folder_module.remove

    def delete_one_and_die(path):
        real(path)
        deleted.append(path.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "remove", delete_one_and_die)
    while run.contents():
        with pytest.raises(KeyboardInterrupt):
            prepare_output_dir(settings(run, overwrite_output_dir=True))
    assert len(deleted) == 11
    assert deleted[-1] == "run.json"
    assert files(run.path) == ["notes.txt"]


@pytest.mark.parametrize("name", ["checkpoint-20", "best", "final", "report", "trackers", "metrics.jsonl"])
def test_what_was_moved_and_linked_back_is_unlinked_and_not_followed(run, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("1")
    folder_module.remove(run.path / name)
    (run.path / name).symlink_to(elsewhere / "precious" if "." in name else elsewhere)
    prepare_output_dir(settings(run, overwrite_output_dir=True))
    assert files(run.path) == ["notes.txt"]
    assert (elsewhere / "precious").read_text() == "1"


def test_a_link_to_the_folder_stands_for_it(run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run.path)
    by_link = TrainingSettings(output_dir=str(link), overwrite_output_dir=True)
    with hold_output_dir(by_link):
        with pytest.raises(UsageError, match="writes there"), hold_output_dir(settings(run, overwrite_output_dir=True)):
            pass
        prepare_output_dir(by_link)
    assert link.is_symlink()
    assert files(run.path) == ["notes.txt"]


def test_a_folder_that_is_held_is_refused_whatever_is_asked_and_stays_as_it_is(run):
    with hold_output_dir(settings(run, resume_from_checkpoint="latest")):
        before = files(run.path)
        for values in ({}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}):
            with pytest.raises(UsageError, match=r"^output_dir .*: process \d+ on host .*writes there; .* output_dir$"):
                hold_output_dir(settings(run, **values)).__enter__()
        assert files(run.path) == before
        assert "run.lock" in before
    assert "run.lock" not in files(run.path)


def test_holding_is_undone_where_the_start_is_refused(run, tmp_path):
    before = files(run.path)
    with pytest.raises(UsageError, match="already holds a run"), hold_output_dir(settings(run)):
        pass
    assert files(run.path) == before
    new = TrainingSettings(output_dir=str(tmp_path / "a" / "b"), resume_from_checkpoint="latest")
    with pytest.raises(UsageError, match="holds no checkpoint"), hold_output_dir(new):
        pass
    assert not (tmp_path / "a").exists()


def test_overwriting_keeps_the_lock(run):
    with hold_output_dir(settings(run, overwrite_output_dir=True)):
        prepare_output_dir(settings(run, overwrite_output_dir=True))
        assert files(run.path) == ["notes.txt", "run.lock"]


@pytest.mark.parametrize("part", ["final", "final/mine", "checkpoint-20/x", "report", "trackers/a/b"])
def test_a_folder_that_another_run_writes_and_deletes_is_refused(run, part, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run.path)
    for root in (run.path, link):
        with pytest.raises(UsageError, match=r"lies in a folder that the run .* writes and deletes"):
            check_output_dir(TrainingSettings(output_dir=str(root / part)))
    check_output_dir(TrainingSettings(output_dir=str(run.path / "another")))


def test_a_name_that_no_folder_can_have_is_told_in_a_line(tmp_path):
    with pytest.raises(UsageError, match="cannot be"), hold_output_dir(TrainingSettings(output_dir="x" * 300)):
        pass


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "metrics.jsonl", "split.json", "bad_samples.jsonl"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("gone"), lambda path: path.mkdir()])
def test_what_is_no_file_is_told_before_a_run_goes_on(run, name, make):
    (run.path / name).unlink(missing_ok=True)
    make(run.path / name)
    with pytest.raises(CheckpointError, match=rf"{name} is no regular file, but"):
        check_output_dir(settings(run, resume_from_checkpoint="latest"))


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 4, "checksum": "0123456789abcdef"}'])
def test_a_damaged_record_is_told_before_a_run_goes_on(run, text):
    run.record.write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        check_output_dir(settings(run, resume_from_checkpoint="latest"))


def test_a_pipe_called_as_the_config_is_not_waited_for(run):
    run.config.unlink()
    run.record.unlink()
    os.mkfifo(run.config)
    with pytest.raises(UsageError, match="perhaps not the folder of a run"):
        check_output_dir(settings(run, overwrite_output_dir=True))
