"""`vembed export --merge` writes what plain transformers opens, from any checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.pictures import write_pairs
from tests.tiny import tiny_bert
from vembed.cli import app
from vembed.entrypoints.encode import EncodeRequest, encode
from vembed.entrypoints.evaluate import evaluate
from vembed.entrypoints.export import ExportRequest, export
from vembed.entrypoints.load_options import LoadOptions
from vembed.errors import UsageError
from vembed.inference import Predictor
from vembed.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory, bert_folder):
    """A finished run of adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    settings = {
        "model_name": bert_folder,
        "data_path": write_pairs(folder / "data", 9, "t2t"),
        "retrieval_mode": "t2t",
        "output_dir": str(folder / "run"),
        **{"use_lora": True, "batch_size": 3, "max_steps": 3, "report": False, "device": "cpu", "val_fraction": 0.0},
    }
    Trainer(settings).train()
    return folder / "run"


def test_a_checkpoint_of_adapters_becomes_plain_weights(run, bert_folder, texts_of, tmp_path):
    merged = tmp_path / "merged"
    result = CliRunner().invoke(app, ["export", str(run / "checkpoint-3"), "--merge", "--output", str(merged)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("a text model of 0.1 MB in ")
    plain, base = (transformers.AutoModel.from_pretrained(folder) for folder in (merged, bert_folder))
    assert type(plain) is type(base)
    tensors = [load_file(folder / "model.safetensors").keys() for folder in (merged, Path(bert_folder))]
    assert tensors[0] == tensors[1]
    names = [{file.name for file in folder.iterdir() if file.is_file()} for folder in (merged, Path(bert_folder))]
    assert names[0] >= names[1]
    vectors = [
        Predictor(folder, "cpu").encode_text(texts_of) for folder in (merged, run / "checkpoint-3", run / "final")
    ]
    assert all(abs(vectors[0] - other).max() < 1e-5 for other in vectors[1:])
    assert abs(vectors[0] - Predictor(bert_folder, "cpu").encode_text(texts_of)).max() > 1e-5
    with pytest.raises(UsageError, match="is there already"):
        export(ExportRequest(model=str(run / "checkpoint-3"), output=merged, merge=True))


def test_a_folder_of_adapters_is_encoded_with_and_measured(run, texts_of, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(texts_of))
    encode(
        EncodeRequest(
            model=str(run / "checkpoint-3"), items=tmp_path / "texts.txt", output=tmp_path / "out.npy", side="query"
        )
    )
    expected = Predictor(run / "final", "cpu").encode_text(texts_of)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
    data = {"test_data_path": write_pairs(tmp_path / "data", 9, "t2t"), "retrieval_mode": "t2t"}
    measured = [evaluate(run / name, data).metrics["model"] for name in ("checkpoint-3", "final")]
    assert measured[0] == measured[1]


def test_a_whole_model_is_written_again_in_another_dtype(run, tmp_path):
    export(
        ExportRequest(
            model=str(run / "final"),
            output=tmp_path / "low",
            merge=True,
            load_options=LoadOptions(torch_dtype="bfloat16"),
        )
    )
    assert {tensor.dtype for tensor in load_file(tmp_path / "low" / "model.safetensors").values()} == {torch.bfloat16}
    assert not (tmp_path / "low" / "training_state.json").exists()


def test_pickled_weights_become_safetensors_where_reading_them_is_allowed(tmp_path):
    folder, new = Path(tiny_bert(tmp_path / "bert", pooling="mean")), tmp_path / "new"
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    words = ["export", str(folder), "--merge", "--output", str(new)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "--merge --allow_pickled_weights" in " ".join(refused.output.split())
    done = CliRunner().invoke(app, [*words, "--allow_pickled_weights"])
    assert done.exit_code == 0, done.output
    written = load_file(new / "model.safetensors")
    assert written.keys() <= weights.keys()  # a pooling layer that is not used is left out
    assert all(torch.equal(written[name], weights[name]) for name in written)


@pytest.fixture
def texts_of():
    return ["a red circle", "two blue squares on a green field"]
