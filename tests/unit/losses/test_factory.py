"""A loss is found by name, built with its own options, and refused with the nearest name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.targets import make_targets
from vembed.errors import ConfigError
from vembed.losses.factory import LossFactory
from vembed.losses.objective import ScoreView
from vembed.losses.registry import Loss, LossRegistry
from vembed.losses.settings import InfoNCESettings, LossSettings
from vembed.scoring import cosine, dot
from vembed.types import Embeddings, Targets
from vembed.utils.settings import Section


class TrivialSettings(Section):
    """Options of a user's loss."""

    weight: float = 2.0


def trivial(view: ScoreView, targets: Targets, settings: TrivialSettings) -> torch.Tensor:
    return settings.weight * view.dense().sum()


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown loss_type 'infonec'; did you mean 'infonce'"):
        LossFactory.create(LossSettings(loss_type="infonec"))


def test_options_of_another_loss_are_refused():
    with pytest.raises(ConfigError, match="loss_type 'infonce' takes InfoNCESettings as its options"):
        LossFactory.create(LossSettings(), TrivialSettings())


def test_the_registry_knows_a_losss_settings_without_torch():
    code = (
        "import sys; from vembed.losses.registry import LossRegistry;"
        "assert LossRegistry.get('infonce').settings.__name__ == 'InfoNCESettings';"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert LossRegistry.get("infonce").settings is InfoNCESettings


@pytest.mark.parametrize("function", [trivial, f"{__name__}:trivial"])
def test_a_users_loss_is_built_with_its_options_and_scorer(function, monkeypatch):
    monkeypatch.setattr(LossRegistry, "_components", dict(LossRegistry._components))
    LossRegistry.register("trivial", Loss(TrivialSettings, function))
    sides = Embeddings(torch.ones(1, 4)), Embeddings(torch.ones(1, 4))
    arguments = {"targets": make_targets([[0]], 1), "logit_scale": torch.zeros(1)}
    values = {
        "defaults": LossFactory.create(LossSettings(loss_type="trivial")),
        "options": LossFactory.create(LossSettings(loss_type="trivial"), TrivialSettings(weight=3)),
        "dot": LossFactory.create(LossSettings(loss_type="trivial"), scorer=dot),
    }
    assert {name: value(*sides, **arguments).item() for name, value in values.items()} == pytest.approx(
        {"defaults": 2, "options": 3, "dot": 8}
    )
    assert values["defaults"].scorer is cosine


def test_the_loss_in_the_docs_works_as_it_is_written(monkeypatch):
    monkeypatch.setattr(LossRegistry, "_components", dict(LossRegistry._components))
    text = (Path(__file__).resolve().parents[3] / "docs" / "losses.md").read_text()
    of_scores, of_embeddings = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for code in (of_scores, of_embeddings):
        exec(code, {"__name__": "my_losses"})
    objective = LossFactory.create(LossSettings(loss_type="hinge"))
    queries, documents = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.6, -0.8]])
    value = objective(
        Embeddings(queries), Embeddings(documents), make_targets([[0], [1]], 2), logit_scale=torch.zeros(1)
    )
    assert value.item() == pytest.approx((0 + 1.0) / 2 + (0.6 + 0) / 2)
    near = LossFactory.create(LossSettings(loss_type="align"), scorer=dot)
    targets = make_targets([[0, 1], []], 2)
    value = near(Embeddings(queries), Embeddings(documents), targets, logit_scale=torch.zeros(1))
    assert value.item() == pytest.approx((0 + 0.4**2 + 0.8**2) / 2)


def test_every_loss_has_a_row_a_section_and_a_paper_in_the_docs():
    text = (Path(__file__).resolve().parents[3] / "docs" / "losses.md").read_text()
    for name in LossRegistry.list():
        assert re.search(rf"^\| .* \| .*`{name}`.* \|", text, flags=re.MULTILINE), name
        section = _section(text, name)
        assert re.search(r"arXiv \d{4}\.\d{5}|doi 10\.", section), name


def test_every_option_of_a_loss_stands_in_its_section_of_the_docs_with_its_default():
    text = (Path(__file__).resolve().parents[3] / "docs" / "losses.md").read_text()
    seen = 0
    for name in LossRegistry.list():
        settings = LossRegistry.get(name).settings
        section = "".join(_section(text, one) for one in {name, "infonce"} if one == name or _is_infonce(settings))
        section = " ".join(section.split())
        for key, field in settings.model_fields.items():
            default = re.escape(json.dumps(field.default).strip('"').removesuffix(".0").replace("null", "none"))
            assert re.search(rf"`{key}` (\({default}\)|\| `?{default}`? \|)", section), (name, key, default)
            seen += 1
    assert seen > 60
    assert [key for key in LossSettings.model_fields if f"`{key}`" not in text and f"`{key}: " not in text] == []


def _is_infonce(settings):
    return issubclass(settings, InfoNCESettings)


def _section(text, name):
    (title,) = (line for line in text.splitlines() if line.startswith("## ") and f"`{name}`" in line)
    return text.split(title)[1].split("\n## ")[0]
