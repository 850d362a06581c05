"""Text models of every kind are tuned, resumed and served as one model: layers, prompts and last tokens included."""

import json
import shutil

import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.cases import CASES
from tests.runs import read_bytes
from vembed import Predictor
from vembed.trainer import Trainer

TEXTS = ["a red circle", "the square that is blue", "two green triangles on a field"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A name and its description, as a query and a document."""
    pairs = [
        {"query": f"a {colour} {shape}", "positive": f"the {shape} that is {colour}"}
        for colour in ("red", "blue", "green", "yellow")
        for shape in ("circle", "square", "triangle")
    ]
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sentence", "bge", "qwen3_embedding", "embeddinggemma", "t5"])
def test_a_tuned_text_model_resumes_and_serves_what_it_learned(name, rows, tmp_path):
    case = CASES[name]
    settings = {
        "model_name": case.make(str(tmp_path / "base")),
        "data_path": rows,
        "retrieval_mode": "t2t",
        "val_fraction": 0.0,
        "batch_size": 4,
        "gradient_cache_chunk_size": 3,
        "epochs": 9,
        "max_steps": 6,
        "save_steps": 3,
        "learning_rate": 1e-2,
        "use_lora": True,
        "report": False,
        "device": "cpu",
    }
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    trainer = Trainer({**settings, "output_dir": str(straight)})
    trainer.train()
    shutil.copytree(straight, resumed)
    for folder in ("checkpoint-6", "final"):
        shutil.rmtree(resumed / folder)
    Trainer({**settings, "output_dir": str(resumed), "resume_from_checkpoint": "latest"}).train()
    assert read_bytes(straight / "final") == read_bytes(resumed / "final")

    served, base = Predictor(straight / "final", "cpu"), Predictor(settings["model_name"], "cpu")
    vectors = torch.as_tensor(served.encode_text(TEXTS))
    assert served.spec == base.spec
    assert (vectors - torch.as_tensor(base.encode_text(TEXTS))).norm(dim=1).min() > 1e-3, "nothing was learned"
    opened = SentenceTransformer(str(straight / "final"), device="cpu")
    assert torch.allclose(opened.encode_query(TEXTS, convert_to_tensor=True), vectors, atol=1e-5)
    weights = {
        path.relative_to(straight / "final").parent.name for path in (straight / "final").rglob("model.safetensors")
    }
    assert weights == {"", *(layer.path for layer in base.spec.layers if layer.kind in ("dense", "layer_norm"))}
