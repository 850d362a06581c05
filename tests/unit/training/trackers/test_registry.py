"""Names of trackers, known when a config is loaded, and the folders that are theirs."""

import subprocess
import sys
from pathlib import Path

import pytest

from vembed.config import load_config
from vembed.errors import ConfigError, UsageError
from vembed.training.run.folder import RunFolder, check_output_dir, prepare_output_dir
from vembed.training.settings import TrainingSettings


def test_a_list_is_given_in_yaml_and_by_flag(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("report_to: [tensorboard]\n")
    assert load_config(file).training.report_to == ("tensorboard",)
    assert load_config(overrides=["--report_to", "tensorboard"]).training.report_to == ("tensorboard",)
    assert load_config().training.report_to == ()


def test_an_unknown_name_is_told_with_its_line_beside_all_other_problems(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("epochs: 0\nreport_to:\n  - tensorbord\n  - tensorboard\n  - tensorboard\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).splitlines() == [
        "3 problems in the configuration:",
        f"  {file}:1: epochs: expected int, at least 1; got 0",
        f"  {file}:3: report_to[0]: there is no tracker 'tensorbord'; did you mean tensorboard? Known: tensorboard",
        f"  {file}:5: report_to[2]: 'tensorboard' is named twice; keep one",
    ]


def test_an_unknown_name_is_told_without_torch():
    program = (
        "import sys\n"
        "from vembed.config import load_config\n"
        "from vembed.errors import ConfigError\n"
        "try:\n"
        "    load_config(overrides=['--report_to', 'wandb'])\n"
        "except ConfigError as error:\n"
        "    print(error, {'torch', 'tensorboard'} & set(sys.modules))\n"
    )
    root = Path(__file__).parents[4]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout == "command line: report_to[0]: there is no tracker 'wandb'. Known: tensorboard set()\n"


def test_the_trackers_folders_are_part_of_the_run_and_others_of_their_names_are_not(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "tensorboard").mkdir()
    check_output_dir(TrainingSettings(output_dir=str(tmp_path)))
    for name in ("mine", "report"):
        run.tracker(name).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"already holds a run \(trackers\)"):
        check_output_dir(TrainingSettings(output_dir=str(tmp_path)))
    run.write_record({})
    prepare_output_dir(TrainingSettings(output_dir=str(tmp_path), overwrite_output_dir=True))
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
