"""The examples of docs/grad-cache.md and its guide run as they stand, and take steps."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from tests.gradients import assert_gradients_equal
from tests.unit.grad_cache.encoders import gradients_of, graph_gradients, texts
from vembed.grad_cache import GradCache
from vembed.grad_cache.loss import SimpleContrastiveLoss

DOCS = Path(__file__).resolve().parents[3] / "docs"


def examples(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / name).read_text(), flags=re.DOTALL | re.MULTILINE)


def first_token(output: object) -> Tensor:
    return nn.functional.normalize(output.last_hidden_state[:, 0], dim=-1)


@pytest.fixture
def given(bert_folder: str) -> dict[str, object]:
    """What the examples take for granted: encoders, inputs, an optimiser, and what stands in the examples before."""
    encoders = [AutoModel.from_pretrained(bert_folder, add_pooling_layer=False).train() for _ in range(2)]
    learning = nn.ModuleList(encoders)
    return {
        "torch": torch,
        "query_encoder": encoders[0],
        "document_encoder": encoders[1],
        "model": encoders[0],
        "queries": texts(bert_folder, 6),
        "documents": texts(bert_folder, 6, first=5),
        "first_token": first_token,
        "optimizer": torch.optim.SGD(learning.parameters(), lr=0.1),
        "device": "cpu",
        "GradCache": GradCache,
        "SimpleContrastiveLoss": SimpleContrastiveLoss,
    }


def test_every_example_takes_a_step(given, capsys):
    codes = examples("grad-cache.md")
    assert len(codes) == 5
    for code in codes:
        before = [parameter.detach().clone() for parameter in given["query_encoder"].parameters()]
        exec(code, given)
        assert any(not torch.equal(*pair) for pair in zip(before, given["query_encoder"].parameters(), strict=True)), (
            code
        )
    assert re.fullmatch(r"\d+\.\d+ \d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_the_guides_example_has_the_plain_gradient(given):
    (code,) = examples("COEXISTENCE_FIX_GUIDE.md")
    model = given["model"].eval()
    reps = [first_token(model(**given[side])) for side in ("queries", "documents")]
    expected = graph_gradients(SimpleContrastiveLoss(scale=20.0)(*reps), model)
    exec(code, given)
    assert_gradients_equal(gradients_of(model), expected)


def test_the_tests_that_the_guide_names_exist():
    guide = (DOCS / "COEXISTENCE_FIX_GUIDE.md").read_text()
    assert "tests/unit/grad_cache/test_gradient_checkpointing.py" in guide
    assert "test_ranks.py" in guide
    assert Path(__file__).with_name("test_gradient_checkpointing.py").is_file()
    assert Path(__file__).with_name("test_ranks.py").is_file()
