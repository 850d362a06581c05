import re

import pytest

from vembed.errors import UsageError
from vembed.training.run.folder import RunFolder, check_output_dir, find_checkpoint, open_run_folder, write_json
from vembed.training.settings import TrainingSettings


@pytest.fixture
def run(tmp_path):
    """A folder as a run of 30 steps leaves it, with a file of the user's beside."""
    run = RunFolder(tmp_path / "run")
    for folder in (run.path, run.checkpoint(20), run.checkpoint(30), run.best, run.final, run.report):
        folder.mkdir()
    run.config.write_text("model_name: x\n")
    write_json(run.record, {"rows": 3})
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
        open_run_folder(TrainingSettings(output_dir=str(tmp_path)))
    assert files(tmp_path) == [left]


def test_a_run_without_a_checkpoint_is_not_said_to_go_on(tmp_path):
    (tmp_path / "config.yaml").write_text("model_name: x\n")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no checkpoint to continue.*overwrite_output_dir: true") as caught:
        check_output_dir(TrainingSettings(output_dir=str(tmp_path)))
    assert "latest" not in str(caught.value)


def test_a_new_or_unrelated_folder_is_taken(tmp_path):
    open_run_folder(TrainingSettings(output_dir=str(tmp_path / "a" / "b")))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "pairs.csv").write_text("query,positive\n")
    open_run_folder(TrainingSettings(output_dir=str(tmp_path)))
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
    open_run_folder(settings(run, overwrite_output_dir=True))
    assert files(run.path) == ["notes.txt"]


def test_overwriting_refuses_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    (tmp_path / "report").mkdir()
    with pytest.raises(UsageError, match="not the folder of a run"):
        open_run_folder(TrainingSettings(output_dir=str(tmp_path), overwrite_output_dir=True))
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
    open_run_folder(settings(run, resume_from_checkpoint="latest"))
    assert run.best.is_dir()
    assert not [name for name in files(run.path) if name.startswith(".")]
