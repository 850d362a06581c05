"""Bad rows: found before training, counted once, listed, and too many of them stop the run."""

import json
import os

import pytest

from tests.pictures import write_jsonl, write_picture
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.data.validation import BadSamples, check_dataset
from vembed.errors import CheckpointError, DataError


def _settings(**values):
    return DataSettings.model_validate(values)


@pytest.fixture
def dataset(tmp_path):
    """Ten rows, of which the third, the fifth (no file), and the eighth (no JSON) are bad."""
    write_picture(tmp_path / "a.png", seed=1)
    rows = [{"query": f"a {number}", "positive": "a.png"} for number in range(10)]
    rows[2]["positive"] = None
    rows[4]["positive"] = "gone.png"
    rows[7] = "{broken"
    return load_datasets(write_jsonl(tmp_path / "d.jsonl", rows), _settings())[0]


def test_all_bad_rows_are_listed_at_once_before_training(dataset):
    with pytest.raises(DataError) as caught:
        check_dataset(dataset, _settings())
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 10 rows cannot be used:"
    assert "d.jsonl:3: positive: is null" in lines[1]
    assert "gone.png: there is no such image file" in lines[2]
    assert "d.jsonl:8: broken JSON" in lines[3]
    assert lines[4] == "Mend them, or say on_bad_sample: skip"


def test_when_skipping_they_are_returned_up_to_the_allowed_share(dataset):
    problems = check_dataset(dataset, _settings(on_bad_sample="skip", max_bad_fraction=0.3))
    assert [problem.origin.rsplit(":", 1)[1] for problem in problems] == ["3", "5", "8"]
    with pytest.raises(DataError, match="raise max_bad_fraction"):
        check_dataset(dataset, _settings(on_bad_sample="skip", max_bad_fraction=0.29))


def test_a_long_list_is_cut(tmp_path):
    data = load_datasets(write_jsonl(tmp_path / "d.jsonl", [{"query": "", "positive": "b"}] * 50), _settings())[0]
    with pytest.raises(DataError, match=r"50 of 50 rows(.|\n)*and 40 more"):
        check_dataset(data, _settings())


def test_good_data_have_no_problems(dataset):
    assert check_dataset(dataset.select([0, 1, 3]), _settings()) == ()


def test_the_first_bad_sample_raises_by_default():
    with pytest.raises(DataError, match=r"d\.jsonl:3: is bad \(on_bad_sample: skip"):
        BadSamples(_settings()).add("d.jsonl:3", "d.jsonl:3: is bad")


def test_skipped_samples_are_listed_and_each_counts_once(tmp_path):
    bad = BadSamples(_settings(on_bad_sample="skip"), tmp_path / "run")
    bad.set_num_rows(1000)
    for number in (1, 2, 1, 2, 3):
        bad.add(f"d.jsonl:{number}", f"reason ü {number}")
    assert bad.num_bad == 3
    lines = (tmp_path / "run" / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"origin": f"d.jsonl:{number}", "reason": f"reason ü {number}"} for number in (1, 2, 3)
    ]


def test_over_the_allowed_share_the_run_stops():
    bad = BadSamples(_settings(on_bad_sample="skip", max_bad_fraction=0.02))
    bad.set_num_rows(100)
    bad.add("d:1", "one")
    bad.add("d:2", "two")
    with pytest.raises(
        DataError, match=r"3 of 100 rows cannot be used, over max_bad_fraction = 0\.02; the last: three"
    ):
        bad.add("d:3", "three")


def test_a_resumed_run_goes_on_with_the_count(tmp_path):
    settings = _settings(on_bad_sample="skip", max_bad_fraction=0.02)
    first = BadSamples(settings, tmp_path)
    first.set_num_rows(100)
    first.add("d:1", "one")
    first.add("d:2", "two")
    with (tmp_path / "bad_samples.jsonl").open("a") as file:
        file.write('{"origin": "d:9", "rea')  # the run was killed here
    second = BadSamples(settings, tmp_path)
    second.set_num_rows(100)
    assert second.num_bad == 2
    second.add("d:1", "one")
    with pytest.raises(DataError, match=r"all are listed in .*bad_samples\.jsonl"):
        second.add("d:3", "three")


def test_a_reason_with_half_of_a_surrogate_pair_can_be_listed(tmp_path):
    samples = BadSamples(_settings(on_bad_sample="skip", max_bad_fraction=1), tmp_path)
    samples.add("d.jsonl:1", "the row has: \ud800")
    assert BadSamples(_settings(on_bad_sample="skip"), tmp_path).num_bad == 1
    assert json.loads((tmp_path / "bad_samples.jsonl").read_text())["reason"] == "the row has: \ud800"


@pytest.mark.parametrize(
    ("listed", "fault"),
    [
        ('{"origin": "a:1", "reason": "b"}\n{"origin": 3, "reason": "b"}\n', ": an origin or a reason is no text"),
        ('{"origin": "a:1", "reason": "b"}\n{"origin": "a:2", }\n', ":2 is damaged; delete it"),
        ("[}\n", ":1 is damaged; delete it, and its rows are found anew"),
    ],
)
def test_a_damaged_list_of_bad_rows_is_refused_by_its_line(tmp_path, listed, fault):
    (tmp_path / "bad_samples.jsonl").write_text(listed)
    with pytest.raises(CheckpointError, match=f"bad_samples.jsonl.*{fault}"):
        BadSamples(_settings(), tmp_path)
    (tmp_path / "bad_samples.jsonl").unlink()
    os.mkfifo(tmp_path / "bad_samples.jsonl")
    with pytest.raises(CheckpointError, match="it is a pipe"):
        BadSamples(_settings(), tmp_path)
