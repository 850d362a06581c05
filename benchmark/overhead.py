"""Seconds of a save, of a start on 100,000 rows, and of a step: this checkout against another one, in one run.

    python benchmark/overhead.py --before ../other-checkout [--rounds 5]

Each figure is the median over rounds, in which the two checkouts take turns, each in a process of its own, of one
thread, that imports the package from there. A save is of a text tower of 40 million parameters with AdamW's moments; a
start ends when the first batch comes to the step, on JSONL with texts, with texts and pictures, and on Parquet; a step
is of a tiny CLIP on 64 rows of pictures, the loop around it included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parents[1]
_ROWS = 100_000
_PICTURES = 200


class _FirstBatch(BaseException):
    """Ends a run when its first batch has come."""


def _settings(folder: Path, model: str, data: str, **more: object) -> dict[str, object]:
    common = {"val_fraction": 0, "report": False, "mixed_precision": "no", "num_workers": 0}
    return {"model_name": model, "data_path": data, "output_dir": str(folder / "out"), **common, **more}


def _seconds_of_saves(folder: Path, fixed: Path) -> list[float]:
    from vembed.trainer import Trainer  # noqa: PLC0415 (from the checkout that is measured)
    from vembed.training.run.checkpoint import Checkpoints  # noqa: PLC0415 (as above)

    seconds: list[float] = []
    save = Checkpoints.save

    def timed(self: Checkpoints, *arguments: Any, **named: Any) -> Any:  # Any: as the checkout has it
        start = time.perf_counter()
        result = save(self, *arguments, **named)
        seconds.append(time.perf_counter() - start)
        return result

    Checkpoints.save = timed  # type: ignore[method-assign]
    settings = _settings(folder, str(fixed / "large"), str(fixed / "texts.jsonl"), retrieval_mode="t2t", batch_size=4)
    Trainer(**settings, max_steps=5, save_steps=1, save_total_limit=1).train()
    return seconds[1:]


def _seconds_of_steps(folder: Path, fixed: Path) -> list[float]:
    from vembed.trainer import Trainer  # noqa: PLC0415 (as above)

    settings = _settings(folder, str(fixed / "clip"), str(fixed / "pictures.jsonl"), batch_size=64)
    Trainer(**settings, max_steps=30, logging_steps=1, save_steps=1000).train()
    lines = map(json.loads, (folder / "out" / "metrics.jsonl").read_text().splitlines())
    return [64 / line["samples_per_second"] for line in lines if "samples_per_second" in line][5:]


def _seconds_to_start(data: str, mode: str, model: str) -> Callable[[Path, Path], list[float]]:
    def measure(folder: Path, fixed: Path) -> list[float]:
        from vembed.trainer import Trainer  # noqa: PLC0415 (as above)
        from vembed.training.gradient_cache_trainer import GradientCacheTrainer  # noqa: PLC0415 (as above)

        def stop(*_arguments: object, **_named: object) -> None:
            raise _FirstBatch

        GradientCacheTrainer.step = stop  # type: ignore[method-assign,assignment]
        settings = _settings(folder, str(fixed / model), str(fixed / data), retrieval_mode=mode, val_fraction=0.05)
        start = time.perf_counter()
        try:
            Trainer(**settings).train()
        except _FirstBatch:
            return [time.perf_counter() - start]
        raise AssertionError("there was no batch")

    return measure


MEASURES: Mapping[str, Callable[[Path, Path], list[float]]] = {
    "save": _seconds_of_saves,
    "step": _seconds_of_steps,
    "start, JSONL texts": _seconds_to_start("texts.jsonl", "t2t", "bert"),
    "start, JSONL pictures": _seconds_to_start("pictures.jsonl", "t2i", "clip"),
    "start, Parquet texts": _seconds_to_start("texts.parquet", "t2t", "bert"),
}


def write_inputs(folder: Path) -> None:
    """The models and the data."""
    import pyarrow as pa  # noqa: PLC0415 (the child that measures needs it not)
    import pyarrow.parquet as pq  # noqa: PLC0415 (as above)
    from transformers import BertConfig, BertModel  # noqa: PLC0415 (as above)

    from tests.pictures import make_picture  # noqa: PLC0415 (as above)
    from tests.tiny import tiny_bert, tiny_clip  # noqa: PLC0415 (as above)

    tiny_bert(folder / "bert")
    tiny_clip(folder / "clip")
    tiny_bert(folder / "large")
    config = BertConfig.from_pretrained(folder / "large")
    config.update({"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 12})
    BertModel(config).save_pretrained(folder / "large")
    for number in range(_PICTURES):
        make_picture(number).save(folder / f"{number}.png")
    texts = [{"query": f"what is thing number {n}", "positive": f"a thing with number {n}"} for n in range(_ROWS)]
    named = [{"query": f"a picture, caption {n}", "positive": f"{n % _PICTURES}.png"} for n in range(_ROWS)]
    for name, rows in (("texts", texts), ("pictures", named)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(texts), folder / "texts.parquet")


def measure(checkout: Path, name: str, fixed: Path) -> float:
    """The median seconds that a process of this checkout prints."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    command = [sys.executable, __file__, "--child", name, "--fixed", str(fixed)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=fixed)
    return statistics.median(json.loads(result.stdout.splitlines()[-1]))


def child(name: str, fixed: Path) -> None:
    """Measure in this process, and print the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(MEASURES[name](Path(folder), fixed)))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--fixed", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.fixed)
        return
    sys.path.insert(0, str(_HERE))
    from benchmark.machine import machine_in_words  # noqa: PLC0415 (needs the line above)

    print(machine_in_words())
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        for name in arguments.only:
            rounds = [
                [measure(root.resolve(), name, Path(folder)) for root in (arguments.before, _HERE)]
                for _ in range(arguments.rounds)
            ]
            before, after = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(
                f"{name:24} before {before:8.3f} s   after {after:8.3f} s   {100 * (after / before - 1):+5.1f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
