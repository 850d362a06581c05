"""How near the memory estimate of `vembed train --dry_run` comes to the measured peak, on three configs.

    python benchmark/memory_estimate.py [--steps 4] [--only clip|bert|composed]

clip: 20 M parameters, random, 112 px, batch 64 in chunks of 16. bert: 20 M, random, text pairs, batch 128 at once.
composed: MiniLM + EfficientNet-lite0 from the demo's packages, 64 px, batch 96 in chunks of 32. The estimate and the
training have a process of their own. Exits with 1 when an estimate is further than 30 % from its peak.
"""
# ruff: noqa: PLC0415 - the parent process imports nothing heavy

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machine import machine_in_words

TOLERANCE = 0.3
WORDS = "red blue green small large round square bright dark picture sign shape cat dog tree house over under".split()
Settings = dict[str, Any]


def main() -> None:
    """Estimate and measure each config, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", choices=CONFIGS)
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "SETTINGS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker, steps=options.steps)
        return
    print(machine_in_words())
    print(f"{'config':<10} {'estimated MiB':>14} {'measured MiB':>13} {'error':>7}")
    worst = 0.0
    for name in [options.only] if options.only else CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            settings = CONFIGS[name](Path(folder))
            estimated = ask("estimate", settings, options.steps)
            measured = ask("measure", settings, options.steps)
        error = estimated["mib"] / measured["mib"] - 1
        worst = max(worst, abs(error))
        print(f"{name:<10} {estimated['mib']:>14,.0f} {measured['mib']:>13,.0f} {error:>+7.0%}   {estimated['parts']}")
    sys.exit(worst > TOLERANCE)


def ask(kind: str, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What a fresh process finds."""
    command = [sys.executable, __file__, "--steps", str(steps), "--worker", kind, json.dumps(settings)]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer


def work(kind: str, settings: str, *, steps: int) -> None:
    """Print the estimate, or the peak of some steps, as JSON."""
    from vembed.trainer import Trainer

    trainer = Trainer(json.loads(settings))
    if kind == "measure":
        print(json.dumps({"mib": trainer.measure(steps).peak_memory_mib}))
        return
    memory = trainer.overview().memory
    parts = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in memory.parts.items())
    print(json.dumps({"mib": memory.total_mib, "parts": parts}))


def clip(folder: Path) -> Settings:
    """A CLIP of 20 M parameters with random weights, and pictures of 112 px."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from tests.tiny import tiny_clip

    tokenizer = AutoTokenizer.from_pretrained(tiny_clip(folder / "tiny"), model_max_length=32)
    sizes = {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 8, "num_attention_heads": 5}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**sizes, "image_size": 112, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=256))
    model.save_pretrained(folder / "model")
    size = {"height": 112, "width": 112}
    pictures = CLIPImageProcessor(size={"shortest_edge": 112}, crop_size=size)
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder / "model")
    return {
        "model_name": str(folder / "model"),
        "data_path": pairs(folder, 200, with_pictures=True),
        "batch_size": 64,
        "gradient_cache_chunk_size": 16,
        **shared(folder),
    }


def bert(folder: Path) -> Settings:
    """A BERT of 20 M parameters with random weights, one chunk of 128 text pairs."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from tests.tiny import tiny_bert

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert(folder / "tiny"), model_max_length=64)
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
    model = BertModel(BertConfig(vocab_size=16000, max_position_embeddings=64, **sizes), add_pooling_layer=False)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {
        "model_name": str(folder / "model"),
        "data_path": pairs(folder, 400, with_pictures=False),
        "retrieval_mode": "t2t",
        "batch_size": 128,
        "use_gradient_cache": False,
        **shared(folder),
    }


def composed(folder: Path) -> Settings:
    """The demo's two models, the text tower frozen."""
    from vembed.demo.models import write_efficientnet, write_minilm

    write_minilm(folder / "text")
    write_efficientnet(folder / "image")
    return {
        "text_model_name": str(folder / "text"),
        "image_model_name": str(folder / "image"),
        "image_size": 64,
        "freeze": ["text"],
        "data_path": pairs(folder, 300, with_pictures=True),
        "batch_size": 96,
        "gradient_cache_chunk_size": 32,
        **shared(folder),
    }


def shared(folder: Path) -> Settings:
    """What all configs have in common."""
    return {"output_dir": str(folder / "run"), "val_fraction": 0.0, "device": "cpu"}


def pairs(folder: Path, num_rows: int, *, with_pictures: bool) -> str:
    """Texts of about 30 tokens with pictures, or with other texts."""
    from tests.pictures import write_jsonl, write_picture

    draw = random.Random(0)

    def text(number: int) -> str:
        return f"{number} " + " ".join(draw.choices(WORDS, k=20))

    def document(number: int) -> str:
        if not with_pictures:
            return text(-number)
        write_picture(folder / f"{number}.png", number, size=(160, 120))
        return f"{number}.png"

    rows = [{"query": text(number), "positive": document(number)} for number in range(num_rows)]
    return write_jsonl(folder / "pairs.jsonl", rows)


CONFIGS: dict[str, Callable[[Path], Settings]] = {"clip": clip, "bert": bert, "composed": composed}

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
