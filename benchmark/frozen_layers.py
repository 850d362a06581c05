"""What frozen layers and vision towers save: processor time and peak memory of a cached training step.

    python benchmark/frozen_layers.py [--model vit] [--batch_size 32] [--chunk_size 8] [--frozen 6] [--steps 2]

Random weights and pictures of 112 px, pictures as queries and as documents, one thread. The steps take turns, each in a
process of its own. Memory is the peak of resident memory over the loaded model and batch.

vit: a ViT of 384 x 8; all layers learn, or the first are frozen. qwen2_vl: a Qwen2-VL whose vision tower (256 x 8, 196
patches and 49 tokens a picture) and language model (384 x 8) stand in size about as in the 2B model; all learns, or the
language model by adapters, and the frozen vision tower runs in both passes of the gradient cache
(gradient_cache_states_gib: 0), or once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from machine import machine_in_words

LEARNING, FROZEN, RUN_TWICE, RUN_ONCE = "learning", "frozen", "frozen, run twice", "frozen, run once"
MODES = {"vit": (LEARNING, FROZEN), "qwen2_vl": (LEARNING, RUN_TWICE, RUN_ONCE)}
PIXELS = 112


def main() -> None:
    """Run the workers in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODES), default="vit")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--chunk_size", type=int, default=8)
    parser.add_argument("--frozen", type=int, default=6, help="layers of the 8 of vit")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each kind, after one that is not")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Start a process per mode, step them in turns, print times, memory and ratios."""
    modes = MODES[options.model]
    names = ("model", "batch_size", "chunk_size", "frozen")
    shared = [text for name in names for text in (f"--{name}", f"{vars(options)[name]}")]
    workers = {
        mode: subprocess.Popen(
            [sys.executable, __file__, "--worker", mode, *shared],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mode in modes
    }
    results: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
    for _ in range(options.steps + 1):
        for mode, worker in workers.items():
            print("step", file=worker.stdin, flush=True)
            results[mode].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    seconds = {mode: median(result["seconds"] for result in results[mode][1:]) for mode in modes}
    peak = {mode: results[mode][-1]["peak_mib"] for mode in modes}
    frozen = f"{options.frozen} of 8 layers" if options.model == "vit" else "the vision tower"
    print(machine_in_words())
    print(f"{options.model}, batch {options.batch_size} + {options.batch_size}, chunk {options.chunk_size}, {frozen}")
    print(f"{'step':<18} {'seconds':>8} {'peak MiB':>9} {'time':>6} {'memory':>7} {'loss':>9}")
    for mode in modes:
        ratios = f"{seconds[mode] / seconds[LEARNING]:>5.2f}x {peak[mode] / peak[LEARNING]:>6.2f}x"
        print(f"{mode:<18} {seconds[mode]:>8.2f} {peak[mode]:>9.0f} {ratios} {results[mode][0]['loss']:>9.5f}")


def work(options: argparse.Namespace) -> None:
    """Do one step for each line on standard input, and answer with its figures."""
    import torch  # noqa: PLC0415 (only the workers need it)

    from vembed.utils.memory import MIB, peak_memory_mib, reset_peak_memory, used_memory_bytes  # noqa: PLC0415

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, processor = build_vit(options) if options.model == "vit" else build_qwen2_vl(options)
    trainer = make_trainer(model, processor, options)
    batch = make_batch(processor, options.batch_size)
    cpu = torch.device("cpu")
    loaded = used_memory_bytes(cpu) / MIB
    reset_peak_memory(cpu)
    for _ in sys.stdin:
        model.zero_grad(set_to_none=True)
        start = time.process_time()
        loss = trainer.step(batch).loss
        seconds = time.process_time() - start
        print(json.dumps({"seconds": seconds, "peak_mib": peak_memory_mib(cpu) - loaded, "loss": loss}), flush=True)


def build_vit(options: argparse.Namespace):
    """A model of one tower, and its processor."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel  # noqa: PLC0415

    from vembed.model.backbones.auto import VisionModel  # noqa: PLC0415
    from vembed.model.backbones.vision import VisionTower  # noqa: PLC0415
    from vembed.model.processors.auto import TowerProcessor  # noqa: PLC0415
    from vembed.model.processors.pictures import TransformersImages  # noqa: PLC0415
    from vembed.model.spec import ModelSpec  # noqa: PLC0415

    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
    network = ViTModel(ViTConfig(**shape, image_size=PIXELS, patch_size=16), add_pooling_layer=False)
    spec = ModelSpec(family="vision", preset="dino", towers=("vision",), pooling={"vision": "cls"})
    model = VisionModel(spec, VisionTower(network, "cls"))
    if options.worker != LEARNING:
        model.freeze_layers({"vision": options.frozen})
    square = {"height": PIXELS, "width": PIXELS}
    return model, TowerProcessor(spec, None, TransformersImages(ViTImageProcessor(size=square), None))


def build_qwen2_vl(options: argparse.Namespace):
    """A vision-language model, all of which learns or adapters on its language model, and its processor."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration  # noqa: PLC0415

    from tests.tiny import tiny_qwen2_vl  # noqa: PLC0415 (its tokenizer and processor; the weights are replaced)
    from vembed.model.modeling import VisualRetrievalModel  # noqa: PLC0415
    from vembed.model.settings import ModelSettings  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        config = Qwen2VLConfig.from_pretrained(tiny_qwen2_vl(folder))
        text = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
        vision = {"embed_dim": 256, "hidden_size": 384, "depth": 8, "num_heads": 4, "mlp_ratio": 4}
        for part, shape in ((config.text_config, text), (config.vision_config, vision)):
            for name, value in shape.items():
                setattr(part, name, value)
        sections = {"mrope_section": [8, 12, 12], "rope_type": "default", "type": "mrope", "rope_theta": 1e6}
        config.text_config.rope_parameters = sections
        config.text_config.num_key_value_heads = 2
        config.text_config.layer_types = ["full_attention"] * 8
        Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
        settings = ModelSettings(use_lora=options.worker != LEARNING, min_pixels=PIXELS**2, max_pixels=PIXELS**2)
        opened = VisualRetrievalModel.from_pretrained(folder, settings)
    return opened.model, opened.processor


def make_trainer(model, processor, options: argparse.Namespace):
    """The step that is measured."""
    from vembed.grad_cache.settings import GradCacheSettings  # noqa: PLC0415
    from vembed.losses.factory import LossFactory  # noqa: PLC0415
    from vembed.losses.settings import LossSettings  # noqa: PLC0415
    from vembed.training.gradient_cache_trainer import GradientCacheTrainer  # noqa: PLC0415

    limit = 0.0 if options.worker == RUN_TWICE else 1.0
    settings = GradCacheSettings(gradient_cache_chunk_size=options.chunk_size, gradient_cache_states_gib=limit)
    return GradientCacheTrainer(model.train(), processor, LossFactory.create(LossSettings()), settings)


def make_batch(processor, rows: int):
    """Random pictures as queries and as documents, one to one."""
    import PIL.Image  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from vembed.types import Batch, ImageSource, Item, ItemRows, Ragged, Targets  # noqa: PLC0415

    def pictures(side):
        drawn = torch.randint(0, 256, (rows, PIXELS, PIXELS, 3), dtype=torch.uint8)
        sources = [ImageSource(pil=PIL.Image.fromarray(one.numpy())) for one in drawn]
        return ItemRows(tuple(processor.load(Item(images=(source,))) for source in sources), side)

    numbers = torch.arange(rows)
    no_groups, one_each = torch.full((rows,), -1), torch.ones_like(numbers)
    none = Ragged(numbers[:0], torch.zeros_like(numbers))
    targets = Targets(no_groups, numbers, no_groups, numbers + rows, Ragged(numbers, one_each), none)
    return Batch(pictures("query"), pictures("document"), targets)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
