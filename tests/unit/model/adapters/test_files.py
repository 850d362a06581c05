"""Adapters in their own folders: what is written, who opens it, and what is refused."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from tests.cases import CASES
from tests.tiny import tiny_bert, tiny_clip
from tests.unit.model.learning.test_lora import train_a_step
from vembed.errors import CheckpointError, ModelError
from vembed.inference import Predictor
from vembed.model.export import merge_folder
from vembed.model.folder.fingerprint import fingerprint
from vembed.model.folder.weight_names import rename_weights_like
from vembed.model.heads import heads_state
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.training.run.folder import read_saved_facts
from vembed.types import Item
from vembed.utils.sealed import sealed

KINDS = ("clip", "vit_pair", "sentence", "qwen3_vl", "colbert")
VARIANTS = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True, "lora_r": 4}}
WEIGHTS = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"


def with_variants(*names):
    """Every model with LoRA, the first in every way; all of them in every way in the whole suite."""
    return [
        pytest.param(name, way, marks=() if name == names[0] or way == "lora" else pytest.mark.slow)
        for name in names
        for way in VARIANTS
    ]


def load(folder, **settings):
    return VisualRetrievalModel.from_pretrained(str(folder), ModelSettings(**settings))


def trained(fresh, name, items_for, **settings):
    """A model whose adapters have learned two steps, so that both of their halves did."""
    model = fresh(name, use_lora=True, **settings)
    for _ in range(2):
        train_a_step(model, items_for(model))
        model.model.zero_grad()
    return model


def close(first, second, tolerance=1e-4):
    """Two steps of rsLoRA can leave weights near 10, through which rounding grows to about 1e-5."""
    return torch.allclose(first, second, atol=tolerance)


@pytest.mark.parametrize(("name", "variant"), with_variants("clip", "siglip", "vit_pair"))
def test_saved_adapters_open_merged_and_give_what_they_gave(name, variant, fresh, model_of, items_for, tmp_path):
    model = trained(fresh, name, items_for, **VARIANTS[variant])
    items = items_for(model)
    vectors = model.encode(items).vectors
    assert not close(vectors, model_of(name).encode(items).vectors, 1e-3), "the adapter changes nothing"
    model.save_pretrained(tmp_path, merge_adapters=False)
    assert not list(tmp_path.rglob("model.safetensors"))
    opened = load(tmp_path)
    assert close(opened.encode(items).vectors, vectors)
    plain = model_of(name).model.state_dict().keys()
    assert opened.model.state_dict().keys() == plain
    learning = {name for name, parameter in opened.model.named_parameters() if parameter.requires_grad}
    expected = {name for name, parameter in model_of(name).model.named_parameters() if parameter.requires_grad}
    assert learning == expected, "a merged model learns as its base does"
    assert close(torch.from_numpy(Predictor(tmp_path).encode(items)), vectors)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize(("name", "variant"), with_variants("clip", "bert", "dinov2"))
def test_plain_peft_reads_them_onto_the_plain_base(name, variant, fresh, folder_of, items_for, tmp_path):
    model = trained(fresh, name, items_for, **VARIANTS[variant])
    model.save_pretrained(tmp_path, merge_adapters=False)
    base = transformers.AutoModel.from_pretrained(folder_of(name))
    plain = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload().state_dict()
    ours = model.model.backbone_state("")
    assert plain.keys() == merged.keys() >= ours.keys()
    assert all(close(merged[key], ours[key]) for key in ours if not key.startswith("logit"))
    changed = {key for key in ours if not torch.equal(ours[key], plain[key])}
    assert len(changed) > 10
    if name == "clip":
        assert {"text_projection.weight", "visual_projection.weight"} <= changed


@pytest.mark.parametrize("name", ["clip", "siglip", "bert", "vit", "dinov2"])
def test_transformers_opens_the_folder_itself_and_agrees(name, fresh, items_for, tmp_path):
    model = trained(fresh, name, items_for)
    model.save_pretrained(tmp_path, merge_adapters=False)
    opened = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    network = next(iter(model.model.towers().values()))
    ids = torch.randint(0, 50, (2, 7))
    if name == "bert":
        theirs, own = opened(input_ids=ids).last_hidden_state, network(input_ids=ids).last_hidden_state
    elif name in ("clip", "siglip"):
        ids = torch.randint(0, 50, (2, 16))
        theirs = opened.get_text_features(input_ids=ids).pooler_output
        own = model.model.backbone.get_text_features(input_ids=ids).pooler_output
    else:
        pixels = torch.randn(2, 3, 32, 32)
        theirs, own = opened(pixel_values=pixels).last_hidden_state, network(pixel_values=pixels).last_hidden_state
    assert close(theirs, own)


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_sentence_transformers_opens_the_folder_and_agrees(name, fresh, items_for, texts, tmp_path):
    model = trained(fresh, name, items_for)
    model.save_pretrained(tmp_path, merge_adapters=False)
    opened = SentenceTransformer(str(tmp_path), device="cpu")
    assert close(opened.encode(texts, convert_to_tensor=True), model.get_text_features(texts))


def test_convolutions_batch_norms_and_dora(fresh, items_for, tmp_path):
    """A timm tower with statistics that moved beside DoRA on its convolutions."""
    settings = {"use_dora": True, "lora_target_modules": ("conv_head", "conv_pwl")}
    model = fresh("timm", use_lora=True, **settings)
    model.model.train_batch_norm = True
    items = items_for(model)
    train_a_step(model, items)
    vectors = model.encode(items).vectors
    model.save_pretrained(tmp_path, merge_adapters=False)
    assert close(load(tmp_path).encode(items).vectors, vectors)
    whole = json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]
    assert "timm_model.bn1" in whole


def test_a_tower_that_did_not_learn_has_no_adapter_but_its_base(fresh, items_for, tmp_path):
    model = trained(fresh, "composed", items_for, freeze=("vision",))
    model.save_pretrained(tmp_path, merge_adapters=False)
    assert (tmp_path / "text" / WEIGHTS).is_file()
    assert not (tmp_path / "image" / WEIGHTS).exists()
    opened = load(tmp_path)
    assert close(opened.encode(items_for(model)).vectors, model.encode(items_for(model)).vectors)
    assert all(torch.equal(heads_state(opened.model)[key], tensor) for key, tensor in heads_state(model.model).items())


def test_adapters_hold_what_was_trained_to_the_bit(fresh, items_for, tmp_path):
    model = trained(fresh, "clip", items_for)
    model.save_pretrained(tmp_path, merge_adapters=False)
    again = load(tmp_path, use_lora=True)
    states = model.model.state_dict(), again.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    learning = [
        {info.name for info in parameter_infos(one.model) if info.parameter.requires_grad} for one in (model, again)
    ]
    assert learning[0] == learning[1]
    again.save_pretrained(tmp_path / "again", merge_adapters=False)
    for file in (WEIGHTS, "adapter_config.json", "vembed_base.json", "vembed_heads.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_an_adapter_goes_on_learning_or_is_merged_before_a_new_one(fresh, items_for, folder_of, tmp_path):
    model = trained(fresh, "bert", items_for, lora_r=4)
    items = items_for(model)
    vectors = model.encode(items).vectors
    model.save_pretrained(tmp_path / "first", merge_adapters=False)
    stage = load(tmp_path / "first", use_lora=True, adapter="merge", lora_r=2, use_dora=True)
    assert {p.shape[0] for name, p in stage.model.named_parameters() if ".lora_A" in name} == {2}
    assert close(stage.encode(items).vectors, vectors)
    train_a_step(stage, items)
    second = stage.encode(items).vectors
    assert not close(second, vectors, 1e-3)
    stage.save_pretrained(tmp_path / "second", merge_adapters=False)
    assert close(load(tmp_path / "second").encode(items).vectors, second), "an adapter over an adapter"
    bases = [
        json.loads((tmp_path / name / "vembed_base.json").read_text())["model_name"] for name in ("first", "second")
    ]
    assert bases == [folder_of("bert"), str(tmp_path / "first")]
    more = load(tmp_path / "second", use_lora=True)
    train_a_step(more, items)
    more.save_pretrained(tmp_path / "third", merge_adapters=False)
    assert (tmp_path / "third" / "vembed_base.json").read_text() == (
        tmp_path / "second" / "vembed_base.json"
    ).read_text()
    shutil.rmtree(tmp_path / "second")
    assert close(load(tmp_path / "third").encode(items).vectors, more.encode(items).vectors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_r": 8}, "lora_r 8: the adapter that goes on learning has 4; take lora_r out, or set adapter: merge"),
        ({"lora_alpha": 8}, "lora_alpha 8.0: the adapter that goes on learning has 32"),
        ({"use_dora": True}, "use_dora True: the adapter that goes on learning has False"),
        ({"lora_target_modules": ("query",)}, "lora_target_modules: the adapter that goes on learning is on 12 layers"),
    ],
)
def test_settings_of_another_adapter_are_refused(settings, message, fresh, items_for, tmp_path):
    trained(fresh, "bert", items_for, lora_r=4).save_pretrained(tmp_path, merge_adapters=False)
    with pytest.raises(ModelError, match=message):
        load(tmp_path, use_lora=True, **settings)
    assert load(tmp_path, use_lora=True, lora_r=4, lora_alpha=32).model


def test_towers_of_a_composed_model_may_have_adapters(fresh, items_for, folder_of, tmp_path):
    model = trained(fresh, "bert", items_for)
    model.save_pretrained(tmp_path, merge_adapters=False)
    settings = ModelSettings(text_model_name=str(tmp_path), image_model_name=folder_of("vit"))
    joined = VisualRetrievalModel.from_pretrained(None, settings)
    items = items_for(model)
    assert close(joined.encode(items, features="tower").vectors, model.encode(items).vectors)


def test_an_adapter_of_another_base_is_refused(fresh, items_for, tmp_path):
    base, other = (Path(tiny_bert(tmp_path / f"seed{seed}", pooling="mean", seed=seed)) for seed in (0, 1))
    model = load(base, use_lora=True)
    train_a_step(model, items_for(model))
    model.save_pretrained(tmp_path / "adapter", merge_adapters=False)
    record = tmp_path / "adapter" / "vembed_base.json"
    record.write_text(record.read_text().replace(str(base), str(other)))
    with pytest.raises(
        CheckpointError, match=r"belongs to another model than .*seed1.*Give model_name in .*vembed_base"
    ):
        load(tmp_path / "adapter")
    record.write_text(record.read_text().replace(str(other), str(base)))
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(
        CheckpointError, match=r"holds an adapter, and the model .*seed0', is not there.*write where it lies"
    ):
        Predictor(tmp_path / "adapter")
    record.write_text(record.read_text().replace(str(base), str(tmp_path / "moved")))
    assert load(tmp_path / "adapter")


def test_adapters_that_do_not_fit_are_refused_by_name(fresh, items_for, tmp_path):
    model = trained(fresh, "bert", items_for)
    model.save_pretrained(tmp_path, merge_adapters=False)
    file = tmp_path / WEIGHTS
    state = load_file(file)
    first = next(name for name in state if name.endswith("lora_A.weight"))
    short = first.removeprefix("base_model.model.")
    lost = {name: tensor for name, tensor in state.items() if name != first}
    cases = [
        (lost, f"it lacks {short}"),
        (state | {"base_model.model.other.weight": torch.ones(1)}, "it has no place here for other.weight"),
        (state | {first: state[first][:1].clone()}, f"it has in another shape {short}"),
        ({name: tensor * (".lora_B." not in name) for name, tensor in state.items()}, "changes nothing: .* are zero"),
        ({name: tensor / (name != first) for name, tensor in state.items()}, "merged weights do not give what"),
    ]
    for content, message in cases:
        save_file(content, file)
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is missing or broken"):
        load(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
    with pytest.raises(CheckpointError, match="holds a IA3 adapter; LoRA, DoRA and rsLoRA are supported"):
        load(tmp_path)


@pytest.mark.parametrize("ours", [True, False])  # with vembed_base.json, or as peft alone writes a folder
@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "adapter_config.json cannot be read: it holds no JSON object, but list"), ("{", "cannot be read")],
)
def test_a_broken_description_of_an_adapter_is_told(content, message, ours, fresh, items_for, tmp_path):
    trained(fresh, "bert", items_for).save_pretrained(tmp_path, merge_adapters=False)
    (tmp_path / "adapter_config.json").write_text(content)
    if not ours:
        for file in ("vembed_base.json", "vembed_config.json"):
            (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_one_tower_s_adapters_may_have_learned_nothing(fresh, texts, tmp_path):
    model = fresh("vit_pair", use_lora=True)
    model.save_pretrained(tmp_path / "first", merge_adapters=False)
    model.load_adapters(tmp_path / "first")  # a run is resumed where it was stopped, were it at its start
    with pytest.raises(CheckpointError, match=r"changes nothing: .* are zero"):
        load(tmp_path / "first")
    items = [Item(text=text) for text in texts]
    for _ in range(2):
        train_a_step(model, items)
        model.model.zero_grad()
    model.save_pretrained(tmp_path / "trained", merge_adapters=False)
    image = load_file(tmp_path / "trained" / "image" / WEIGHTS)
    assert not any(tensor.any() for name, tensor in image.items() if ".lora_B." in name)
    assert close(load(tmp_path / "trained").encode(items).vectors, model.encode(items).vectors)


def quick_or_slow(name):
    """One case of each kind runs always; all of them in the whole suite."""
    return pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)


@pytest.mark.parametrize("name", [quick_or_slow(name) for name in CASES])
def test_adapters_of_every_family_are_kept_continued_and_merged(name, fresh, folder_of, items_for, tmp_path):
    case = CASES[name]
    code = {"trust_remote_code": bool(case.settings.get("trust_remote_code"))}
    model = trained(fresh, name, items_for, lora_target_modules=case.lora_target_modules)
    items = items_for(model, case.mixed)
    vectors = model.encode(items).vectors
    model.save_pretrained(tmp_path / "adapter", merge_adapters=False)
    again = load(tmp_path / "adapter", use_lora=True, **code).model.state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in model.model.state_dict().items())
    merged = merge_folder(tmp_path / "adapter", tmp_path / "merged", ModelSettings(**code))
    assert close(merged.encode(items).vectors, vectors)
    assert close(load(tmp_path / "merged", **code).encode(items).vectors, vectors)
    towers = {"": name} if case.towers is None else dict(zip(("text", "image"), case.towers, strict=True))
    for subfolder, tower in towers.items():
        assert_same_kind_of_folder(Path(folder_of(tower)), tmp_path / "merged" / subfolder, **code)
    records = [json.loads((tmp_path / one / "vembed_config.json").read_text()) for one in ("adapter", "merged")]
    assert records[0] == records[1]


def assert_same_kind_of_folder(base: Path, merged: Path, **code: bool) -> None:
    """The base's config class, tensor names with their dtypes and shapes, and files; and nothing of adapters."""
    names = [{file.name for file in folder.iterdir() if file.is_file()} for folder in (base, merged)]
    assert {name for name in names[0] if "model-0000" not in name} - {"README.md", INDEX} <= names[1]
    assert not [name for name in names[1] if "adapter" in name or name == "vembed_base.json"]
    kinds = [transformers.AutoConfig.from_pretrained(folder, **code) for folder in (base, merged)]
    assert type(kinds[0]).__name__ == type(kinds[1]).__name__
    assert kinds[0].architectures == kinds[1].architectures
    tensors = [
        {name: (tensor.dtype, tensor.shape) for file in files for name, tensor in load_file(file).items()}
        for files in (sorted(folder.glob("model*.safetensors")) for folder in (base, merged))
    ]
    assert tensors[0] == tensors[1]


def test_files_that_opening_did_not_need_are_kept(fresh, items_for, tmp_path):
    base = Path(tiny_clip(tmp_path / "base"))
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "model.safetensors.index.json").write_text("{}")
    model = load(base, use_lora=True)
    train_a_step(model, items_for(model))
    model.save_pretrained(tmp_path / "adapter", merge_adapters=False)
    merge_folder(tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not (tmp_path / "merged" / "model.safetensors.index.json").exists()


def test_what_a_run_noted_of_adapters_is_not_said_of_merged_weights(fresh, items_for, tmp_path):
    model = trained(fresh, "bert", items_for)
    facts = sealed({"step": 3, "weights": "of the adapters", "loss": "infonce"})
    model.save_pretrained(tmp_path / "adapter", facts, merge_adapters=False)
    merge_folder(tmp_path / "adapter", tmp_path / "merged")
    assert read_saved_facts(tmp_path / "merged" / "vembed_config.json") == {"step": 3, "loss": "infonce"}
    file = tmp_path / "adapter" / "vembed_config.json"
    file.write_text(file.read_text().replace('"step": 3', '"step": 4'))
    with pytest.raises(CheckpointError, match=r"adapter/vembed_config\.json is damaged: its checksum"):
        merge_folder(tmp_path / "adapter", tmp_path / "again")


def test_an_adapter_beside_4_bit_weights_is_not_merged(fresh, items_for, tmp_path):
    trained(fresh, "bert", items_for).save_pretrained(tmp_path, merge_adapters=False)
    record = tmp_path / "vembed_base.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"quantization": "4bit"}))
    with pytest.raises(CheckpointError, match="was trained beside 4bit weights; merged into whole ones"):
        merge_folder(tmp_path, tmp_path / "merged")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match=r"4bit needs a CUDA device.*opens with quantization: none"):
            load(tmp_path)
    assert load(tmp_path, quantization="none")


def test_a_fingerprint_tells_weights_apart_however_they_lie(tmp_path):
    folder = Path(tiny_bert(tmp_path / "one"))
    whole = fingerprint(folder)
    transformers.AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "many", max_shard_size="20kB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path / "many") == whole
    assert fingerprint(Path(tiny_bert(tmp_path / "other", seed=1))) != whole
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="shorter than its header says"):
        fingerprint(folder)
    file.write_bytes(b"\x00")
    with pytest.raises(CheckpointError, match="its header cannot be read"):
        fingerprint(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        fingerprint(folder)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("name", ["bert", "vit", "clip"])
def test_a_folder_that_peft_wrote_opens_with_its_base(name, folder_of, model_of, items_for, tmp_path):
    base = transformers.AutoModel.from_pretrained(folder_of(name))
    targets = ["query", "value"] if name == "bert" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path)
    opened = load(tmp_path)
    assert opened.spec == model_of(name).spec
    assert "an adapter of" in opened.reason
    items = items_for(opened)
    vectors = opened.encode(items).vectors
    assert not close(vectors, model_of(name).encode(items).vectors, 1e-3)
    merged = adapted.merge_and_unload().state_dict()
    assert all(
        close(merged[key], tensor) for key, tensor in opened.model.backbone_state("").items() if "logit" not in key
    )
    stage = load(tmp_path, use_lora=True)
    train_a_step(stage, items)
    stage.save_pretrained(tmp_path / "more", merge_adapters=False)
    assert close(load(tmp_path / "more").encode(items).vectors, stage.encode(items).vectors)


def test_a_network_that_was_published_with_a_head_keeps_it(items_for, tmp_path):
    """The base's folder is of BertForMaskedLM, in several files, and so is the merged one's."""
    base = Path(tiny_bert(tmp_path / "base", pooling="mean"))
    torch.manual_seed(0)
    whole = transformers.BertForMaskedLM(transformers.AutoConfig.from_pretrained(base))
    whole.bert.load_state_dict(transformers.AutoModel.from_pretrained(base).state_dict(), strict=False)
    (base / "model.safetensors").unlink()
    whole.save_pretrained(base, max_shard_size="20kB")
    model = load(base, use_lora=True)
    train_a_step(model, items_for(model))
    model.save_pretrained(tmp_path / "adapter", merge_adapters=False)
    merge_folder(tmp_path / "adapter", tmp_path / "merged")
    assert_same_kind_of_folder(base, tmp_path / "merged")
    opened = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(opened.cls.predictions.transform.dense.weight, whole.cls.predictions.transform.dense.weight)
    items = items_for(model)
    assert close(load(tmp_path / "merged").encode(items).vectors, model.encode(items).vectors)
    plain = tmp_path / "in parts"
    network = transformers.AutoModel.from_pretrained(tmp_path / "merged", add_pooling_layer=False)
    network.save_pretrained(plain, max_shard_size="20kB")
    rename_weights_like(base, plain)
    again = transformers.AutoModelForMaskedLM.from_pretrained(plain)
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in opened.state_dict().items())
