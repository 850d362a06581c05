"""What each loss is good for, on the emoji set of the demo: the same model, pairs, steps and batch size for all.

    python benchmark/loss_table.py                                         # the whole table, about half an hour
    python benchmark/loss_table.py --losses infonce supcon --steps 40
    python benchmark/loss_table.py --frozen --steps 600                    # both towers stay as they are: minutes

The demo's small text and image models are joined and trained on names -> pictures and on pictures -> the other artist's
pictures, from the same seed, each loss with its own defaults; every row has its emoji as `group`. Recall is that of the
test emoji, of concepts that no training row shows. Nothing is chosen by it: each figure is that of the last step.

A loss that goes by more than pairs is given it in each row (`with_others`):

    negatives   of two other emoji, drawn from the seed
    labels      1 for the row's own pictures, 0 for those of the others
    teacher     how alike the demo's text model (all-MiniLM-L6-v2) takes the two emoji's names to be; 1 for its own

Late interaction (`colbert`) needs another model and is not among them. A loss is one line of CONTENDERS.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vembed.demo.emoji import load_emoji
from vembed.demo.files import DemoFiles, prepare
from vembed.demo.rows import Row, write_rows
from vembed.entrypoints.evaluate_simple import evaluate_simple
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.trainer import Trainer

SETS = {"names_to_pictures": "t2i", "pictures_to_pictures": "i2i"}
FIGURES = (("t2i", "recall@1"), ("t2i", "recall@10"), ("i2i", "recall@1"), ("i2i", "recall@10"))
NUM_OTHERS = 2
OWN = 1.0  # the score of a row's own pictures, by label and by teacher

Score = Callable[[str, str], float]  # of two emoji, by their keys


@dataclass(frozen=True)
class Contender:
    """One line of the table: a loss with options, and what its rows hold beside pairs and groups."""

    loss_type: str
    options: Mapping[str, object] = field(default_factory=dict)
    rows: str = "pairs"

    @property
    def words(self) -> str:
        """The loss and its options, in Markdown."""
        return ", ".join([f"`{self.loss_type}`", *(f"`{key}: {value}`" for key, value in self.options.items())])


CONTENDERS = (
    Contender("infonce"),
    Contender("mrl"),
    Contender("supcon"),
    Contender("sigmoid"),
    Contender("hard_negative"),
    Contender("triplet"),
    Contender("cosent", {"cosent_pairs": "in_batch"}),
    Contender("arcface"),
    Contender("proxy_anchor"),
    Contender("infonce", rows="negatives"),
    Contender("contrastive", rows="labels"),
    Contender("cosent", rows="teacher"),
    Contender("margin_mse", rows="teacher"),
    Contender("distillation", rows="teacher"),
    Contender("preference", {"preference_infonce_weight": 1.0}, rows="negatives"),
)


@dataclass(frozen=True)
class Result:
    """A value in percent for each of FIGURES, and how long training took."""

    values: tuple[float, ...]
    seconds: float


def main() -> None:
    """Train every contender, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("output/loss-table"))
    parser.add_argument("--losses", nargs="+", choices=sorted({one.loss_type for one in CONTENDERS}))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frozen", action="store_true", help="train the heads alone, on features that are kept")
    arguments = parser.parse_args()
    chosen = [one for one in CONTENDERS if arguments.losses is None or one.loss_type in arguments.losses]
    files = prepare(arguments.folder)
    settings = run_settings(files, steps=arguments.steps, batch_size=arguments.batch_size, seed=arguments.seed)
    if arguments.frozen:
        cache = str(arguments.folder / "features")
        settings |= {"freeze": ["text", "vision"], "cache_frozen_features": True, "feature_cache_dir": cache}
        settings |= {"augment": "none", "learning_rate": 0}
    data = write_data(files, arguments.folder, {one.rows for one in chosen}, arguments.seed)
    results = [
        run(one, settings, data[one.rows], files, arguments.folder / f"run-{number}")
        for number, one in enumerate(chosen)
    ]
    print(f"{arguments.steps} steps of {arguments.batch_size} rows, seed {arguments.seed}, test emoji\n")
    print("\n".join(table(chosen, results, untrained(settings, files, arguments.folder / "untrained"))))


def run_settings(files: DemoFiles, *, steps: int, batch_size: int, seed: int) -> dict[str, object]:
    """What all runs share."""
    return {
        "text_model_name": str(files.text_model),
        "image_model_name": str(files.image_model),
        "freeze": ["text"],
        "image_size": 64,
        "image_root": str(files.train["names_to_pictures"].parent),
        "val_fraction": 0,
        "batch_size": batch_size,
        "gradient_cache_chunk_size": 4 * batch_size,
        "epochs": steps,
        "max_steps": steps,
        "learning_rate": 5e-4,
        "head_learning_rate": 2e-3,
        "augment": "light",
        "seed": seed,
        "save_steps": steps,
        "report": False,
        "overwrite_output_dir": True,
    }


def run(
    one: Contender, settings: Mapping[str, object], data: Sequence[Mapping[str, str]], files: DemoFiles, folder: Path
) -> Result:
    """Train one contender into `folder`; its figures."""
    started = time.perf_counter()
    result = Trainer({**settings, **one.options}).train(
        loss_type=one.loss_type, data_path=list(data), output_dir=str(folder)
    )
    seconds = time.perf_counter() - started
    return Result(figures(result.final, files), seconds)


def untrained(settings: Mapping[str, object], files: DemoFiles, folder: Path) -> Result:
    """The figures of the joined model as every run starts from it."""
    model = ModelSettings.model_validate({key: settings[key] for key in ModelSettings.model_fields if key in settings})
    seed = int(str(settings["seed"]))
    VisualRetrievalModel.from_pretrained(None, model, seed=seed).save_pretrained(folder)
    return Result(figures(folder, files), 0)


def figures(model: Path, files: DemoFiles) -> tuple[float, ...]:
    """A value in percent for each of FIGURES."""
    metrics = {mode: evaluate_simple(model, files.test[mode], mode) for mode in SETS.values()}
    return tuple(100 * metrics[mode][metric] for mode, metric in FIGURES)


def write_data(files: DemoFiles, folder: Path, kinds: Iterable[str], seed: int) -> dict[str, list[dict[str, str]]]:
    """Kind of rows -> its data sets, written into `folder` where they are not the demo's own."""
    keys = sorted(json.loads(line)["group"] for line in _lines(files.train["pictures_to_pictures"]))
    scores: dict[str, Callable[[], Score | None]] = {
        "negatives": lambda: None,
        "labels": lambda: lambda own, other: float(own == other),
        "teacher": lambda: text_teacher(files.text_model, keys),
    }
    data = {}
    for kind in kinds:
        paths = dict(files.train)
        if kind != "pairs":
            score = scores[kind]()
            for name in SETS:
                rows = [json.loads(line) for line in _lines(files.train[name])]
                paths[name] = folder / f"{name}_{kind}.jsonl"
                write_rows(with_others(rows, keys, score, seed), paths[name])
        data[kind] = [{"path": str(paths[name]), "retrieval_mode": mode} for name, mode in SETS.items()]
    return data


def with_others(rows: Sequence[Row], keys: Sequence[str], score: Score | None, seed: int) -> list[Row]:
    """The rows with the pictures of two other emoji as negatives, by the artist of the row's last picture, and scores.

    keys: of all emoji of the training split; no row's negative is a picture of its own emoji.
    """
    draw = random.Random(seed)
    found = []
    for row in rows:
        positives = row["positive"] if isinstance(row["positive"], list) else [row["positive"]]
        own = {Path(str(picture)).stem for picture in positives}
        others = draw.sample([key for key in keys if key not in own], NUM_OTHERS)
        artist = Path(str(positives[-1])).parent
        new: Row = {**row, "negatives": [str(artist / f"{other}.png") for other in others]}
        if score is not None:
            new["score"] = [OWN] * len(positives) + [score(str(row["group"]), other) for other in others]
        found.append(new)
    return found


def text_teacher(model: Path, keys: Sequence[str]) -> Score:
    """The cosine of two emoji's names by a text model."""
    names = {emoji.key: emoji.name for emoji in load_emoji()}
    embeddings = VisualRetrievalModel.from_pretrained(str(model)).get_text_features([names[key] for key in keys])
    vectors = dict(zip(keys, embeddings, strict=True))
    return lambda own, other: round(float(vectors[own] @ vectors[other]), 4)


def table(contenders: Sequence[Contender], results: Sequence[Result], base: Result) -> list[str]:
    """A Markdown table, one line per contender after the untrained model's; the best value of each column in bold."""
    metrics = [f"{mode} {metric.replace('recall@', 'R@')}" for mode, metric in FIGURES]
    best = [max(values) for values in zip(*(result.values for result in results), strict=True)]
    lines = [f"| loss | rows hold | {' | '.join(metrics)} | training |", "|---" * (len(FIGURES) + 3) + "|"]
    lines.append(f"| untrained | | {' | '.join(f'{value:.1f}' for value in base.values)} | |")
    for one, result in zip(contenders, results, strict=True):
        values = [
            f"**{value:.1f}**" if value == top else f"{value:.1f}"
            for value, top in zip(result.values, best, strict=True)
        ]
        lines.append(f"| {one.words} | {one.rows} | {' | '.join(values)} | {result.seconds:.0f} s |")
    return lines


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    main()
