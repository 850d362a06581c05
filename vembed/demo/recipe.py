"""The demo's YAML: the kind a user would write for the same task, with the reasons beside the values."""

from pathlib import Path

import yaml

from vembed.demo.files import DemoFiles

EPOCHS = 6

_RECIPE = """\
# Search emoji by name, by keyword, by picture, and by a picture with what to change about it: a small text model and a
# small image model, joined and tuned.
text_model_name: {text_model}
image_model_name: {image_model}
freeze: [text]               # a good text model, and 1,434 emoji would only spoil it; its new head still learns
image_size: 64               # the pictures are 72 pixels wide
fusion: gated                # how a picture and "change to dark skin tone" become one query

data_path:                   # each batch comes from one of these; weights: how often per epoch
  - {{name: names, path: {names_to_pictures}, retrieval_mode: t2i}}
  - {{name: pictures, path: {pictures_to_pictures}, retrieval_mode: i2i, weight: 0.5}}
  - {{name: keywords, path: {keywords_to_names}, retrieval_mode: t2t, weight: 0.25}}
  - {{name: changes, path: {changes_to_pictures}, retrieval_mode: m2i, weight: 0.25}}
  - {{name: changed_names, path: {changes_to_names}, retrieval_mode: m2t, weight: 0.1}}
num_hard_negatives: 2        # of the query's own picture and what else it becomes, so that neither is found instead
val_data_path:               # chooses the best checkpoint
{val}
test_data_path:              # emoji of concepts that training and validation never saw: the headline figures
{test}

batch_size: 48
gradient_cache_chunk_size: 192   # a batch and all of its pictures in one chunk: no second forward
epochs: {epochs}
learning_rate: 5e-4          # the image model: a small network that is far from emoji
head_learning_rate: 2e-3     # the projections that join them start from nothing
temperature: 0.07
augment: light
seed: 0
output_dir: {run}
"""


def write_recipe(files: DemoFiles, folder: Path, *, epochs: int) -> Path:
    """Write `folder`/emoji.yaml, which trains into `folder`/run; the file's path."""
    text = _RECIPE.format(
        text_model=_quoted(files.text_model),
        image_model=_quoted(files.image_model),
        val=_entries(files.val),
        test=_entries(files.test),
        epochs=epochs,
        run=_quoted(folder / "run"),
        **{name: _quoted(path) for name, path in files.train.items()},
    )
    path = folder / "emoji.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _entries(paths: dict[str, Path]) -> str:
    return "\n".join(f"  - {{path: {_quoted(path)}, retrieval_mode: {mode}}}" for mode, path in paths.items())


def _quoted(path: Path) -> str:
    """The path as YAML takes it, in quotes where it must be."""
    return yaml.safe_dump(str(path), width=10_000, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
