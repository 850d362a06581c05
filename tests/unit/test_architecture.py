"""The house keeps its shape: imports point down, files and functions stay short, nothing is left undone."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "vembed").rglob("*.py"))


@cache
def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the package with its file."""
    return [
        (path, node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def name_of(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def length_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_the_tests_below_see_the_package():
    assert len(MODULES) > 60
    assert len(functions()) > 250


def test_imports_point_down():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "1 kept, 0 broken" in result.stdout


def test_only_utils_distributed_talks_to_other_processes():
    users = {str(path.relative_to(ROOT)) for path in MODULES if "torch.distributed" in path.read_text()}
    assert users <= {"vembed/utils/distributed.py"}


def test_no_file_is_long():
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}
    assert median(lines for lines in lengths.values() if lines) < 140


def test_no_function_is_long():
    lengths = {name_of(path, node): length_of(node) for path, node in functions()}
    assert {name: lines for name, lines in lengths.items() if lines > 50} == {}
    assert median(lengths.values()) < 11


def test_no_function_takes_too_many_arguments():
    def num_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        names = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
        return len([name for name in names if name not in ("self", "cls")])

    # A typer command's arguments are the command line itself.
    library = [(path, node) for path, node in functions() if path.parent != ROOT / "vembed" / "commands"]
    assert [name_of(path, node) for path, node in library if num_arguments(node) > 8] == []


@pytest.mark.parametrize(
    "forbidden", ["TO" + "DO", "FIX" + "ME", "raise NotImplementedError", "trust_remote_code=True"]
)
def test_nothing_is_left_undone(forbidden):
    assert [str(path) for path in MODULES if forbidden in path.read_text()] == []


def test_every_public_function_and_class_has_a_docstring():
    naked = [
        name_of(path, node)
        for path, node in functions()
        if not node.name.startswith("_") and node.col_offset == 0 and ast.get_docstring(node) is None
    ]
    classes = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and ast.get_docstring(node) is None
    ]
    assert naked + classes == []
