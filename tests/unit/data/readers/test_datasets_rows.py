"""save_to_disk folders that are damaged, and hub names whose cache cannot be written."""

import os
import pickle
import random
import shutil
import subprocess
import sys

import datasets
import pytest

from vembed.data.loading import load_data
from vembed.errors import DataError


@pytest.fixture
def saved(tmp_path):
    rows = [{"query": f"query {i}", "positive": f"document {i}", "negatives": ["n"] * (i % 3)} for i in range(50)]
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    datasets.enable_progress_bars()
    return tmp_path / "saved"


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"3", b'{"features": 3, "_data_files": 3}', b"{" * 100_000, b"\xff\xfe"]
)
def test_a_folder_with_a_file_missing_or_of_another_kind_is_refused_by_name(saved, name, content):
    (saved / name).unlink() if content is None else (saved / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        load_data(str(saved))
    assert str(refused.value).startswith(str(saved))
    assert "\n" not in str(refused.value)


def test_damaged_tables_are_read_or_refused_and_never_followed_to_where_they_point(saved):
    path = saved / "data-00000-of-00001.arrow"
    whole, draw = path.read_bytes(), random.Random(0)
    num_read, num_refused = 0, 0
    for _ in range(150):
        data, place = bytearray(whole), draw.randrange(len(whole))
        data[place : place + 8] = draw.randbytes(8)
        path.write_bytes(data)
        try:
            rows = load_data(str(saved))
            assert len([dict(rows[index]) for index in range(len(rows))]) == len(rows)
        except DataError as error:
            num_refused += str(error).startswith(str(saved))
        else:
            num_read += 1
    assert num_refused > 20
    assert num_read + num_refused == 150


def test_a_process_that_would_map_other_files_refuses_them(saved):
    packed = pickle.dumps(load_data(str(saved)))
    assert pickle.loads(packed)[7]["query"] == "query 7"
    path = saved / "data-00000-of-00001.arrow"
    shutil.copy(path, saved / "other")
    (saved / "other").replace(path)
    with pytest.raises(DataError, match="was replaced or written to"):
        pickle.loads(packed)


def test_a_cache_that_cannot_be_written_is_named_with_the_variables_that_move_it():
    code = "from vembed.data.loading import load_data; load_data('nobody/nothing')"
    environment = {**os.environ, "HOME": "/proc/nowhere", "HF_HOME": "/proc/nowhere", "XDG_CACHE_HOME": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("vembed.errors.DataError: nobody/nothing: there is no such file or folder")
    assert "its cache /proc/nowhere/datasets cannot be written" in last
    assert "HF_DATASETS_CACHE" in last


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json", "dataset_info.json"])
@pytest.mark.parametrize("in_splits", [True, False])
def test_a_pipe_in_the_folder_is_refused_and_not_waited_for(saved, tmp_path, name, in_splits):
    folder = saved
    if in_splits:
        folder = tmp_path / "splits"
        datasets.DatasetDict(train=datasets.load_from_disk(str(saved))).save_to_disk(str(folder))
    file = folder / "train" / name if in_splits else folder / name
    file.unlink()
    os.mkfifo(file)
    code = f"from vembed.data.loading import load_data; load_data({str(folder)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.stderr.strip().splitlines()[-1].startswith(f"vembed.errors.DataError: {file}: ")
