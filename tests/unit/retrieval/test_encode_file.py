"""A file of items becomes a file of vectors a block at a time, and what cannot be read costs no more than itself."""

import json
import os
import shutil
import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests import tiny
from tests.pictures import write_jsonl, write_picture
from tests.unit.retrieval.test_vectors_file import read_npy, read_npz, read_parquet, read_safetensors, rows_of_npz
from vembed.cli import app
from vembed.entrypoints.encode import EncodeRequest, encode
from vembed.errors import DataError, UsageError, VembedError
from vembed.inference import Predictor
from vembed.model.encoding import EncodeOptions
from vembed.model.modeling import VisualRetrievalModel
from vembed.retrieval.encode_file import FileEncoder, LeftOut
from vembed.retrieval.items_file import ItemsFile, NamedItem
from vembed.retrieval.vectors_file import NamedVectors, open_vectors
from vembed.types import Item


@pytest.fixture
def folder(tmp_path):
    """Five good pictures, one cut off, PostScript, a pipe, an empty file, and a folder with a picture's ending."""
    root = tmp_path / "photos"
    for number in range(5):
        write_picture(root / "in" / f"{number}.png", number)
    (root / "cut.png").write_bytes((root / "in" / "0.png").read_bytes()[:300])
    (root / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n")
    os.mkfifo(root / "pipe.png")
    (root / "empty.png").write_bytes(b"")
    (root / "folder.png").mkdir()
    return root


BROKEN = ["cut.png", "empty.png", "pipe.png", "script.png"]


def _listed(output):
    lines = output.with_suffix(".bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("read", [read_npy, read_npz, read_parquet, read_safetensors])
def test_the_others_are_written_and_what_is_left_out_is_listed(folder, tmp_path, clip_folder, read):
    output = tmp_path / f"out.{read.__name__.removeprefix('read_')}"
    result = encode(EncodeRequest(model=clip_folder, items=folder, output=output, batch_size=2, on_bad_sample="skip"))
    ids, vectors = read(output)
    assert ids == [f"in/{number}.png" for number in range(5)]
    expected = Predictor(clip_folder).encode_image([folder / name for name in ids])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert [os.path.basename(line["origin"]) for line in _listed(output)] == BROKEN  # noqa: PTH119 (of a text)
    assert all(line["origin"] in line["reason"] for line in _listed(output))
    assert result.text().splitlines() == [
        f"5 vectors of 16 numbers in {output}",
        f"4 items that cannot be used left out and listed in {output.with_suffix('.bad_samples.jsonl')}",
    ]
    encode(EncodeRequest(model=clip_folder, items=folder / "in", output=output, on_bad_sample="skip"))
    assert not output.with_suffix(".bad_samples.jsonl").exists()


def test_by_default_the_first_one_stops_before_any_work_and_nothing_is_written(folder, tmp_path, clip_folder):
    (folder / "cut.png").unlink()
    (folder / "empty.png").unlink()
    with pytest.raises(DataError, match=r"pipe\.png: .*not a regular file"):
        encode(EncodeRequest(model="no/model", items=folder, output=tmp_path / "out.npz"))
    (folder / "pipe.png").unlink()
    with pytest.raises(DataError, match=r"script\.png: not an image.*--on_bad_sample skip leaves such items out"):
        encode(EncodeRequest(model=clip_folder, items=folder, output=tmp_path / "out.npz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_too_many_stop_the_work(folder, tmp_path, clip_folder):
    request = EncodeRequest(
        model=clip_folder, items=folder, output=tmp_path / "out.npz", on_bad_sample="skip", max_bad_fraction=0.3
    )
    with pytest.raises(DataError, match=r"3 of 9 items cannot be used, over max_bad_fraction = 0\.3; the last: .*pipe"):
        encode(request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    encode(replace(request, max_bad_fraction=0.5))
    for path in [*folder.glob("*.png"), *folder.glob("in/*")]:
        if path.name not in ("empty.png", "folder.png"):
            path.unlink()
    with pytest.raises(DataError, match=r"none of the 1 items can be used; the last: .*empty\.png"):
        encode(replace(request, max_bad_fraction=1.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"on_bad_sample": "ignore"}, "known are: raise, skip"),
        ({"max_bad_fraction": 0.5}, "only with on_bad_sample skip"),
        ({"on_bad_sample": "skip", "max_bad_fraction": 1.5}, "from 0 to 1"),
    ],
)
def test_wrong_values_are_refused(folder, tmp_path, values, message):
    with pytest.raises(UsageError, match=message):
        encode(EncodeRequest(model="no/model", items=folder, output=tmp_path / "out.npz", **values))


@pytest.mark.parametrize("make", [tiny.tiny_qwen2_vl, tiny.tiny_colqwen2])
def test_a_picture_that_the_model_cannot_read_is_named_and_left_out(folder, tmp_path, make):
    model = make(tmp_path / "model")
    for name in BROKEN:
        (folder / name).unlink()
    PIL.Image.new("RGB", (2300, 10)).save(folder / "wide.png")
    output = tmp_path / "out.npz"
    with pytest.raises(DataError, match=r"wide\.png: an image cannot be read by this model: absolute aspect ratio"):
        encode(EncodeRequest(model=model, items=folder, output=output))
    encode(EncodeRequest(model=model, items=folder, output=output, on_bad_sample="skip", batch_size=2))
    ids, rows = rows_of_npz(output) if "counts" in np.load(output) else read_npz(output)
    expected = Predictor(model).encode_image([folder / name for name in ids])
    assert len(ids) == 5
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row, other, atol=1e-5)
    assert [line["origin"] for line in _listed(output)] == [str(folder / "wide.png")]


def test_rows_of_a_table_texts_and_ids_that_cannot_be_used_are_left_out(tmp_path, clip_folder):
    write_picture(tmp_path / "a.png", 1)
    rows = [
        {"id": "a", "text": "a red circle"},
        {"id": "b", "image": "gone.png"},
        "{broken",
        {"id": "c", "text": 7},
        {"id": "d", "image": "a.png"},
        {"id": "e", "text": "half a \ud800 character"},
        {"id": "\ud800", "text": "fine"},
        {"id": "f", "image": [["a.png"]]},
        {"id": "g", "image": {"bytes": 10**12}},
        {"id": "h", "image": "x" * 5000},
        {"id": "i", "text": "a red circle", "image": ["a.png", "gone.png"]},
        {"id": "j", "text": "a red circle"},
    ]
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    output = tmp_path / "out.npz"
    request = EncodeRequest(
        model=clip_folder, items=tmp_path / "rows.jsonl", output=output, on_bad_sample="skip", batch_size=1
    )
    write_jsonl(tmp_path / "rows.jsonl", lines)
    encode(request)
    ids, vectors = read_npz(output)
    assert ids == ["a", "d", "j"]
    np.testing.assert_array_equal(vectors[0], vectors[2])
    expected = Predictor(clip_folder).encode([{"text": "a red circle"}, tmp_path / "a.png"])
    np.testing.assert_allclose(vectors[:2], expected, atol=1e-6)
    numbers = [int(line["origin"].rpartition(":")[2]) for line in _listed(output)]
    assert sorted(numbers) == [2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert all(f"rows.jsonl:{number}" in line["reason"] for number, line in zip(numbers, _listed(output), strict=True))


def test_empty_lines_of_a_text_file_are_left_out(tmp_path, clip_folder):
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n  \n")
    output = tmp_path / "out.npy"
    encode(EncodeRequest(model=clip_folder, items=tmp_path / "texts.txt", output=output, on_bad_sample="skip"))
    assert read_npy(output)[0] == ["1", "3"]
    assert [line["origin"].rpartition(":")[2] for line in _listed(output)] == ["2", "4"]


def test_the_command_says_how_many_are_left_out(folder, tmp_path, clip_folder):
    words = ["encode", clip_folder, "--input", str(folder), "--output", str(tmp_path / "out.npz")]
    refused = CliRunner().invoke(app, words)
    assert (refused.exit_code, "Traceback" in refused.output) == (2, False)
    done = CliRunner().invoke(app, [*words, "--on_bad_sample", "skip"])
    assert done.exit_code == 0, done.output
    assert "4 items that cannot be used left out and listed in" in done.output.replace("\n", " ")
    wrong = CliRunner().invoke(app, [*words, "--on_bad_sample", "ignore"])
    assert "known are: raise, skip" in wrong.output


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "pipe.txt", "gone.txt", "folder.npz"])
def test_inputs_and_outputs_that_are_no_files_are_one_line(name, tmp_path, clip_folder):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.npz").mkdir()
    write_picture(tmp_path / "in" / "a.png", 1)
    with pytest.raises(VembedError):
        encode(EncodeRequest(model=clip_folder, items=tmp_path / name, output=tmp_path / "out.npz"))
    output = tmp_path / name if "." in name else tmp_path / f"{name}.npz"
    with pytest.raises(VembedError):
        encode(EncodeRequest(model=clip_folder, items=tmp_path / "in", output=output))
    assert not list(tmp_path.glob(".*"))


def test_links_in_a_circle_are_not_followed_and_said(folder, tmp_path, clip_folder, caplog):
    (folder / "in" / "again").symlink_to(folder)
    encode(EncodeRequest(model=clip_folder, items=folder / "in", output=tmp_path / "out.npz"))
    assert "1 links to folders in it are not followed" in caplog.text
    assert len(read_npz(tmp_path / "out.npz")[0]) == 5


def test_vectors_are_not_held(tmp_path):
    """64 MB of them, in blocks of 1 MB, by what Python and numpy hold at most while they are written."""
    block = np.ones((1024, 256), np.float32)
    for ending in ("npy", "npz", "safetensors", "parquet"):
        tracemalloc.start()
        with open_vectors(tmp_path / f"out.{ending}") as writer:
            for number in range(64):
                writer.add(NamedVectors([f"{number}/{row}" for row in range(1024)], block * number))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 40 << 20, ending  # of the ids, and of what is copied at once
        assert (tmp_path / f"out.{ending}").stat().st_size > 64 << 20 or ending == "parquet"
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.num_rows == 64 * 1024
    assert np.load(tmp_path / "out.npy")[-1, 0] == 63


def test_items_are_not_held(tmp_path, clip_folder):
    """Of a thousand items no more are alive at once than those of a block."""
    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    most = 0

    def read(number):
        nonlocal most
        item = _Tracked(text=f"text {number % 400}")
        alive.add(item)
        most = max(most, len(alive))
        return NamedItem(str(number), item)

    items = ItemsFile(tmp_path, 1000, str, read)
    seen = []
    with open_vectors(tmp_path / "out.npz") as writer:
        left_out = LeftOut("raise", 1.0, 1000)
        model = VisualRetrievalModel.from_pretrained(clip_folder)
        encoder = FileEncoder(model, EncodeOptions("document", batch_size=4), writer, left_out)
        encoder.encode(items, lambda *counts: seen.append(counts))
    assert most <= 2 * 8 * 4
    assert seen[:2] + seen[-1:] == [(32, 1000), (64, 1000), (1000, 1000)]
    ids, vectors = read_npz(tmp_path / "out.npz")
    assert len(ids) == 1000
    np.testing.assert_array_equal(vectors[3], vectors[403])  # embedded once, and read back


class _Tracked(Item):
    """An item of which there can be weak references."""


def test_a_failure_leaves_the_file_of_before(tmp_path):
    path = tmp_path / "out.npz"
    with open_vectors(path) as writer:
        writer.add(NamedVectors(["a"], np.ones((1, 3), np.float32)))
    wrong = NamedVectors(["b", "c"], np.zeros((1, 3), np.float32))
    with pytest.raises(AssertionError), open_vectors(path) as writer:
        writer.add(wrong)
    assert read_npz(path)[0] == ["a"]
    assert [one.name for one in tmp_path.iterdir()] == ["out.npz"]


def test_a_predictor_names_what_it_cannot_read_by_its_number(clip_folder, tmp_path):
    write_picture(tmp_path / "a.png", 1)
    good = tmp_path / "a.png"
    predictor = Predictor(clip_folder)
    for call, wrong in [
        (predictor.encode_image, [good, b"no image"]),
        (predictor.encode_image, [good, tmp_path / "gone.png"]),
        (predictor.encode_image, [good, [good]]),
        (predictor.encode_image, [good, "x" * 5000]),
        (predictor.encode_image, [good, np.zeros((4, 4, 3))]),
        (predictor.encode, [good, {"image": [good, [good]]}]),
        (predictor.encode, [good, {"image": {"image": good}}]),
        (predictor.encode, ["a text", "half a \ud800 character"]),
        (predictor.encode_text, ["a text", 7]),
    ]:
        with pytest.raises(DataError, match=r"^item 1: "):
            call(wrong)
    assert predictor.encode_image(os.fsencode(good).decode()).shape == (16,)


@pytest.mark.parametrize(
    ("items", "output"),
    [
        ("in.parquet", "in.parquet"),
        ("in.parquet", "soft.parquet"),
        ("in.parquet", "hard.parquet"),
        ("soft.parquet", "in.parquet"),
        ("i?.parquet", "in.parquet"),
        ("out.ids.jsonl", "out.npy"),
        ("out.bad_samples.jsonl", "out.npz"),
        ("soft.jsonl", "out.npz"),
    ],
)
def test_an_output_that_is_the_input_is_refused_and_left_alone(tmp_path, items, output):
    pq.write_table(pa.table({"text": ["red", "blue"]}), tmp_path / "in.parquet")
    for name in ("out.ids.jsonl", "out.bad_samples.jsonl"):
        write_jsonl(tmp_path / name, [{"text": "red"}])
    (tmp_path / "soft.parquet").symlink_to("in.parquet")
    (tmp_path / "soft.jsonl").symlink_to("out.bad_samples.jsonl")
    os.link(tmp_path / "in.parquet", tmp_path / "hard.parquet")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    request = EncodeRequest(model="no/model", items=tmp_path / items, output=tmp_path / output, on_bad_sample="skip")
    with pytest.raises(UsageError, match="would be written over, and is the input; name another file"):
        encode(request)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_of_the_model_are_no_output(tmp_path, bert_folder):
    model = shutil.copytree(bert_folder, tmp_path / "model")
    (tmp_path / "items.txt").write_text("red\n")
    (tmp_path / "link").symlink_to(model)
    before = (model / "model.safetensors").read_bytes()
    for name in ("model", "link"):
        output = tmp_path / name / "model.safetensors"
        with pytest.raises(UsageError, match="is there already, in the model's own folder"):
            encode(EncodeRequest(model=str(model), items=tmp_path / "items.txt", output=output))
    assert (model / "model.safetensors").read_bytes() == before
    assert (
        encode(EncodeRequest(model=str(model), items=tmp_path / "items.txt", output=model / "red.npz")).num_items == 1
    )


def test_another_file_may_be_written_again(tmp_path, bert_folder):
    (tmp_path / "items.txt").write_text("red\n")
    for _ in range(2):
        encode(EncodeRequest(model=bert_folder, items=tmp_path / "items.txt", output=tmp_path / "out.npy"))
    assert (tmp_path / "items.txt").read_text() == "red\n"


def test_texts_that_are_cut_are_counted_and_vectors_that_are_all_alike_are_told(tmp_path, bert_folder, caplog):
    def warnings(name, lines):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
        caplog.clear()
        encode(EncodeRequest(model=bert_folder, items=tmp_path / f"{name}.txt", output=tmp_path / f"{name}.npz"))
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    long = "a red circle " * 1000
    cut, alike = warnings("cut", [long + "one", long + "two"])
    assert "cut.txt: 2 texts are longer than the model reads, and cut at the end" in cut
    assert "cut.txt: all of its 2 distinct items have one and the same vector" in alike
    (one,) = warnings("some", [long + "one", "a blue square", "a red circle"])
    assert "some.txt: 1 text is longer than the model reads" in one
    assert warnings("good", ["a red circle", "a blue square"]) == []
    assert warnings("same", ["a red circle", "a red circle"]) == []
