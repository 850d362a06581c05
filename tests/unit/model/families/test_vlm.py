"""Vision-language models: the embedding is the hidden state of the last token of the conversation on the card."""

import json
import pickle
import shutil
from pathlib import Path

import PIL.Image
import pytest
import sentence_transformers
import torch
import transformers
from safetensors import safe_open
from torch.nn import functional

from tests import tiny
from tests.cases import quick_and_slow
from vembed.errors import DataError, ModelError
from vembed.grad_cache.cachex.tree_utils import concat_rows, select_rows, take_rows
from vembed.model.families.registry import family_for
from vembed.model.folder.facts import ModelFacts, read_facts
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.types import ImageSource, Item

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_embedding"]
GENERIC = ["smolvlm", "idefics3", "llava_onevision", "gemma3"]  # beyond Qwen, with a chat template
TEMPLATES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", *GENERIC]
FEW = ["qwen2_vl", "qwen3_vl", "llava_onevision", "plain_llava"]
MORE = ["qwen2_5_vl", "qwen3_vl_embedding", "smolvlm", "idefics3", "gemma3", "paligemma"]
EVERY = [*QWEN, *GENERIC, "paligemma", "plain_llava"]


def finished(model, items, side="document"):
    return model.processor.finish(model.processor.prepare(items, side))


def embed(model, items, side="document"):
    with torch.no_grad():
        return model.model(finished(model, items, side)).vectors


def message_of(item, instruction=""):
    """The conversation that the model cards show: instruction, then images, then text."""
    system = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if instruction else []
    images = [{"type": "image", "image": source.pil} for source in item.images]
    words = [{"type": "text", "text": item.text}] if item.text is not None else []
    return [*system, {"role": "user", "content": [*images, *words]}]


@torch.no_grad()
def last_states(folder, messages, **processor_arguments):
    """The last token's hidden state in plain transformers, one conversation at a time, language head and all."""
    processor = transformers.AutoProcessor.from_pretrained(folder, **processor_arguments)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    states = []
    for message in messages:
        inputs = processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        states.append(model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1])
    return functional.normalize(torch.stack(states), dim=-1)


@pytest.mark.parametrize("name", quick_and_slow(TEMPLATES))
def test_the_generic_loader_gives_the_last_token_of_the_chat_template(name, model_of, folder_of, items_for):
    model = model_of(name)
    items = items_for(model)
    expected = last_states(folder_of(name), [message_of(item) for item in items])
    assert torch.allclose(embed(model, items), expected, atol=1e-5)
    assert (expected[0] - expected[1]).norm() > 1e-3


@pytest.mark.parametrize("make", [tiny.tiny_llava, tiny.tiny_llava_next, tiny.tiny_internvl, tiny.tiny_qwen3_vl_moe])
def test_their_kin_are_read_in_the_same_way(make, items_for, tmp_path):
    """Without the whole contract: equal to plain transformers, all that learns gets a gradient, and saved."""
    folder = make(tmp_path / "base")
    model = VisualRetrievalModel.from_pretrained(folder)
    items = items_for(model)[:13]
    assert torch.allclose(embed(model, items), last_states(folder, map(message_of, items)), atol=1e-5)
    assert family_for(read_facts(folder, Path(folder)))[0].architectures[model.model.backbone.config.model_type].tested
    model.model.train()
    model.model(finished(model, items)).vectors.sum().backward()
    learning = {name: parameter for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in learning.items() if parameter.grad is None} == {"logit_scale"}
    model.model.eval()
    model.save_pretrained(tmp_path / "saved")
    again = VisualRetrievalModel.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(embed(again, items), embed(model, items))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of its processor, when it returns tensors
@torch.no_grad()
def test_paligemma_has_no_template_and_is_read_as_its_processor_writes(model_of, folder_of, items_for):
    """Placeholders before the words; for words alone, what its processor puts around them beside images."""
    model, folder = model_of("paligemma"), folder_of("paligemma")
    items = items_for(model)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    backbone = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    states = []
    for item in items:
        if item.images:
            words = "<image>" * len(item.images) + (item.text or "")
            images = [[source.pil for source in item.images]]
            inputs = processor(text=[words], images=images, return_tensors="pt")
            inputs.pop("labels", None)
        else:
            inputs = processor.tokenizer([f"<bos>{item.text}\n"], return_tensors="pt")
        states.append(backbone(**inputs, output_hidden_states=True).hidden_states[-1][0, -1])
    expected = functional.normalize(torch.stack(states), dim=-1)
    assert torch.allclose(embed(model, items), expected, atol=1e-5)


@torch.no_grad()
def test_code_of_its_own_is_run_as_that_code_says(model_of, folder_of, items_for):
    model, folder = model_of("plain_llava"), folder_of("plain_llava")
    items = items_for(model)
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    backbone = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    states = []
    for item in items:
        words = "### Human: " + "<image>" * len(item.images) + (item.text or "") + "\n### Assistant:"
        images = [source.pil for source in item.images] or None
        inputs = processor(text=[words], images=images, return_tensors="pt")
        states.append(backbone(**inputs, output_hidden_states=True).hidden_states[-1][0, -1])
    assert torch.allclose(embed(model, items), functional.normalize(torch.stack(states), dim=-1), atol=1e-5)
    frozen = [name for name, parameter in model.model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.lm_head.weight"]


def test_code_of_its_own_runs_only_when_allowed(folder_of, fresh, tmp_path):
    message = r"opened by code that comes with it \(modeling_plain_llava\.py\).*trust_remote_code: true"
    with pytest.raises(ModelError, match=message):
        VisualRetrievalModel.from_pretrained(folder_of("plain_llava"))
    model = fresh("plain_llava", query_prompt="Find it.")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        VisualRetrievalModel.from_pretrained(str(tmp_path))
    text = model.processor.prepare([Item(text="zebra")], "query").tensors["input_ids"].values
    assert model.processor._tokenizer.decode(text) == "Find it.\n\n### Human: zebra\n### Assistant:"


def test_qwen3_vl_embedding_is_used_as_its_card_says(model_of, fresh, folder_of, items_for):
    model = model_of("qwen3_vl_embedding")
    items, folder = items_for(model), folder_of("qwen3_vl_embedding")
    size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 1800 * 32 * 32}
    messages = [message_of(item, "Represent the user's input.") for item in items]
    expected = last_states(folder, messages, size=size)
    assert torch.allclose(embed(model, items), expected, atol=1e-5)
    asking = fresh("qwen3_vl_embedding", query_prompt="Find the picture that is meant")
    messages = [message_of(item, "Find the picture that is meant.") for item in items]
    found = embed(asking, items, side="query")
    assert torch.allclose(found, last_states(folder, messages, size=size), atol=1e-5)
    assert (found - expected).norm() > 1e-2
    assert torch.allclose(embed(asking, items), expected, atol=1e-5)


def test_qwen3_vl_embedding_is_known_by_its_name(folder_of):
    model = VisualRetrievalModel.from_pretrained(folder_of("qwen3_vl_embedding"))
    assert model.reason.startswith("it is called ")
    assert (model.spec.min_pixels, model.spec.max_pixels) == (4 * 32 * 32, 1800 * 32 * 32)
    plain = VisualRetrievalModel.from_pretrained(folder_of("qwen3_vl"))
    assert (plain.spec.family, plain.spec.preset) == ("vlm_generic", "vlm")
    asked = VisualRetrievalModel.from_pretrained(folder_of("qwen3_vl"), ModelSettings(encoder_mode="qwen3_vl"))
    assert (asked.spec.family, asked.spec.preset) == ("qwen3_vl", "qwen3")
    other = VisualRetrievalModel.from_pretrained(folder_of("qwen3_vl_embedding"), ModelSettings(encoder_mode="qwen-vl"))
    assert other.spec.family == "vlm_generic"


def _tuned(folder, target, **processing):
    """A folder as sentence-transformers itself writes it."""
    transformer = sentence_transformers.base.modules.transformer.Transformer(folder, processing_kwargs=processing)
    pooling = sentence_transformers.sentence_transformer.modules.Pooling(24, pooling_mode="lasttoken")
    modules = [transformer, pooling, sentence_transformers.sentence_transformer.modules.Normalize()]
    other = sentence_transformers.SentenceTransformer(modules=modules, device="cpu", prompts={"query": "Find it"})
    other.save_pretrained(str(target))
    return other


@pytest.mark.parametrize("starts", [True, False])
def test_a_model_that_sentence_transformers_tuned_is_used_as_its_files_say(starts, folder_of, items_for, tmp_path):
    other = _tuned(folder_of("qwen3_vl"), tmp_path / "tuned", chat_template={"add_generation_prompt": starts})
    model = VisualRetrievalModel.from_pretrained(str(tmp_path / "tuned"))
    assert (model.spec.family, model.spec.preset) == ("vlm_generic", "qwen3")  # it embeds already
    assert "1_Pooling" in model.reason
    items = items_for(model)
    for encode, side in ((other.encode_query, "query"), (other.encode_document, "document")):
        theirs = torch.stack([torch.as_tensor(encode([_as_input(item)])[0]) for item in items])
        assert torch.allclose(embed(model, items, side), theirs, atol=1e-5), side


def test_other_ways_of_sentence_transformers_are_refused(folder_of, tmp_path):
    _tuned(folder_of("qwen3_vl"), tmp_path / "odd", image={"size": {"shortest_edge": 256, "longest_edge": 1024}})
    with pytest.raises(ModelError, match=r"sets image\.size in processing_kwargs, which is not supported"):
        VisualRetrievalModel.from_pretrained(str(tmp_path / "odd"))
    plain = tiny.tiny_qwen3_vl(tmp_path / "plain")
    tiny.write_sentence_transformers_files(plain, "last", 24)
    with pytest.raises(ModelError, match="reads texts without the chat template"):
        VisualRetrievalModel.from_pretrained(plain)


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-VL-Embedding-8B", "/cache/models--Qwen--Qwen3-VL-Embedding-2B/snapshots/0a1b", "x/Qwen3-VL-2B"]
)
def test_the_name_of_an_embedder_tells_it(name):
    facts = ModelFacts(name, Path(name), {"model_type": "qwen3_vl"})
    assert family_for(facts)[0].name == ("qwen3_vl" if "Embedding" in name else "vlm_generic")


def test_another_family_is_refused_by_name(folder_of):
    with pytest.raises(ModelError, match="encoder_mode 'clip' does not fit: this is a vlm_generic model"):
        VisualRetrievalModel.from_pretrained(folder_of("qwen2_vl"), ModelSettings(encoder_mode="clip"))
    with pytest.raises(ModelError, match=r"encoder_mode 'vlm' does not fit: this is a text model .*qwen2_vl"):
        VisualRetrievalModel.from_pretrained(folder_of("bert"), ModelSettings(encoder_mode="vlm"))


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_padding_on_either_side_gives_the_same_rows(name, model_of, fresh, items_for):
    model = fresh(name)
    items = items_for(model)
    right = finished(model, items)
    model.processor.spec = model.spec.model_copy(update={"padding_side": "left"})
    left = finished(model, items)
    masks = [inputs.tensors["attention_mask"].values for inputs in (right, left)]
    assert torch.equal(masks[0].flip(1), masks[1])
    assert not masks[0].all()
    with torch.no_grad():
        vectors = [model.model(inputs).vectors for inputs in (right, left)]
    assert torch.allclose(vectors[0], vectors[1], atol=1e-5)


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_any_chunk_of_rows_gives_the_same_rows(name, model_of, items_for):
    model = model_of(name)
    items = items_for(model)
    inputs = model.processor.prepare(items, "document")
    expected = embed(model, items)

    def run(rows):
        with torch.no_grad():
            return model.model(model.processor.finish(rows))

    for size in (1, 3, 7):
        chunks = [run(take_rows(inputs, start, start + size)) for start in range(0, len(items), size)]
        assert torch.allclose(concat_rows(chunks).vectors, expected, atol=1e-5)
    index = torch.tensor([12, 4, 0, 7])
    assert torch.allclose(run(select_rows(inputs, index)).vectors, expected[index], atol=1e-5)
    assert run(take_rows(inputs, 0, 0)).vectors.shape == (0, model.model.dim)
    assert model.model(model.processor.prepare([], "query")).vectors.shape == (0, model.model.dim)


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_token_states_say_which_tokens_are_images(name, model_of, pictures):
    model = model_of(name)
    items = [Item(text="a red circle"), Item(text="zebra", images=(ImageSource(pil=pictures[0]),))]
    with torch.no_grad():
        states = model.model.token_states(finished(model, items))
    assert states.hidden.shape == (*states.mask.shape, model.model.dim)
    assert states.mask.dtype == states.is_image.dtype == torch.bool
    assert states.is_image.sum(dim=1)[0] == 0
    assert states.is_image.sum(dim=1)[1] > 3
    assert not (states.is_image & ~states.mask).any()
    last = [row[mask][-1] for row, mask in zip(states.hidden, states.mask, strict=True)]
    assert torch.allclose(functional.normalize(torch.stack(last), dim=-1), embed(model, items), atol=1e-6)


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_pixels_wait_in_uint8_and_become_the_processor_s_own(name, model_of, folder_of, pictures):
    model = model_of(name)
    sources = [ImageSource(pil=picture) for picture in pictures]
    items = [Item(images=(source,)) for source in sources] + [Item(images=tuple(sources[1:4]))]
    inputs = model.processor.prepare(items, "document")
    assert inputs.tensors["pixel_values"].values.dtype == torch.uint8
    ours = model.processor.finish(inputs).tensors["pixel_values"].values
    arguments = {"size": {"shortest_edge": 4096, "longest_edge": 1843200}} if name == "qwen3_vl_embedding" else {}
    processor = transformers.AutoImageProcessor.from_pretrained(folder_of(name), **arguments)
    rows = [[source.pil for source in item.images] for item in items]
    expected = [processor([row], return_tensors="pt")["pixel_values"] for row in rows]
    if name in ("smolvlm", "idefics3"):
        expected = [values.transpose(0, 1) for values in expected]  # tiles before rows
    counts = inputs.tensors["pixel_values"].counts.tolist()
    for own, values in zip(ours.split(counts), expected, strict=True):
        padded = own[:, : values.shape[1]] if own.ndim == 5 else own  # tiles of a picture with fewer than others have
        assert torch.equal(padded, values)


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_text_is_cut_and_images_and_the_end_of_the_turn_are_not(name, model_of, fresh, pictures):
    whole = model_of(name)
    image = ImageSource(pil=pictures[0])
    item = Item(text="two blue squares on a green field", images=(image,), origin="pairs.jsonl:3")
    full = whole.processor.prepare([item], "query").tensors["input_ids"].values.tolist()
    ending = whole.processor._ending
    cut = fresh(name, max_length=len(full) - 5)
    inputs = cut.processor.prepare([item, Item(text="a")], "query")
    ids = inputs.tensors["input_ids"]
    assert inputs.num_truncated == 1
    assert ending
    row = ids.values[: int(ids.counts[0])].tolist()
    assert row == full[: len(full) - 5 - len(ending)] + ending
    with pytest.raises(DataError, match=r"pairs\.jsonl:3: max_length 8: its images and the chat template alone take"):
        fresh(name, max_length=8).processor.prepare([item], "query")


def test_a_text_that_is_cut_embeds_as_the_text_that_is_left(fresh, model_of):
    text = "two blue squares on a green field"
    processor = model_of("qwen3_vl").processor
    length = len(processor.prepare([Item(text=text)], "query").tensors["input_ids"].values)
    for kept in ("two blue squares on a green fi", "two blue", ""):
        rest = processor._encode_plain(text.removeprefix(kept))
        assert processor._encode_plain(kept) + rest == processor._encode_plain(text)
        cut = fresh("qwen3_vl", max_length=length - len(rest))
        assert torch.allclose(embed(cut, [Item(text=text)]), embed(cut, [Item(text=kept)]), atol=1e-6), kept
    with pytest.raises(DataError, match="max_length 10: the chat template alone take"):
        fresh("qwen3_vl", max_length=10).processor.prepare([Item(text=text)], "query")


def test_a_text_with_an_image_s_token_is_refused(model_of):
    with pytest.raises(DataError, match=r"a\.jsonl:2: the text holds '<\|image_pad\|>', which stands for an image"):
        model_of("qwen2_vl").encode([Item(text="look: <|image_pad|>", origin="a.jsonl:2")])


def test_a_picture_that_the_processor_refuses_is_a_data_error(model_of):
    strip = Item(images=(ImageSource(pil=PIL.Image.new("RGB", (2000, 4))),), origin="a.jsonl:2")
    with pytest.raises(DataError, match=r"a\.jsonl:2: an image cannot be read by this model: absolute aspect ratio"):
        model_of("qwen2_vl").encode([strip])


def test_pixel_bounds_are_the_settings_own_and_are_saved(fresh, pictures, tmp_path):
    item = Item(images=(ImageSource(pil=pictures[3]),))  # 64 x 64
    counts = {}
    for most in (16 * 16, 32 * 32, 64 * 64):
        model = fresh("qwen2_vl", min_pixels=256, max_pixels=most)
        counts[most] = len(model.processor.prepare([item], "document").tensors["pixel_values"].values)
    assert counts == {256: 4, 1024: 16, 4096: 64}
    model.save_pretrained(tmp_path)
    again = VisualRetrievalModel.from_pretrained(str(tmp_path))
    assert (again.spec.min_pixels, again.spec.max_pixels) == (256, 4096)
    plain = transformers.AutoProcessor.from_pretrained(tmp_path).image_processor
    assert dict(plain.size)["longest_edge"] == 4096
    with pytest.raises(ModelError, match="min_pixels 512 is more than max_pixels 256"):
        fresh("qwen2_vl", min_pixels=512, max_pixels=256)
    with pytest.raises(ModelError, match=r"min_pixels: the image processor .* at least 4096 .*; set max_pixels too"):
        fresh("qwen2_vl", min_pixels=4096)
    with pytest.raises(ModelError, match="image_size: the processor of a vlm_generic model sizes pictures"):
        fresh("qwen2_vl", image_size=64)
    with pytest.raises(ModelError, match=r"max_pixels: a clip model has no use for it; these have: .*vlm_generic"):
        fresh("clip", max_pixels=4096)


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_checkpoint_keeps_the_base_s_class_names_and_files(name, fresh, folder_of, tmp_path):
    fresh(name).save_pretrained(tmp_path)
    configs = [json.loads((Path(folder) / "config.json").read_text()) for folder in (folder_of(name), tmp_path)]
    assert configs[0]["architectures"] == configs[1]["architectures"]
    names = []
    for folder in (folder_of(name), tmp_path):
        with safe_open(f"{folder}/model.safetensors", "pt") as weights:
            names.append(sorted(weights.keys()))
    assert names[0] == names[1]
    own = {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in Path(folder_of(name)).iterdir()} <= own
    if name == "plain_llava":
        return
    one, two = (transformers.AutoModelForImageTextToText.from_pretrained(path) for path in (folder_of(name), tmp_path))
    assert all(torch.equal(tensor, two.state_dict()[key]) for key, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    "name", ["qwen3_vl_embedding", *(pytest.param(name, marks=pytest.mark.slow) for name in TEMPLATES)]
)
def test_sentence_transformers_gives_the_same_embeddings(name, fresh, items_for, tmp_path):
    model = fresh(name, query_prompt="Find it")
    items = items_for(model)
    model.save_pretrained(tmp_path)
    other = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert json.loads((tmp_path / "modules.json").read_text())[1]["path"] == "1_Pooling"
    inputs = [_as_input(item) for item in items]
    for encode, side in ((other.encode_query, "query"), (other.encode_document, "document")):
        theirs = torch.stack([torch.as_tensor(encode([one])[0]) for one in inputs])
        assert torch.allclose(embed(model, items, side), theirs, atol=1e-5), side
    texts = [item for item in items if not item.images]
    theirs = torch.as_tensor(other.encode_query([item.text for item in texts], batch_size=4))
    assert torch.allclose(embed(model, texts, "query"), theirs, atol=1e-5)


def _as_input(item):
    if not item.images:
        return item.text
    images = [source.pil for source in item.images]
    given = {"image": images if len(images) > 1 else images[0]}
    return given | ({"text": item.text} if item.text is not None else {})


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_all_that_learns_gets_a_gradient_and_parts_are_told(name, fresh, items_for):
    model = fresh(name)
    infos = parameter_infos(model.model)
    assert {info.part for info in infos} == {"text", "vision", "scale"}
    assert {info.num_layers for info in infos if info.part == "text"} == {2}
    first = next(info for info in infos if "embed_tokens" in info.name)
    assert (first.part, first.layer) == ("text", 0)
    model.model.train()
    model.model(finished(model, items_for(model))).vectors.sum().backward()
    missing = {info.name for info in infos if info.parameter.requires_grad and info.parameter.grad is None}
    assert missing == {"logit_scale"}


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "plain_llava"])
def test_a_frozen_tower_learns_nothing_and_its_projector_neither(name, fresh):
    for tower, other in (("vision", "text"), ("text", "vision")):
        infos = parameter_infos(fresh(name, freeze=(tower,)).model)
        assert {info.part for info in infos if info.parameter.requires_grad} == {other, "scale"}
    with pytest.raises(ModelError, match="nothing is left to learn"):
        fresh(name, freeze=("text", "vision"))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl_embedding", "gemma3", "plain_llava"])
def test_adapters_go_beside_the_language_model_s_layers(name, fresh, folder_of, items_for, tmp_path):
    model = fresh(name, use_lora=True)
    learning = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in learning - {"logit_scale"}}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(".lora_" in name and ".layers." in name for name in learning - {"logit_scale"})
    for parameter in (parameter for parameter in model.model.parameters() if parameter.requires_grad):
        torch.nn.init.normal_(parameter, std=0.05)
    items = items_for(model)[:9]
    model.save_pretrained(tmp_path / "merged")
    names = []
    for folder in (folder_of(name), tmp_path / "merged"):
        with safe_open(f"{folder}/model.safetensors", "pt") as weights:
            names.append(sorted(weights.keys()))
    assert names[0] == names[1]
    model.save_pretrained(tmp_path / "alone", merge_adapters=False)
    code = ModelSettings(trust_remote_code=name == "plain_llava")
    for folder in ("merged", "alone"):
        again = VisualRetrievalModel.from_pretrained(str(tmp_path / folder), code)
        assert torch.allclose(embed(again, items), embed(model, items), atol=1e-5)
    again.save_pretrained(tmp_path / "merged later")
    with safe_open(tmp_path / "merged later" / "model.safetensors", "pt") as weights:
        assert sorted(weights.keys()) == names[0]


def test_no_keys_and_values_are_cached_and_no_head_is_held(model_of):
    backbone = model_of("qwen2_vl").model.backbone
    assert not backbone.language_model.config.use_cache
    assert not [name for name, _ in model_of("qwen2_vl").model.named_parameters() if "lm_head" in name]


@pytest.mark.parametrize("name", ["qwen3_vl_embedding", "smolvlm", "llava_onevision"])
def test_a_processor_can_be_sent_to_another_process(name, model_of, items_for):
    model = model_of(name)
    sent = pickle.loads(pickle.dumps(model.processor))
    ours, theirs = (one.prepare(items_for(model), "query").tensors for one in (model.processor, sent))
    assert all(torch.equal(ours[key].values, theirs[key].values) for key in ours)


def copied(folder, target, template=None):
    """A copy of a model's folder, with another chat template."""
    shutil.copytree(folder, target)
    if template is not None:
        (target / "chat_template.jinja").write_text(template)
    return str(target)


def test_a_template_without_system_turns_gets_the_instruction_as_the_user_s_first_words(folder_of, pictures, tmp_path):
    """And sentence-transformers, which would lose it, cannot open the folder."""
    turn = (Path(folder_of("qwen3_vl")) / "chat_template.jinja").read_text()
    loop = "{%- for message in messages %}"
    refuses = turn.replace(loop, loop + "{%- if message.role == 'system' %}{{ raise_exception('no') }}{% endif %}")
    ignores = turn.replace(loop, "{%- for message in messages if message.role == 'user' %}")
    item = Item(text="zebra", images=(ImageSource(pil=pictures[0]),))
    for name, template in (("refuses", refuses), ("ignores", ignores)):
        folder = copied(folder_of("qwen3_vl"), tmp_path / name, template)
        model = VisualRetrievalModel.from_pretrained(folder, ModelSettings(query_prompt="Find it."))
        ids = model.processor.prepare([Item(text="zebra")], "query").tensors["input_ids"].values
        words = "<|im_start|>user\nFind it.\nzebra<|im_end|>\n<|im_start|>assistant\n"
        assert model.processor._tokenizer.decode(ids) == words
        first = Item(text="Find it.\nzebra", images=item.images)
        assert torch.allclose(embed(model, [item], "query"), embed(model, [first]), atol=1e-6)
        model.save_pretrained(tmp_path / name / "saved")
        with pytest.raises((ImportError, ValueError, AttributeError)):
            sentence_transformers.SentenceTransformer(str(tmp_path / name / "saved"), device="cpu")
        unprompted = VisualRetrievalModel.from_pretrained(folder)
        unprompted.save_pretrained(tmp_path / name / "plain")
        other = sentence_transformers.SentenceTransformer(str(tmp_path / name / "plain"), device="cpu")
        assert torch.allclose(embed(unprompted, [item]), torch.as_tensor(other.encode([_as_input(item)])), atol=1e-5)


def test_a_template_without_the_row_s_text_is_refused(folder_of, tmp_path):
    folder = copied(folder_of("qwen3_vl"), tmp_path / "mute", "{{ '<|im_start|>assistant' }}{# type #}")
    with pytest.raises(ModelError, match="the chat template leaves a row's text out"):
        VisualRetrievalModel.from_pretrained(folder)


def test_missing_processor_files_are_told(folder_of, tmp_path):
    folder = copied(folder_of("qwen3_vl"), tmp_path / "bare")
    (tmp_path / "bare" / "processor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no usable processor: .*load image processor"):
        VisualRetrievalModel.from_pretrained(folder)
    folder = copied(folder_of("plain_llava"), tmp_path / "texts")
    (tmp_path / "texts" / "processor_config.json").unlink()
    with pytest.raises(ModelError, match="has no processor for texts and images: transformers finds a Qwen2Tokenizer"):
        VisualRetrievalModel.from_pretrained(folder, ModelSettings(trust_remote_code=True))


def test_the_image_processor_s_own_file_is_kept_with_the_bounds_that_hold(folder_of, tmp_path):
    """Releases of transformers before 5 wrote it, and other tools read it."""
    folder = copied(folder_of("qwen3_vl"), tmp_path / "older")
    own = transformers.AutoProcessor.from_pretrained(folder)
    (tmp_path / "older" / "processor_config.json").unlink()
    for part in (own.image_processor, own.video_processor):
        part.save_pretrained(folder)
    assert (tmp_path / "older" / "preprocessor_config.json").is_file()
    model = VisualRetrievalModel.from_pretrained(folder, ModelSettings(max_pixels=1024))
    model.save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert settings["size"]["longest_edge"] == 1024
    again = VisualRetrievalModel.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(embed(again, [Item(text="a")]), embed(model, [Item(text="a")]))
