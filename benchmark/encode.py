"""Encoding speed of vembed against sentence-transformers on the same folder: mixed-length texts, and image files.

    python benchmark/encode.py [--texts 1000] [--images 256] [--threads 1]

Texts: log-uniform lengths from 8 to 256 tokens, shuffled, by all-MiniLM-L6-v2 of the `demo` extra. Images: JPEG and PNG
files of 640 x 480 by a CLIP of random weights that has the size of ViT-S/32. vembed runs with its default batch_size,
sentence-transformers with 32, 64 and 128; the ratio is against the best of them. Each contender has a process of its
own that has opened the folder, and they take turns. Times: processor time for texts on one thread, whatever else the
machine does; else time on the clock, for which the machine has to be idle: threads wait for each other, and images are
decoded beside the model. Embeddings must be equal.
"""
# ruff: noqa: PLC0415 - the parent process imports nothing heavy

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import machine_in_words
from mixed_texts import write_minilm_and_draw

BATCH_SIZES = (32, 64, 128)
CONTENDERS = ("vembed", *(f"sentence-transformers, {size}" for size in BATCH_SIZES))
TOLERANCE = 1e-5
PIXELS, PICTURE = 224, (640, 480)


def main() -> None:
    """Write both folders, run the contenders in turns, print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="of torch; images are decoded in further ones")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns of each, of which the fastest counts")
    parser.add_argument("--only", choices=("texts", "images"))
    parser.add_argument("--worker", nargs=3, metavar=("CONTENDER", "KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker, threads=options.threads)
        return
    print(machine_in_words())
    print(f"threads: {options.threads}, turns: {options.repeats}")
    print(f"{'items':<14} {'contender':<28} {'seconds':>8} {'items/s':>8} {'time':>6}")
    for kind, number, write in (("texts", options.texts, write_texts), ("images", options.images, write_images)):
        if number and options.only in (None, kind):
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), number)
                compare(options, kind, number, Path(folder))


def compare(options: argparse.Namespace, kind: str, number: int, folder: Path) -> None:
    """Print a line per contender, the time in relation to vembed's, and the ratio of the best of the others."""
    import numpy as np

    workers = {name: start_worker(options, name, kind, folder) for name in CONTENDERS}
    seconds: dict[str, float] = {}
    for turn in range(options.repeats + 1):
        for name, worker in workers.items():
            spent = ask(worker)
            seconds[name] = min(seconds.get(name, math.inf), spent) if turn else math.inf
    for worker in workers.values():
        worker.communicate()
    embeddings = [np.load(folder / f"{name}.npy") for name in CONTENDERS]
    difference = max(float(np.abs(theirs - embeddings[0]).max()) for theirs in embeddings[1:])
    if difference > TOLERANCE:
        sys.exit(f"the embeddings of {kind} differ by {difference}")
    own = seconds[CONTENDERS[0]]
    for name in CONTENDERS:
        figures = f"{seconds[name]:>8.2f} {number / seconds[name]:>8.1f} {seconds[name] / own:>5.2f}x"
        print(f"{f'{number} {kind}':<14} {name:<28} {figures}")
    best = min(seconds[name] for name in CONTENDERS[1:])
    print(
        f"{kind}: {best / own:.2f} times as fast as the best of them; largest difference {difference:.0e}", flush=True
    )


def start_worker(options: argparse.Namespace, name: str, kind: str, folder: Path) -> "subprocess.Popen[str]":
    """A process that encodes everything once for each line that it reads."""
    command = [sys.executable, __file__, "--threads", str(options.threads), "--worker", name, kind, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: "subprocess.Popen[str]") -> float:
    """The seconds of one turn."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("encode\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit("a worker ended before its time; its message is above")
    return float(json.loads(line))


def work(name: str, kind: str, folder: str, *, threads: int) -> None:
    """Encode once for each line on standard input and answer with the seconds; the embeddings go into a file."""
    import time

    import numpy as np
    import torch

    torch.set_num_threads(threads)
    items = json.loads(Path(folder, "items.json").read_text())
    encode = encoder(name, kind, Path(folder, "model"))
    clock = time.process_time if kind == "texts" and threads == 1 else time.perf_counter
    for _ in sys.stdin:
        start = clock()
        vectors = encode(items)
        print(json.dumps(clock() - start), flush=True)
        np.save(Path(folder, f"{name}.npy"), vectors)


def encoder(name, kind, folder):
    """A function from texts or paths to unit vectors [items, dim]."""
    if name == "vembed":
        from vembed import Predictor

        predictor = Predictor(str(folder), device="cpu")
        return predictor.encode_text if kind == "texts" else predictor.encode_image
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    batch_size = int(name.rpartition(" ")[2])
    return lambda items: model.encode(items, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)


def write_texts(folder: Path, number: int) -> None:
    """all-MiniLM-L6-v2, and texts of whole words of its vocabulary."""
    (folder / "items.json").write_text(json.dumps(write_minilm_and_draw(folder / "model", number)))


def write_images(folder: Path, number: int) -> None:
    """A CLIP with a vision tower like ViT-S/32 and random weights, and as many JPEG as PNG files."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from tests.pictures import write_picture
    from tests.tiny import tiny_clip

    processor = CLIPProcessor.from_pretrained(tiny_clip(folder / "tiny"))
    vision = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
    vision |= {"image_size": PIXELS, "patch_size": 32}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": len(processor.tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    square = {"height": PIXELS, "width": PIXELS}
    pictures = CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=square)
    save(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=384)), processor, pictures, folder)
    paths = [str(folder / f"{index}.{('jpg', 'png')[index % 2]}") for index in range(number)]
    for index, path in enumerate(paths):
        write_picture(Path(path), index, size=PICTURE)
    (folder / "items.json").write_text(json.dumps(paths))


def save(model, processor, pictures, folder):
    """Write the folder by vembed, with the files that sentence-transformers reads."""
    from transformers import CLIPProcessor

    from vembed.model.modeling import VisualRetrievalModel

    model.save_pretrained(folder / "plain")
    CLIPProcessor(image_processor=pictures, tokenizer=processor.tokenizer).save_pretrained(folder / "plain")
    VisualRetrievalModel.from_pretrained(str(folder / "plain")).save_pretrained(folder / "model")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
