"""The facts that the doctor tells of a machine."""

import re
from pathlib import Path

from vembed.entrypoints.doctor import _EXTRAS

PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
BRING_NO_MODULE_OF_OURS = {"vlm", "demo", "dev"}


def test_every_extra_that_our_code_imports_is_told_of():
    extras = re.search(r"optional-dependencies\]\n(.*?)\n\[", PYPROJECT.read_text(), re.DOTALL)[1]
    names = re.findall(r"^(\w+) = \[", extras, re.MULTILINE)
    assert len(names) >= 8
    assert {*_EXTRAS} == {*names} - BRING_NO_MODULE_OF_OURS
