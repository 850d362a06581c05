import subprocess
import sys

SCRIPT = """
import logging
from vembed.utils.logging import configure_logging
{before}
configure_logging()
configure_logging()
logging.getLogger("vembed.some.part").info("a fact")
logging.getLogger("vembed.some.part").warning("a warning")
"""


def run(before="", **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin", **environment},
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_line_is_written_once_however_often_logging_is_set_up():
    lines = run()
    assert [line.split(" ", 1)[1] for line in lines] == ["INFO a fact", "WARNING a warning"]


def test_an_application_keeps_its_own_handlers():
    assert run(before="logging.basicConfig(format='mine %(message)s')") == ["mine a fact", "mine a warning"]


def test_other_processes_show_warnings_only():
    assert [line.split(" ", 1)[1] for line in run(RANK="1")] == ["WARNING a warning"]


def test_lines_go_through_rich_on_a_terminal():
    program = "import pty, sys; pty.spawn([sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run(
        [sys.executable, "-c", program, SCRIPT.format(before="")],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin", "TERM": "xterm", "COLUMNS": "80"},
    )
    assert "a fact" in done.stdout
    assert "\x1b[" in done.stdout  # colours
