"""`vembed encode` writes what Predictor gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests import tiny
from tests.pictures import write_jsonl, write_picture
from tests.tiny.dual import tiny_own_code
from vembed.cli import app
from vembed.entrypoints.encode import EncodeRequest, encode
from vembed.entrypoints.load_options import LoadOptions
from vembed.errors import ConfigError, DataError, ModelError, UsageError
from vembed.inference import Predictor


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return folder, [write_picture(folder / f"{number}.png", number) for number in range(5)]


def test_a_folder_of_images(tmp_path, clip_folder, pictures):
    folder, paths = pictures
    result = encode(EncodeRequest(model=clip_folder, items=folder, output=tmp_path / "out.npz", batch_size=2))
    assert result.text() == f"5 vectors of 16 numbers in {tmp_path / 'out.npz'}"
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["ids"].tolist() == [f"{number}.png" for number in range(5)]
        np.testing.assert_allclose(arrays["vectors"], Predictor(clip_folder).encode_image(paths), atol=1e-6)


def test_texts_as_queries_at_a_width(tmp_path, clip_folder):
    (tmp_path / "texts.txt").write_text("a red circle\ntwo squares\n")
    encode(
        EncodeRequest(
            model=clip_folder, items=tmp_path / "texts.txt", output=tmp_path / "out.npy", side="query", width=4
        )
    )
    expected = Predictor(clip_folder).encode_text(["a red circle", "two squares"], width=4)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


def test_a_broken_picture_is_named_and_nothing_is_written(tmp_path, clip_folder, pictures):
    rows = [{"image": pictures[1][0]}, {"image": "cut.png"}]
    (tmp_path / "cut.png").write_bytes(b"no picture")
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        encode(EncodeRequest(model=clip_folder, items=tmp_path / "rows.jsonl", output=tmp_path / "out.npz"))
    assert not (tmp_path / "out.npz").exists()


def test_what_is_wrong_with_the_request_is_found_before_any_work(tmp_path, pictures, bert_folder):
    folder, _ = pictures
    with pytest.raises(UsageError, match="ending"):
        encode(EncodeRequest(model="no/model", items=folder, output=tmp_path / "out.txt"))
    with pytest.raises(UsageError, match="side"):
        encode(EncodeRequest(model="no/model", items=folder, output=tmp_path / "out.npz", side="both"))
    write_jsonl(tmp_path / "rows.jsonl", [{"id": 2, "text": "a"}, {"text": "b"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the row has no id, and its number"):
        encode(EncodeRequest(model="no/model", items=tmp_path / "rows.jsonl", output=tmp_path / "out.npz"))
    with pytest.raises(ModelError, match="reads texts only"):
        encode(EncodeRequest(model=bert_folder, items=folder, output=tmp_path / "out.npz"))


def test_a_vector_per_token_is_written_with_counts(tmp_path, pictures):
    folder, paths = pictures
    model = tiny.tiny_colqwen2(tmp_path / "model")
    with pytest.raises(UsageError, match=r"\.npy holds one table of one vector per item"):
        encode(EncodeRequest(model=model, items=folder, output=tmp_path / "out.npy"))
    result = encode(EncodeRequest(model=model, items=folder, output=tmp_path / "out.npz", batch_size=2))
    rows = Predictor(model).encode_image(paths)
    assert result.text() == f"{sum(map(len, rows))} vectors of 16 numbers for 5 items in {tmp_path / 'out.npz'}"
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["counts"].tolist() == [len(row) for row in rows]
        np.testing.assert_allclose(arrays["vectors"], np.concatenate(rows), atol=1e-6)


def test_code_of_a_checkpoint_runs_where_it_is_allowed(tmp_path, pictures):
    folder, paths = pictures
    model = tiny_own_code(tmp_path / "model")
    words = ["encode", model, "--input", str(folder), "--output", str(tmp_path / "out.npy")]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "trust_remote_code" in refused.output
    done = CliRunner().invoke(app, [*words, "--trust_remote_code"])
    assert done.exit_code == 0, done.output
    expected = Predictor(model, trust_remote_code=True).encode_image(paths)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


def test_pickles_are_read_where_that_is_allowed_and_the_dtype_is_chosen(tmp_path):
    folder = Path(tiny.tiny_bert(tmp_path / "bert", pooling="mean"))
    expected = Predictor(folder).encode_text(["a red circle"], side="document")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (tmp_path / "texts.txt").write_text("a red circle\n")
    out = tmp_path / "out.npy"
    words = ["encode", str(folder), "--input", str(tmp_path / "texts.txt"), "--output", str(out)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "allow_pickled_weights" in refused.output
    done = CliRunner().invoke(app, [*words, "--allow_pickled_weights"])
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)
    done = CliRunner().invoke(app, [*words, "--allow_pickled_weights", "--torch_dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    low = np.load(out)
    assert (low * expected).sum() > 0.999
    assert np.abs(low - expected).max() > 1e-5
    wrong = CliRunner().invoke(app, [*words, "--torch_dtype", "int8"])
    assert wrong.exit_code == 2
    assert "--torch_dtype 'int8' is unknown; known are: float32, bfloat16, float16, auto" in wrong.output


def test_plugins_are_imported_first(tmp_path, pictures):
    with pytest.raises(ConfigError, match="no_such_plugin"):
        encode(
            EncodeRequest(
                model="no/model",
                items=pictures[0],
                output=tmp_path / "out.npz",
                load_options=LoadOptions(plugins=["no_such_plugin"]),
            )
        )
