"""Files of the packages that carry the demo's models and pictures: found and checked, never imported."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from vembed.errors import DataError, UsageError

INSTALL_COMMAND = 'pip install "vembed-factory[demo]"'


@dataclass(frozen=True)
class PackageFile:
    """One file of an installed package, the hash that it must have, and what installs the package."""

    package: str
    path: str
    sha256: str
    install_command: str = INSTALL_COMMAND

    def find(self) -> Path:
        """The file's path. Raises UsageError when its package is missing, DataError when it is not the known file."""
        install = self.install_command
        found = package_path(self.package, self.path, install_command=install)
        digest = sha256_of([found])
        refuse_other_content(found, expected=self.sha256, actual=digest, package=self.package, install_command=install)
        return found

    def read_json(self) -> Any:  # Any: whatever the JSON holds
        """The content of a JSON file, checked as `find` does."""
        return json.loads(self.find().read_text(encoding="utf-8"))


def package_path(package: str, path: str, *, install_command: str = INSTALL_COMMAND) -> Path:
    """The file or folder at `path` within an installed package. Raises UsageError when either is missing."""
    found = Path(str(_installed(package, install_command).locate_file(path)))
    if not found.exists():
        raise UsageError(f"package {package!r} has no {path}; install the demo's packages again: {install_command}")
    return found


def sha256_of(files: Iterable[Path]) -> str:
    """One hash over the contents of all files, in the given order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def refuse_other_content(
    path: Path, *, expected: str, actual: str, package: str, install_command: str = INSTALL_COMMAND
) -> None:
    """Raise DataError unless the two hashes are equal."""
    if actual != expected:
        raise DataError(
            f"{path} of package {package!r} has sha256 {actual}, expected {expected}; "
            f"install the versions that the demo is made for: {install_command}"
        )


def _installed(package: str, install_command: str) -> Distribution:
    try:
        return distribution(package)
    except PackageNotFoundError as error:
        raise UsageError(f"the demo needs package {package!r}, which is not installed: {install_command}") from error
