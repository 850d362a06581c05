"""Tunes a small text model and a small image model on the demo's emoji with pytorch-lightning and gradient caching.

    pip install "vembed-factory[lightning,demo]"
    python examples/lightning_emoji.py [--folder output/lightning] [--devices 2] [--manual] [--max_steps 2]

Prints recall of emoji of concepts that training never saw, found by their names, before and after.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from pytorch_lightning import LightningDataModule, seed_everything
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader

from vembed.data.dataset import VisualRetrievalDataset, load_datasets
from vembed.data.settings import DataSettings
from vembed.demo.files import prepare
from vembed.evaluation.evaluator import Evaluator
from vembed.evaluation.relevance import retrieval_set
from vembed.evaluation.settings import EvaluationSettings
from vembed.grad_cache.pytorch_lightning.pl_example import TrainOptions, train
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.processors.base import ItemProcessor
from vembed.model.settings import ModelSettings
from vembed.types import Example, Inputs

NAMES_TO_PICTURES = DataSettings(retrieval_mode="t2i")


class EmojiData(LightningDataModule):
    """Batches of names and their pictures, prepared by a model's processor."""

    def __init__(self, rows: Path, processor: ItemProcessor, batch_size: int) -> None:
        super().__init__()
        self.dataset = load(rows)
        self.processor = processor
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        """Shuffled; Lightning shares it out among devices."""
        return DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=self.collate,
            num_workers=0,
        )

    def collate(self, examples: list[Example]) -> tuple[Inputs, Inputs]:
        """Queries and documents, pictures still as whole numbers."""
        queries = self.processor.prepare([example.query for example in examples], "query")
        documents = self.processor.prepare([example.positives[0] for example in examples], "document")
        return queries, documents


def load(rows: Path) -> VisualRetrievalDataset:
    """The examples in a file of the demo."""
    (dataset,) = load_datasets(str(rows), NAMES_TO_PICTURES)
    return dataset


def recall(pair: VisualRetrievalModel, rows: Path) -> str:
    """Recall at 1 and 10, in percent."""
    sets = [retrieval_set(load(rows), NAMES_TO_PICTURES)]
    metrics = Evaluator(sets, EvaluationSettings(eval_k=(1, 10))).measure(pair).sets[0].metrics
    return f"recall@1 {100 * metrics['recall@1']:.1f}, recall@10 {100 * metrics['recall@10']:.1f}"


def main() -> None:
    """Prepare, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("output/lightning"))
    parser.add_argument("--batch_size", type=int, default=192)
    for option in fields(TrainOptions):
        kind = {"action": "store_true"} if option.type is bool else {"type": type(option.default)}
        parser.add_argument(f"--{option.name}", default=option.default, **kind)
    given = vars(parser.parse_args())
    folder, batch_size = given.pop("folder"), given.pop("batch_size")
    options = TrainOptions(**given)
    seed_everything(0)
    files = prepare(folder)
    pair = VisualRetrievalModel.from_pretrained(
        settings=ModelSettings(
            text_model_name=str(files.text_model),
            image_model_name=str(files.image_model),
            freeze=("text",),  # a good text model; its new head still learns
            image_size=64,
        )
    )
    data = EmojiData(files.train["names_to_pictures"], pair.processor, batch_size // options.devices)
    before = recall(pair, files.test["t2i"]) if rank_zero_only.rank == 0 else ""
    trainer = train(pair.model, pair.processor.finish, data, options, folder)
    if trainer.is_global_zero:
        print(f"{trainer.global_step} steps, last loss {float(trainer.callback_metrics['train_loss']):.3f}")
        print(f"before: {before}")
        print(f"after:  {recall(pair, files.test['t2i'])}")
        pair.save_pretrained(folder / "tuned")


if __name__ == "__main__":
    main()
