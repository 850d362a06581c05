"""The script that kills runs, with few of them."""

import pytest

from benchmark.kill_and_resume import main


@pytest.mark.slow
def test_runs_that_are_killed_become_the_run_that_nobody_stopped(tmp_path, capsys):
    assert main(["--moments", "2", "--workers", "2", "--seed", "4", "--folder", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2 |")]
    assert len(lines) == 2
    assert all("| 0 | is the straight run |" in line for line in lines)
