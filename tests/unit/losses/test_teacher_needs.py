"""Which settings ask for a teacher, what rows must bring for it, and which have no effect."""

import pytest

from vembed.config import load_config
from vembed.data.records import RowReader
from vembed.errors import ConfigError, DataError
from vembed.losses.factory import LossFactory
from vembed.losses.settings import LossSettings
from vembed.losses.teacher_needs import evaluation_needs, row_needs
from vembed.types import RowNeeds


def needs(**settings):
    config = load_config(overrides={"preset": "none", **settings})
    return row_needs(config.loss, config.loss_options)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, RowNeeds(scores="unread")),
        ({"use_distillation": True}, RowNeeds(scores="any", num_documents=2, scores_say_relevance=False)),
        ({"loss_type": "distillation"}, RowNeeds(scores="any", num_documents=2, scores_say_relevance=False)),
        (
            {"loss_type": "distillation", "distillation_type": "mse"},
            RowNeeds(scores="any", scores_say_relevance=False),
        ),
        (
            {"use_distillation": True, "distillation_type": "margin_mse"},
            RowNeeds(negatives=True, scores="any", scores_say_relevance=False),
        ),
        ({"loss_type": "margin_mse"}, RowNeeds(negatives=True, scores="any", scores_say_relevance=False)),
        ({"loss_type": "contrastive", "use_distillation": True}, RowNeeds(scores="binary", num_documents=2)),
        ({"use_distillation": True, "teacher_model_name": "x"}, RowNeeds(scores="unread")),
        ({"use_distillation": True, "teacher_embeddings": True}, RowNeeds(scores="unread", embeddings=True)),
        (
            {"teacher_embeddings": True, "false_negative_teacher_margin": 0.1},
            RowNeeds(scores="unread", embeddings=True),
        ),
    ],
)
def test_rows_bring_what_the_teacher_is_made_of(settings, wanted):
    assert needs(**settings) == wanted


@pytest.mark.parametrize(
    ("settings", "say_relevance"),
    [
        ({}, True),
        ({"loss_type": "cosent"}, True),
        ({"loss_type": "cosent", "use_distillation": True}, True),
        ({"use_distillation": True, "teacher_model_name": "x"}, True),
        ({"use_distillation": True}, False),
        ({"loss_type": "margin_mse"}, False),
    ],
)
def test_scores_that_only_a_teacher_can_have_given_do_not_say_what_is_relevant(settings, say_relevance):
    config = load_config(overrides={"preset": "none", **settings})
    assert evaluation_needs(config.loss, config.loss_options) == RowNeeds(scores_say_relevance=say_relevance)


def test_a_row_with_one_document_has_no_distribution_to_learn():
    reader = RowReader("t2t", needs=needs(use_distillation=True))
    row = {"query": "q", "positive": "p", "score": 0.3}
    with pytest.raises(DataError, match=r"x:1: negatives: is missing; the loss compares documents of a row"):
        reader(row, "x:1")
    assert reader({**row, "positive": ["p", "r"], "score": [-3, 1]}, "x:1").scores == (-3, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"distillation_type": "mse"}, "distillation_type: has an effect only with use_distillation: true"),
        ({"distillation_alpha": 0.3}, "distillation_alpha: has an effect only with use_distillation: true"),
        ({"distillation_temperature": 2.0}, "distillation_temperature: has an effect only with use_distillation: true"),
        (
            {"use_distillation": True, "distillation_type": "mse", "distillation_temperature": 2.0},
            "distillation_temperature: has an effect only with distillation_type: kl",
        ),
        ({"teacher_model_name": "x"}, "teacher_model_name: nothing would be learned from the teacher"),
        (
            {"use_distillation": True, "distillation_alpha": 1.0, "label_smoothing": 0.1},
            "label_smoothing: has no effect with distillation_alpha: 1, which leaves out the loss",
        ),
        (
            {"use_distillation": True, "distillation_alpha": 1.0, "loss_type": "triplet", "margin": 0.3},
            "margin: has no effect with distillation_alpha: 1",
        ),
        (
            {"use_distillation": True, "distillation_alpha": 1.0, "distillation_type": "cosine"}
            | {"teacher_model_name": "x", "temperature": 0.1},
            "temperature: has no effect with distillation_alpha: 1",
        ),
        ({"teacher_embeddings": True}, "teacher_embeddings: nothing would be learned from the teacher"),
        (
            {"use_distillation": True, "teacher_embeddings": True, "teacher_model_name": "x"},
            "teacher_embeddings: takes the place of teacher_model_name",
        ),
        ({"use_distillation": True, "teacher_similarity": "dot"}, "teacher_similarity: has an effect only with"),
        ({"use_distillation": True, "teacher_cache_dir": "x"}, "teacher_cache_dir: has an effect only with"),
        ({"use_distillation": True, "distillation_type": "cosine"}, "distillation_type: cosine compares with a"),
        ({"false_negative_teacher_margin": 0.1}, "false_negative_teacher_margin: goes by a teacher's embeddings"),
        (
            {"teacher_model_name": "x", "false_negative_teacher_margin": 0.1, "teacher_temperature": 2.0},
            "teacher_temperature: has an effect only where",
        ),
        ({"use_distillation": True, "distillation_type": "ranking"}, "distillation_type: expected kl, mse, margin_mse"),
        ({"use_distillation": True, "distillation_alpha": 0}, "distillation_alpha: expected float, greater than 0"),
        ({"use_distillation": True, "distillation_alpha": 1.5}, "at most 1"),
        ({"loss_type": "supcon", "false_negative_teacher_margin": 0.1}, "only loss_type: colbert or distillation"),
    ],
)
def test_a_key_without_effect_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        load_config(overrides={"preset": "none", **settings})


def test_a_resolved_config_loads_again(tmp_path):
    for number, settings in enumerate(({}, {"use_distillation": True}, {"loss_type": "distillation"})):
        config = load_config(overrides={"preset": "none", **settings})
        path = tmp_path / f"{number}.yaml"
        config.to_yaml(path)
        assert load_config(path) == config


@pytest.mark.parametrize("source", [{"teacher_model_name": "x"}, {"teacher_embeddings": True}])
def test_an_objective_whose_teacher_was_not_given_is_refused(source):
    settings = LossSettings.model_validate({"use_distillation": True, **source})
    with pytest.raises(ConfigError, match=r"give LossFactory.create the teacher that they ask for"):
        LossFactory.create(settings)


def test_widths_without_the_full_one_are_told(caplog):
    LossFactory.create(LossSettings(use_mrl=True, mrl_dims=(8, 4)), dim=16)
    assert "mrl_dims: [8, 4] leaves out the model's full width 16" in caplog.text
    caplog.clear()
    LossFactory.create(LossSettings(use_mrl=True, mrl_dims=(16, 4)), dim=16)
    LossFactory.create(LossSettings(use_mrl=True, mrl_dims=(8, 4)))
    assert caplog.text == ""
