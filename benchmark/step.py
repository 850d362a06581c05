"""A training step of vembed against sentence-transformers: time and peak memory, plain and through the gradient cache.

    python benchmark/step.py [--batch_sizes 64 128] [--rounds 3] [--steps 1]

A CLIP of about 20 million parameters with random weights (text 256 wide x 6 layers, pictures of 112 px 384 wide x 8
layers), texts of 32 tokens, chunks of 16 rows; every contender opens the same folder and gets the same rows, ready in
memory. A step is forward, loss, backward and AdamW. In every round each contender has its turn, in a process of its
own, one untimed step first. Time is processor time on one thread, so that other work on the machine does not count, and
on more threads that on the clock of an idle machine; memory is the peak of resident memory over the loaded model and
batch (VmHWM, set back once both are there). Both are medians over the rounds. The losses of the first step must be
equal. LoRA is measured at the largest batch only.
"""
# ruff: noqa: PLC0415 - the parent process imports no model

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from machine import machine_in_words

CHUNK, PIXELS, TOKENS = 16, 112, 32
TEMPERATURE = 0.05
PLAIN, CACHED = "vembed plain", "vembed cached"
THEIR_PLAIN, THEIR_CACHED = "sentence-transformers plain", "sentence-transformers cached"
LORA, ALL = "vembed plain, LoRA", "vembed cached, LoRA, checkpointing"
LORA_SETTINGS = {"use_lora": True, "lora_r": 8}
# One against another, and the most that its time and memory are meant to be of the other's.
PAIRS = {
    (CACHED, PLAIN): "1.18x 0.52x; batch 128: 1.15x",
    (CACHED, THEIR_CACHED): "1.00x 1.00x",
    (PLAIN, THEIR_PLAIN): "1.00x",
    (THEIR_CACHED, THEIR_PLAIN): "",
    (LORA, PLAIN): "",
    (ALL, PLAIN): "1.20x 0.40x",
    (ALL, LORA): "",
}
CONTENDERS = (PLAIN, CACHED, THEIR_PLAIN, THEIR_CACHED, LORA, ALL)
TOLERANCE = 1e-4


def main() -> None:
    """Write the model's folder, run the contenders at each batch size, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=3, help="new processes of each contender")
    parser.add_argument("--steps", type=int, default=1, help="timed steps of a round, after one that is not")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; with more than one, time is that on the clock"
    )
    parser.add_argument("--retain", type=float, help="gradient_cache_retain in the place of its default")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--worker", nargs=3, metavar=("CONTENDER", "ROWS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, rows, folder = options.worker
        work(options, name, int(rows), Path(folder))
        return
    print(machine_in_words())
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for batch_size in options.batch_sizes:
            compare(options, batch_size, Path(folder))


def compare(options: argparse.Namespace, batch_size: int, folder: Path) -> None:
    """Run all contenders in turns, and print times, memory and the ratios that say something."""
    seconds, peak = defaultdict(list), defaultdict(list)
    names = [name for name in options.only if "LoRA" not in name or batch_size == max(options.batch_sizes)]
    for _ in range(options.rounds):
        losses = {}
        for name in names:
            answer = run_worker(options, name, batch_size, folder)
            seconds[name] += answer["seconds"]
            peak[name].append(answer["peak_mib"])
            losses[name] = answer["loss"]
        if max(losses.values()) - min(losses.values()) > TOLERANCE:
            sys.exit(f"the losses differ: {losses}")
    print(f"\nbatch {batch_size}, {options.rounds} rounds\n{'step':<36} {'seconds':>8} {'peak MiB':>9}")
    for name in names:
        print(f"{name:<36} {median(seconds[name]):>8.2f} {median(peak[name]):>9.0f}")
    print(f"{'':<66} {'time':>6} {'memory':>7}  meant to be at most")
    for (one, other), wanted in PAIRS.items():
        if one in seconds and other in seconds:
            ratios = [median(figures[one]) / median(figures[other]) for figures in (seconds, peak)]
            print(f"{f'{one} / {other}':<66} {ratios[0]:>5.2f}x {ratios[1]:>6.2f}x  {wanted}", flush=True)


def run_worker(options: argparse.Namespace, name: str, rows: int, folder: Path) -> dict[str, Any]:
    """A contender in a process of its own: seconds of each timed step, peak of all, loss of the first."""
    names = [*("--threads", "--steps"), *(["--retain"] if options.retain is not None else [])]
    arguments = [word for key in names for word in (key, str(getattr(options, key[2:])))]
    command = [sys.executable, __file__, *arguments, "--worker", name, str(rows), str(folder)]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer


def work(options: argparse.Namespace, name: str, rows: int, folder: Path) -> None:
    """Do the steps, one more than are timed, and print the figures as JSON."""
    import torch

    from vembed.utils.memory import MIB, peak_memory_mib, reset_peak_memory, used_memory_bytes

    torch.set_num_threads(options.threads)
    cpu = torch.device("cpu")
    make = their_step if name.startswith("sentence") else own_step
    step, parameters = make(name, rows, folder, options.retain)
    optimizer = torch.optim.AdamW([parameter for parameter in parameters if parameter.requires_grad], lr=1e-5)
    loaded = used_memory_bytes(cpu) / MIB
    reset_peak_memory(cpu)
    losses, seconds = [], []
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for _ in range(options.steps + 1):
        start = clock()
        losses.append(step())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(clock() - start)
    peak = peak_memory_mib(cpu) - loaded
    print(json.dumps({"seconds": seconds[1:], "peak_mib": peak, "loss": losses[0]}))


def own_step(name, rows, folder, retain):
    """vembed's step, and the model's parameters."""
    import torch

    from vembed.grad_cache.settings import GradCacheSettings
    from vembed.losses.factory import LossFactory
    from vembed.losses.settings import InfoNCESettings, LossSettings
    from vembed.model.modeling import VisualRetrievalModel
    from vembed.model.settings import ModelSettings
    from vembed.training.gradient_cache_trainer import GradientCacheTrainer
    from vembed.types import Batch, Inputs, Ragged, Targets

    settings = ModelSettings(**(LORA_SETTINGS if "LoRA" in name else {}), gradient_checkpointing=name == ALL)
    pair = VisualRetrievalModel.from_pretrained(str(folder), settings, temperature=TEMPERATURE, learn_temperature=False)
    texts, pictures = make_rows(rows)
    one_each = torch.ones(rows, dtype=torch.int64)
    numbers, no_groups = torch.arange(rows), torch.full((rows,), -1)
    targets = Targets(
        no_groups,
        numbers,
        no_groups,
        numbers + rows,
        Ragged(numbers, one_each),
        Ragged(numbers[:0], torch.zeros_like(numbers)),
    )
    queries = {"input_ids": Ragged(texts, one_each), "attention_mask": Ragged(torch.ones_like(texts), one_each)}
    documents = {"pixel_values": Ragged(pictures, one_each)}
    batch = Batch(Inputs(rows, queries), Inputs(rows, documents), targets)
    cache = {"use_gradient_cache": "cached" in name, "gradient_cache_chunk_size": CHUNK}
    cache |= {} if retain is None else {"gradient_cache_retain": retain}
    objective = LossFactory.create(LossSettings(), InfoNCESettings(loss_direction="query_to_document"))
    pair.model.train()
    trainer = GradientCacheTrainer(pair.model, pair.processor, objective, GradCacheSettings(**cache))
    return lambda: trainer.step(batch).loss, list(pair.model.parameters())


def their_step(name, rows, folder, _retain):
    """The step of sentence-transformers, and the model's parameters. Pixels are normalised beforehand, as it does."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    from vembed.model.modeling import VisualRetrievalModel
    from vembed.types import Inputs, Ragged

    model = SentenceTransformer(str(folder), device="cpu").train()
    texts, pictures = make_rows(rows)
    finish = VisualRetrievalModel.from_pretrained(str(folder)).processor.finish
    raw = Inputs(rows, {"pixel_values": Ragged(pictures, torch.ones(rows, dtype=torch.int64))})
    pixels = finish(raw).tensors["pixel_values"].values
    scale = {"scale": 1 / TEMPERATURE}
    if name == THEIR_CACHED:
        loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=CHUNK, **scale)
    else:
        loss = MultipleNegativesRankingLoss(model, **scale)

    def step():
        queries = {"input_ids": texts, "attention_mask": torch.ones_like(texts), "modality": "text"}
        value = loss([queries, {"pixel_values": pixels, "modality": "image"}], torch.arange(rows))
        value.backward()
        return value.item()

    return step, list(model.parameters())


def make_rows(rows: int):
    """Texts, int64 [rows, tokens], and pictures, uint8 [rows, 3, height, width], the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(2, 250, (rows, TOKENS), generator=generator)
    return texts, torch.randint(0, 256, (rows, 3, PIXELS, PIXELS), dtype=torch.uint8, generator=generator)


def write_model(folder: Path) -> None:
    """A folder that both libraries open."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from tests.tiny import tiny_clip
    from vembed.model.modeling import VisualRetrievalModel

    torch.manual_seed(0)
    tokenizer = CLIPProcessor.from_pretrained(tiny_clip(folder / "tiny")).tokenizer
    text = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    text |= {"vocab_size": 8192, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": TOKENS}
    vision = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
    vision |= {"image_size": PIXELS, "patch_size": 16}
    square = {"height": PIXELS, "width": PIXELS}
    pictures = CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=square)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=256)).save_pretrained(folder / "plain")
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder / "plain")
    VisualRetrievalModel.from_pretrained(str(folder / "plain")).save_pretrained(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
