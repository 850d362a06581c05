"""The training loader: the same batches with and without workers, after any resume, on any number of processes."""

import json
import pickle
import shutil
from collections import Counter

import pytest
import torch

from tests.pictures import write_jsonl, write_pairs
from tests.unit.data.plain_processor import PlainProcessor
from vembed.data.batches.loader import LoaderState, TrainingLoader
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.data.validation import BadSamples
from vembed.errors import CheckpointError, DataError
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.types import EncodedItem

# Python 3.12 and later warn whenever a process with threads forks; torch has threads, and its workers fork.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def _settings(**values):
    return DataSettings.model_validate({"num_workers": 0, **values})


@pytest.fixture(scope="module")
def mixed_source(tmp_path_factory):
    """Three data sets of different modes, sizes and weights; of the first, every sixth row is bad."""
    root = tmp_path_factory.mktemp("mixed")
    path = write_pairs(root / "t2i", 24, num_negatives=4, groups=5)
    lines = (root / "t2i" / "pairs.jsonl").read_text().splitlines()
    lines[::6] = ["{broken", '{"query": "a", "positive": null}', '{"query": " ", "positive": "positive_1.png"}', "{}"]
    write_jsonl(path, lines)
    return [
        {"path": path, "retrieval_mode": "t2i"},
        {"path": write_pairs(root / "m2i", 10, "m2i"), "retrieval_mode": "m2i", "weight": 2},
        {"path": write_pairs(root / "t2t", 13, "t2t"), "retrieval_mode": "t2t"},
    ]


def _loader(source, *, batch_size=4, seed=0, rank=0, world_size=1, bad_samples=None, **values):
    settings = _settings(**{"on_bad_sample": "skip", "max_bad_fraction": 0.2, **values})
    datasets = load_datasets(_settings(data_path=source).data_path, settings)
    return TrainingLoader(
        datasets,
        PlainProcessor(),
        settings,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        bad_samples=bad_samples,
    )


def _plain(value):
    """A batch as nested plain values, so that == compares every number and shape."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, str | bytes | int | float | None):
        return value
    return {name: _plain(part) for name, part in vars(value).items()}


def _run(loader, epoch=0, state=None):
    return [(_plain(batch), state.to_dict()) for batch, state in loader.epoch(epoch, state)]


def _origins(loader, epoch=0):
    return [batch.origins for batch, _ in loader.epoch(epoch)]


def test_an_epoch_gives_every_row_once_and_the_weighted_ones_twice(tmp_path):
    plain = write_pairs(tmp_path / "a", 20, "t2t")
    double = write_pairs(tmp_path / "b", 8, "t2t")
    loader = _loader([plain, {"path": double, "weight": 2}], retrieval_mode="t2t")
    origins = _origins(loader)
    seen = Counter(origin for batch in origins for origin in batch)
    assert len(origins) == loader.num_batches(0) == 9
    assert seen == Counter({f"{plain}:{i + 1}": 1 for i in range(20)} | {f"{double}:{i + 1}": 2 for i in range(8)})


def test_a_batch_is_of_one_data_set_and_they_are_interleaved(mixed_source):
    origins = _origins(_loader(mixed_source))
    files = [{origin.rsplit(":", 1)[0] for origin in batch} for batch in origins]
    assert all(len(names) == 1 for names in files)
    order = [names.pop() for names in files]
    assert set(Counter(order).values()) == {6, 5, 3}
    assert order != sorted(order)


def test_the_same_data_in_another_folder_gives_the_same_pictures(tmp_path):
    write_pairs(tmp_path / "here", 8, "i2i", num_negatives=3)
    shutil.copytree(tmp_path / "here", tmp_path / "else" / "where")
    batches = []
    folders = ("here", "else/where")
    for folder in folders:
        source = [{"path": str(tmp_path / folder / "pairs.jsonl"), "retrieval_mode": "i2i"}]
        loader = _loader(source, augment="strong", num_hard_negatives=1)
        batches.append([(_plain(batch.queries), _plain(batch.documents)) for batch, _ in loader.epoch(0)])
    assert len(batches[0]) == 2
    here, elsewhere = (
        str(part).replace(str(tmp_path / folder), "") for part, folder in zip(batches, folders, strict=True)
    )
    assert here == elsewhere


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_first_batch_of_each_set_is_the_one_of_the_epoch(mixed_source, num_workers):
    loader = _loader(mixed_source, num_workers=num_workers)
    firsts = [_plain(batch) for batch in loader.first_batches()]
    epoch = [_plain(batch) for batch, _ in loader.epoch(0)]
    assert len(firsts) == 3
    assert all(batch in epoch for batch in firsts)
    assert len({tuple(batch["origins"]) for batch in firsts}) == 3


def test_epochs_and_seeds_differ_and_repeat(mixed_source):
    loader = _loader(mixed_source)
    assert _run(loader, 0) == _run(loader, 0) == _run(_loader(mixed_source), 0)
    assert _origins(loader, 0) != _origins(loader, 1) != _origins(_loader(mixed_source, seed=1), 1)


@pytest.mark.parametrize("augment", ["none", "strong"])
def test_workers_change_nothing(mixed_source, augment):
    plain = _loader(mixed_source, augment=augment, num_hard_negatives=2)
    pooled = _loader(mixed_source, augment=augment, num_hard_negatives=2, num_workers=2)
    for epoch in (0, 1):
        batches = _run(pooled, epoch)
        assert len(batches) == pooled.num_batches(epoch) == 14
        assert batches == _run(plain, epoch)
    pooled.close()


def test_an_epoch_with_workers_may_be_left_and_another_begun(mixed_source):
    plain, pooled = _loader(mixed_source), _loader(mixed_source, num_workers=2)
    for epoch in (0, 1, 1):
        batches = pooled.epoch(epoch)
        first = [_plain(next(batches)[0]) for _ in range(3)]
        assert first == [batch for batch, _ in _run(plain, epoch)[:3]]
    pooled.close()
    assert _run(pooled, 0) == _run(plain, 0)
    pooled.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_after_any_batch_gives_exactly_the_following_ones(mixed_source, num_workers):
    values = {"augment": "light", "num_hard_negatives": 1}
    whole = _run(_loader(mixed_source, **values), 1)
    resumed = _loader(mixed_source, num_workers=num_workers, **values)
    for number in range(len(whole)):
        state = LoaderState.from_dict(json.loads(json.dumps(whole[number][1])))
        assert _run(resumed, 1, state) == whole[number + 1 :]
    resumed.close()


def test_a_state_counts_bad_rows_that_were_passed_over(mixed_source):
    states = [state for _, state in _loader(mixed_source).epoch(0)]
    assert (
        states[-1].places[0] >= 24 + 3
    )  # 24 good rows of 20: all four bad ones were passed at least once, bar the rest
    assert states[-1].num_batches == 14


def test_bad_rows_are_replaced_by_the_next_and_listed_once(mixed_source, tmp_path):
    settings = _settings(on_bad_sample="skip", max_bad_fraction=0.2)
    bad = BadSamples(settings, tmp_path)
    loader = _loader(mixed_source, bad_samples=bad)
    batches = [batch for epoch in range(3) for batch in _origins(loader, epoch)]
    assert {len(batch) for batch in batches} == {4}
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert sorted(int(line["origin"].rsplit(":", 1)[1]) for line in lines) == [1, 7, 13, 19]
    used = {origin for batch in batches for origin in batch}
    assert not used & {line["origin"] for line in lines}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_row_stops_the_epoch_by_default(mixed_source, num_workers):
    settings = _settings(num_workers=num_workers)
    datasets = load_datasets(_settings(data_path=mixed_source).data_path, settings)
    loader = TrainingLoader(datasets, PlainProcessor(), settings, batch_size=4, seed=0)
    with pytest.raises(DataError, match=r"pairs\.jsonl:(1|7|13|19): .*on_bad_sample: skip"):
        list(loader.epoch(0))
    loader.close()


def test_a_broken_picture_and_a_negative_that_is_the_positive_are_bad_rows(tmp_path):
    path = write_pairs(tmp_path, 20, num_negatives=1)
    (tmp_path / "positive_3.png").write_bytes((tmp_path / "positive_3.png").read_bytes()[:-300])
    (tmp_path / "positive_5.png").unlink()
    (tmp_path / "negative_27.png").write_bytes((tmp_path / "positive_7.png").read_bytes())
    settings = _settings(on_bad_sample="skip", max_bad_fraction=0.2)
    bad = BadSamples(settings, tmp_path)
    list(_loader([path], bad_samples=bad).epoch(0))
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    reasons = {line["origin"]: line["reason"] for line in lines}
    assert {origin.rsplit(":", 1)[1] for origin in reasons} == {"4", "6", "8"}
    assert "cut off or broken" in reasons[f"{path}:4"]
    assert "no such image file" in reasons[f"{path}:6"]
    assert "same content as the row's positive" in reasons[f"{path}:8"]


def test_too_many_bad_rows_stop_the_run(mixed_source):
    loader = _loader(mixed_source, max_bad_fraction=0.05)
    with pytest.raises(DataError, match=r"3 of 47 rows cannot be used, over max_bad_fraction = 0\.05"):
        list(loader.epoch(0))


def test_data_without_any_usable_row_do_not_loop_for_ever(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"query": "", "positive": "a.png"}] * 5)
    with pytest.raises(DataError, match="too few of its 5 rows can be used"):
        list(_loader([path], max_bad_fraction=1.0).epoch(0))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_random_state_does_not_move(mixed_source, num_workers):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    loader = _loader(mixed_source, num_workers=num_workers, augment="strong", num_hard_negatives=1)
    assert len(_run(loader, 0)) + len(_run(loader, 1)) == 28
    loader.close()
    assert torch.equal(before, torch.random.get_rng_state())


def test_two_processes_share_each_global_batch(tmp_path):
    source = [
        {"path": write_pairs(tmp_path / "a", 26, "t2t"), "name": "a"},
        {"path": write_pairs(tmp_path / "b", 17, "t2t"), "name": "b"},
    ]
    whole = _origins(_loader(source, batch_size=4, retrieval_mode="t2t"))
    halves = [_origins(_loader(source, batch_size=2, rank=rank, world_size=2, retrieval_mode="t2t")) for rank in (0, 1)]
    assert len(whole) == len(halves[0]) == len(halves[1]) == 11
    for together, first, second in zip(whole, *halves, strict=True):
        assert len(first) == len(second)
        assert sorted(first + second) == sorted(together)


def test_bad_rows_on_one_process_leave_the_number_of_batches_as_it_is(mixed_source):
    for rank in (0, 1):
        loader = _loader(mixed_source, batch_size=2, rank=rank, world_size=2)
        origins = _origins(loader)
        assert len(origins) == loader.num_batches(0) == 14
        assert {len(batch) for batch in origins} == {2}


def test_a_state_of_another_run_is_refused(mixed_source):
    _, state = next(_loader(mixed_source).epoch(0))
    with pytest.raises(CheckpointError, match="batch_size was 4 and is 8"):
        next(_loader(mixed_source, batch_size=8).epoch(0, state))
    with pytest.raises(CheckpointError, match="seed was 0 and is 1"):
        next(_loader(mixed_source, seed=1).epoch(0, state))
    with pytest.raises(CheckpointError, match="datasets was"):
        next(_loader(mixed_source[:2]).epoch(0, state))
    with pytest.raises(CheckpointError, match="epoch was 0 and is 1"):
        next(_loader(mixed_source).epoch(1, state))


def test_nothing_to_train_on_is_refused():
    with pytest.raises(DataError, match="no data set"):
        TrainingLoader([], PlainProcessor(), _settings(), batch_size=2, seed=0)


def test_everything_a_worker_needs_can_be_sent_to_it(mixed_source):
    """Platforms that do not fork send the loader by pickle."""
    loader = _loader(mixed_source, augment="light")._loader
    copy = pickle.loads(pickle.dumps(loader))
    assert copy.datasets[1][3] == loader.datasets[1][3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_files_are_the_batches_of_pixels(clip_folder, tmp_path, num_workers):
    path = write_pairs(tmp_path, 40, "i2i", num_negatives=1)
    processor = VisualRetrievalModel.from_pretrained(clip_folder, ModelSettings(image_size=64)).processor
    runs = []
    for kind in ("uint8", "encoded"):
        settings = _settings(num_workers=num_workers, augment="light", retrieval_mode="i2i", image_host_cache=kind)
        loader = TrainingLoader(load_datasets(path, settings), processor, settings, batch_size=40, seed=0)
        ((batch, _),) = loader.epoch(0)
        loader.close()
        sides = (batch.queries, batch.documents)
        runs.append(([_plain(processor.prepare(side.items, side.side)) for side in sides], _plain(batch.targets)))
        assert any(isinstance(item, EncodedItem) for item in batch.documents.items) == (kind == "encoded")
    assert runs[0] == runs[1]


def test_a_real_models_processor_gives_the_same_batches_in_workers(clip_folder, tmp_path):
    path = write_pairs(tmp_path, 12, num_negatives=1)
    processor = VisualRetrievalModel.from_pretrained(clip_folder, ModelSettings()).processor
    runs = []
    for num_workers in (0, 2):
        settings = _settings(num_workers=num_workers, augment="light")
        loader = TrainingLoader(load_datasets(path, settings), processor, settings, batch_size=5, seed=0)
        runs.append(_run(loader))
        loader.close()
    assert runs[0] == runs[1]
    batch, _ = runs[0][0]
    pictures = [image for item in batch["documents"]["items"] for image in item["images"]]
    assert [picture["pixel_values"][:2] for picture in pictures] == [("torch.uint8", (3, 32, 32))] * 10
    assert len(batch["queries"]["items"]) == 5
