"""A student learns from a teacher of another family: through its cache on disk, from the data, and after a stop."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.pictures import write_jsonl, write_pairs, write_picture
from tests.runs import read_bytes, read_lines
from tests.tiny.saving import with_unreadable_token
from vembed.config import load_config
from vembed.data.batches.blocks import BlockLoader
from vembed.data.collators.default import Collator
from vembed.data.dataset import load_datasets
from vembed.entrypoints.evaluate import evaluate
from vembed.errors import ConfigError, DataError, ModelError
from vembed.inference import Predictor
from vembed.losses.objective import scale_of
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.retrieval.vector_store import VectorStore
from vembed.trainer import Trainer
from vembed.training.distillation import teacher_model
from vembed.training.distillation.teacher import teacher_items
from vembed.training.distillation.teacher_model import TeacherModel, TeacherOptions
from vembed.types import Item

WORDS = "red blue green small large round square bright dark picture sign shape".split()
ROWS = [
    {"query": f"{word} {WORDS[n - 1]}", "positive": f"a {word} {WORDS[n - 2]}", "negatives": [f"{WORDS[n - 3]} {word}"]}
    for n, word in enumerate(WORDS)
]
NUM_ITEMS = 3 * len(ROWS)


@pytest.fixture(scope="module")
def colbert_folder(tmp_path_factory, bert_folder):
    """A late-interaction teacher with prompts of its own, so that sides differ."""
    folder = tmp_path_factory.mktemp("colbert")
    settings = ModelSettings(encoder_mode="colbert", projection_dim=16, query_prompt="find ", num_query_tokens=6)
    VisualRetrievalModel.from_pretrained(bert_folder, settings, seed=3).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def settings(tmp_path, bert_folder, colbert_folder):
    return {
        "model_name": bert_folder,
        "teacher_model_name": colbert_folder,
        "teacher_cache_dir": str(tmp_path / "cache"),
        "use_distillation": True,
        "data_path": write_jsonl(tmp_path / "train.jsonl", ROWS),
        "retrieval_mode": "t2t",
        "output_dir": str(tmp_path / "run"),
        "val_fraction": 0,
        "batch_size": 4,
        "gradient_cache_chunk_size": 3,
        "learning_rate": 1e-3,
        "epochs": 2,
        "logging_steps": 1,
        "report": False,
        "device": "cpu",
    }


@pytest.fixture
def embedded(monkeypatch):
    """How many items each call of the teacher embedded."""
    counts = []
    real = TeacherModel._embed

    def counted(self, model, block, side):
        counts.append(real(self, model, block, side))
        return counts[-1]

    monkeypatch.setattr(TeacherModel, "_embed", counted)
    return counts


def losses_of(run):
    return [line["loss"] for line in read_lines(run / "metrics.jsonl")]


def weights_of(result):
    return VisualRetrievalModel.from_pretrained(str(result.final)).model.state_dict()


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_second_run_embeds_nothing_and_is_the_same_run(tmp_path, settings, embedded, monkeypatch):
    first = Trainer(settings).train()
    assert sum(embedded) == NUM_ITEMS
    embedded.clear()
    monkeypatch.setattr(TeacherModel, "_open", lambda _self: pytest.fail("the teacher was opened"))
    second = Trainer(settings).train(output_dir=str(tmp_path / "second"))
    assert embedded == []
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "second")
    assert same_weights(weights_of(first), weights_of(second))
    without = Trainer(settings).train(
        output_dir=str(tmp_path / "alone"), use_distillation=False, teacher_model_name=None, teacher_cache_dir=None
    )
    assert not same_weights(weights_of(first), weights_of(without))
    record = json.loads((first.final / "vembed_config.json").read_text())
    assert record["teacher"]["model"] == settings["teacher_model_name"]


def test_the_student_comes_to_rank_as_its_teacher_does(tmp_path, settings, colbert_folder, bert_folder):
    result = Trainer(settings).train(
        **{"distillation_alpha": 1, "teacher_temperature": 0.5, "epochs": 80, "learning_rate": 5e-3, "save_steps": 100},
        **{"batch_size": 12, "gradient_cache_chunk_size": 24},
    )
    agreements = [agreement(folder, colbert_folder) for folder in (bert_folder, str(result.final))]
    assert agreements[1] > max(0.65, agreements[0] + 0.1)


def agreement(student, teacher):
    """The correlation of their scores of all documents, each query's around its mean."""
    scores = []
    for folder in (student, teacher):
        predictor = Predictor(folder)
        sides = [
            predictor.encode_text([row[side] for row in ROWS], side=side_name, output="torch")
            for side, side_name in (("query", "query"), ("positive", "document"))
        ]
        table = torch.as_tensor(predictor.score(*sides))
        scores.append((table - table.mean(dim=1, keepdim=True)).flatten())
    return torch.corrcoef(torch.stack(scores))[0, 1].item()


def test_a_batch_finds_what_the_teacher_makes_of_its_items(tmp_path, settings, colbert_folder):
    config = load_config(overrides=settings)
    datasets = load_datasets(config.data.data_path, config.data)
    options = TeacherOptions(ModelSettings(), torch.device("cpu"), 4, 10**8)
    teacher = TeacherModel(colbert_folder, tmp_path / "cache", options)
    assert teacher.fill(teacher_items(datasets, config.data)) == NUM_ITEMS
    model = VisualRetrievalModel.from_pretrained(settings["model_name"])
    loader = BlockLoader(datasets, model.processor, seed=0)
    batch = Collator()([loader.load_example(datasets[0][row], epoch=0) for row in (5, 0, 7)])
    sides = TeacherModel(colbert_folder, tmp_path / "cache", options).embeddings(batch)
    own = VisualRetrievalModel.from_pretrained(colbert_folder)
    for side, found, rows in (("query", sides.queries, batch.queries), ("document", sides.documents, batch.documents)):
        wanted = own.encode([Item(text=item.text) for item in rows.items], side=side)
        for number in range(len(wanted.vectors)):
            mine, theirs = (part.vectors[number][part.mask[number]] for part in (found, wanted))
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert teacher.teacher.temperature == pytest.approx(1 / scale_of(own.model.logit_scale).item())


def test_what_an_interruption_left_is_not_embedded_again(tmp_path, settings, embedded, monkeypatch):
    monkeypatch.setattr(teacher_model, "_BLOCK_SIZES", {"maxsim": 5, "single": 5})
    real, written = VectorStore.append, []

    def stopped(self, keys, embeddings):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.extend([1])
        real(self, keys, embeddings)

    with monkeypatch.context() as patch:
        patch.setattr(VectorStore, "append", stopped)
        with pytest.raises(KeyboardInterrupt):
            Trainer(settings).train()
    assert not (tmp_path / "run").exists()
    assert sum(embedded) == 15
    embedded.clear()
    Trainer(settings).train()
    assert sum(embedded) == NUM_ITEMS - 15


def test_another_teacher_under_the_same_name_is_another(tmp_path, settings, embedded, bert_folder):
    folder = tmp_path / "teacher"
    VisualRetrievalModel.from_pretrained(bert_folder).save_pretrained(folder)
    changed = {**settings, "teacher_model_name": str(folder)}
    Trainer(changed).train(max_steps=2, save_steps=2)
    assert sum(embedded) == NUM_ITEMS
    for change in ("weights", "prompt"):
        embedded.clear()
        model = VisualRetrievalModel.from_pretrained(str(folder))
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.mul_(1.01)
        if change == "prompt":
            model = VisualRetrievalModel.from_pretrained(str(folder), ModelSettings(query_prompt="find: "))
        model.save_pretrained(folder)
        with pytest.raises(
            ConfigError, match=r"weights of teacher_model_name: the checkpoint was trained with 'sha256"
        ):
            Trainer(changed).train(resume_from_checkpoint="latest")
        assert sum(embedded) == NUM_ITEMS
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_teacher_in_half_precision_is_kept_apart(tmp_path, settings, embedded):
    Trainer(settings).train(max_steps=2)
    Trainer(settings).train(max_steps=2, teacher_dtype="bfloat16", output_dir=str(tmp_path / "half"))
    assert sum(embedded) == 2 * NUM_ITEMS
    whole, half = losses_of(tmp_path / "run"), losses_of(tmp_path / "half")
    assert half == pytest.approx(whole, rel=0.1)
    assert half != whole


def test_a_run_that_is_continued_is_the_run_that_went_through(tmp_path, settings):
    run, stopped, moved = (tmp_path / name for name in ("run", "stopped", "moved"))
    settings |= {"max_steps": 4, "save_steps": 2, "false_negative_teacher_margin": 0.2}
    straight = Trainer(settings).train()
    shutil.copytree(run, stopped)
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(stopped / name)
    (tmp_path / "cache").rename(moved)
    resumed = Trainer(settings).train(
        output_dir=str(stopped), resume_from_checkpoint="latest", teacher_cache_dir=str(moved)
    )
    assert len(losses_of(run)) == 4
    assert losses_of(stopped) == losses_of(run)
    assert same_weights(weights_of(straight), weights_of(resumed))
    states = [load_file(folder / "checkpoint-4" / "training_state.safetensors") for folder in (run, stopped)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    "kind",
    ["kl", pytest.param("mse", marks=pytest.mark.slow), pytest.param("margin_mse", marks=pytest.mark.slow), "cosine"],
)
def test_embeddings_in_the_data_teach_as_the_model_does_that_made_them(kind, tmp_path, settings, bert_folder):
    folder = tmp_path / "teacher"
    model = VisualRetrievalModel.from_pretrained(bert_folder, ModelSettings(document_prompt="a: "))
    with torch.no_grad():
        for parameter in model.model.towers()["text"].parameters():
            parameter.mul_(1.1)
    model.save_pretrained(folder)

    def embed(texts, side):
        return model.get_text_features(texts, side=side).tolist()

    rows = [
        {
            **row,
            "query_embedding": embed([row["query"]], "query")[0],
            "positive_embeddings": embed([row["positive"]], "document"),
            "negative_embeddings": embed(row["negatives"], "document"),
        }
        for row in ROWS
    ]
    common = {**settings, "distillation_type": kind, "max_steps": 3}
    Trainer(common).train(teacher_model_name=str(folder))
    Trainer(common).train(
        teacher_model_name=None,
        teacher_cache_dir=None,
        teacher_embeddings=True,
        data_path=write_jsonl(tmp_path / "with.jsonl", rows),
        output_dir=str(tmp_path / "data"),
    )
    assert losses_of(tmp_path / "data") == pytest.approx(losses_of(tmp_path / "run"), rel=1e-3)


def test_scores_in_the_data_teach(tmp_path, settings):
    rows = [{**row, "score": [number % 5 - 2, -3.5]} for number, row in enumerate(ROWS)]
    data = write_jsonl(tmp_path / "scored.jsonl", rows)
    for kind in ("kl", "mse", "margin_mse"):
        result = Trainer(settings).train(
            teacher_model_name=None,
            teacher_cache_dir=None,
            loss_type="distillation",
            distillation_type=kind,
            data_path=data,
            output_dir=str(tmp_path / kind),
            max_steps=2,
        )
        assert all(math.isfinite(loss) and loss > 0 for loss in losses_of(tmp_path / kind))
        assert result.num_steps == 2


@pytest.mark.parametrize("held_out", ["a share of the training rows", "rows of their own"])
def test_positives_that_the_teacher_scores_below_0_are_measured_as_relevant(tmp_path, settings, held_out):
    """In training, in the report, and when the run is measured again."""
    data = write_jsonl(tmp_path / "logits.jsonl", [{**row, "score": [-1.5, -3.5]} for row in ROWS])
    own = settings | {"data_path": data, "loss_type": "distillation", "max_steps": 1, "eval_steps": 1, "report": True}
    own |= {"val_fraction": 0.5} if held_out.startswith("a share") else {"val_data_path": data}
    for key in ("teacher_model_name", "teacher_cache_dir", "use_distillation"):
        del own[key]
    if "val_data_path" in own:
        del own["val_fraction"]
    result = Trainer(own).train()
    assert result.best is not None
    assert result.report is not None
    again = evaluate(result.output_dir, report_dir=None)
    assert again.metrics == result.report.comparison.metrics
    (measured,) = (one.retrieval_set for one in result.report.comparison.sets)
    assert (measured.num_unmeasured, len(measured.queries)) == (0, len(ROWS) // (2 if "val_fraction" in own else 1))


def test_pictures_teach_as_they_are_whatever_augmentation_makes_of_them(
    tmp_path, settings, clip_folder, embedded, caplog
):
    """SigLIP from CLIP; equal pictures are embedded once."""
    caplog.set_level("INFO")
    student = tiny.tiny_siglip(tmp_path / "siglip")
    run = {
        **settings,
        "model_name": student,
        "teacher_model_name": clip_folder,
        "data_path": write_pairs(tmp_path / "pictures", 6, "t2i", num_negatives=1),
        "retrieval_mode": "t2i",
        "augment": "light",
        "use_mrl": True,
        "mrl_dims": [16, 8],
        "epochs": 1,
    }
    Trainer(run).train()
    assert sum(embedded) == 18
    assert "18 items embedded, 18 kept in" in caplog.text
    embedded.clear()
    losses = losses_of(tmp_path / "run")
    assert len(losses) > 0
    assert all(math.isfinite(loss) for loss in losses)
    assert Trainer({**run, "output_dir": str(tmp_path / "again")}).train(num_workers=2).num_steps == len(losses)
    assert embedded == []


def test_a_student_that_reads_kept_features_has_the_same_teacher(tmp_path, settings, clip_folder, siglip_folder):
    run = {
        **settings,
        "model_name": clip_folder,
        "teacher_model_name": siglip_folder,
        "loss_type": "sigmoid",
        "distillation_type": "mse",
        "teacher_temperature": 0.2,
        "data_path": write_pairs(tmp_path / "pictures", 8, "t2i", num_negatives=1),
        "retrieval_mode": "t2i",
        "freeze": ["vision"],
        "epochs": 1,
    }
    Trainer(run).train()
    kept = {"cache_frozen_features": True, "feature_cache_dir": str(tmp_path / "features")}
    Trainer({**run, **kept, "output_dir": str(tmp_path / "kept")}).train()
    assert losses_of(tmp_path / "kept") == pytest.approx(losses_of(tmp_path / "run"), rel=1e-3)


def test_a_picture_of_a_composed_query_is_taught_as_a_document(
    tmp_path, settings, clip_folder, siglip_folder, embedded
):
    run = {
        **settings,
        "model_name": siglip_folder,
        "teacher_model_name": clip_folder,
        "data_path": write_pairs(tmp_path / "pictures", 4, "m2i"),
        "retrieval_mode": "m2i",
        "query_image_as_negative": True,
        "epochs": 1,
    }
    assert Trainer(run).train().num_steps == 1
    assert sum(embedded) == 3 * 4


def test_a_look_at_a_run_embeds_and_writes_nothing(tmp_path, settings, embedded):
    before = read_bytes(tmp_path)
    lines = Trainer(settings).overview().lines()
    name = settings["teacher_model_name"]
    assert f"teacher       late_interaction, 16 numbers per token ({name})" in lines
    assert Trainer(settings).measure(1).num_steps == 1
    assert read_bytes(tmp_path) == before
    assert embedded == []


def test_a_row_that_the_teacher_cannot_read_is_passed_over_with_its_row(tmp_path, settings, clip_folder):
    data = write_pairs(tmp_path / "pictures", 8, "t2i")
    first = json.loads(Path(data).read_text().splitlines()[0])
    (tmp_path / "pictures" / first["positive"]).write_bytes(b"no picture")
    run = {
        **settings,
        "model_name": clip_folder,
        "teacher_model_name": tiny.tiny_siglip(tmp_path / "siglip"),
        "data_path": data,
        "retrieval_mode": "t2i",
        "on_bad_sample": "skip",
        "max_bad_fraction": 0.5,
    }
    assert Trainer(run).train().num_steps > 0
    assert (tmp_path / "run" / "bad_samples.jsonl").exists()


@pytest.mark.parametrize("host_cache", ["uint8", "encoded"])
def test_a_picture_that_the_teacher_alone_cannot_read_is_a_bad_sample(tmp_path, settings, clip_folder, host_cache):
    data = Path(write_pairs(tmp_path / "pictures", 8, "t2i"))
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    write_picture(data.parent / "thin.png", 1, size=(230, 1))
    rows[1]["positive"] = [rows[1]["positive"], "thin.png"]
    rows[2]["positive"] = "thin.png"
    rows[3]["negatives"] = ["thin.png", rows[1]["positive"][0]]
    run = {
        **settings,
        "model_name": clip_folder,
        "teacher_model_name": tiny.tiny_qwen2_vl(tmp_path / "qwen"),
        "data_path": write_jsonl(data, rows),
        "retrieval_mode": "t2i",
        "image_host_cache": host_cache,
    }
    with pytest.raises(DataError, match=r"pairs\.jsonl:[234]: the teacher .* cannot read it: .*thin\.png"):
        Trainer(run).train()
    skipping = {"on_bad_sample": "skip", "max_bad_fraction": 0.5, "output_dir": str(tmp_path / "skipping")}
    assert Trainer({**run, **skipping}).train().num_steps > 0
    listed = read_lines(tmp_path / "skipping" / "bad_samples.jsonl")
    assert sorted((line["origin"][-1], line.get("left_out", "row")) for line in listed) == [
        ("2", "document"),
        ("3", "row"),
        ("4", "document"),
    ]


def test_a_text_that_the_teacher_alone_cannot_read_is_a_bad_sample(tmp_path, settings, bert_folder):
    number = with_unreadable_token(bert_folder, tmp_path / "teacher")
    rows = [*ROWS, {"query": f"a <soft_{number}> sign", "positive": "a sign"}]
    run = {
        **settings,
        "teacher_model_name": str(tmp_path / "teacher"),
        "data_path": write_jsonl(tmp_path / "some.jsonl", rows),
        "on_bad_sample": "skip",
        "max_bad_fraction": 0.5,
    }
    assert Trainer(run).train().num_steps > 0
    (line,) = read_lines(tmp_path / "run" / "bad_samples.jsonl")
    assert line["origin"].endswith(f"some.jsonl:{len(rows)}")
    assert f"cannot read it: {line['origin']}: the text holds '<soft_{number}>'" in line["reason"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"teacher_model_name": "./nowhere"}, ConfigError, r"teacher_model_name: there is no model folder './nowhere'"),
        (
            {"distillation_type": "cosine"},
            ConfigError,
            "distillation_type: cosine compares one vector per row with another, and the teacher has one per token",
        ),
        (
            {"teacher_model_name": "CLIP", "distillation_type": "cosine"},
            ConfigError,
            r"the teacher's have 16 numbers, the model's 24",
        ),
        (
            {"teacher_model_name": "VIT"},
            ConfigError,
            "teacher_model_name: .* is a vision model, which reads images only, and cannot teach retrieval_mode t2t",
        ),
        ({"teacher_model_name": None, "teacher_cache_dir": None}, DataError, "train.jsonl:1: score: is missing"),
        (
            {"teacher_model_name": None, "teacher_cache_dir": None, "teacher_embeddings": True},
            DataError,
            "train.jsonl:1: query_embedding: is missing",
        ),
    ],
)
def test_what_cannot_teach_is_refused_before_anything_is_written(
    tmp_path, settings, change, error, words, clip_folder, vit_folder
):
    folders = {"CLIP": clip_folder, "VIT": vit_folder}
    change = {key: folders.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(error, match=words):
        Trainer(settings).train(**change)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_a_teacher_that_gives_no_numbers_is_refused(tmp_path, settings, bert_folder):
    folder = tmp_path / "broken"
    model = VisualRetrievalModel.from_pretrained(bert_folder)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.fill_(math.nan)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"gives NaN or infinite numbers for 36 of 36"):
        Trainer(settings).train(teacher_model_name=str(folder))
    assert not (tmp_path / "run").exists()
