"""What data, files and models say cannot command the terminal that it is printed on."""

import ast
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vembed.cli import app
from vembed.commands.echo import echo

EVIL = "red\x1b[2J\x1b]0;owned\x07\u202e\x9b31m\r shoe"
ROOT = Path(__file__).parents[3]


def test_control_characters_are_written_escaped(capsys):
    echo(f"first\n{EVIL}", bold=True)
    assert capsys.readouterr().out == "first\nred\\x1b[2J\\x1b]0;owned\\x07\\u202e\\x9b31m\\r shoe\n"


def test_nothing_of_the_commands_goes_to_the_terminal_but_through_echo():
    files = [ROOT / "vembed" / "cli.py", *(ROOT / "vembed" / "commands").glob("*.py")]
    assert len(files) > 9
    for file in files:
        called = {node.func.attr for node in ast.walk(ast.parse(file.read_text())) if is_method_call(node)}
        assert file.name == "echo.py" or not called & {"secho", "style"}, file
        typers = {
            node.func.attr
            for node in ast.walk(ast.parse(file.read_text()))
            if is_method_call(node) and isinstance(node.func.value, ast.Name) and node.func.value.id == "typer"
        }
        assert file.name == "echo.py" or "echo" not in typers, file


def is_method_call(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)


@pytest.mark.parametrize("place", ["message", "value", "name of the file"])
def test_what_a_config_says_is_escaped(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a\x1b[2J.yaml" if place == "name of the file" else "my.yaml"
    value = '"\\e[2J\\n  trust_remote_code  false  default"' if place == "value" else "shoe"
    Path(name).write_text(f"query_prompt: {value}\n" + ('"epo\\e[2Jchs": 1\n' if place == "message" else ""))
    result = CliRunner().invoke(app, ["config", "show", name])
    assert "\x1b" not in result.output
    assert "[2J" in result.output
    assert result.exit_code == (2 if place == "message" else 0)
    rows = [line for line in result.stdout.splitlines() if line.startswith("  trust_remote_code")]
    assert len(rows) == (0 if place == "message" else 1)


LOG = """
import logging
from vembed.utils.logging import configure_logging
configure_logging()
log = logging.getLogger("vembed.some.part")
name = "a\\x1b[2J\\n12:00:00 INFO all is well"
log.warning("%s of %d: %s [red]no markup[/red]", name, 3, ValueError("b\\x07\\u202e"))
"""


def test_log_lines_are_escaped_and_data_gets_no_line_of_its_own():
    done = subprocess.run([sys.executable, "-c", LOG], capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == 1
    assert "a\\x1b[2J\\n12:00:00 INFO all is well of 3: b\\x07\\u202e [red]no markup[/red]" in done.stderr


def test_log_lines_on_a_terminal_are_escaped_too():
    program = "import pty, sys; pty.spawn([sys.executable, '-c', sys.argv[1]])"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", program, LOG],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    assert "\x1b[2J" not in done.stdout
    assert "\x07" not in done.stdout
    assert "[red]no markup[/red]" in re.sub(r"\x1b\[[\d;]*m", "", done.stdout)


def test_a_record_is_left_as_it_is_for_other_handlers():
    from vembed.utils.logging import _Printable  # noqa: PLC0415

    record = logging.LogRecord("vembed", logging.INFO, "", 0, "%s", ("a\nb",), None)
    assert _Printable("%(message)s").format(record) == "a\\nb"
    assert record.getMessage() == "a\nb"
