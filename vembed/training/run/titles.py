"""What models are called in reports: hub ids as they are, folders by as much of their path as tells them apart."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vembed.errors import ModelError
from vembed.model.folder.find import SPEC_FILE, read_table
from vembed.model.settings import ModelSettings
from vembed.utils.untrusted import is_there, library_errors

# Names that every run gives its models: alone they say nothing of which run it was.
_OF_EVERY_RUN = re.compile(r"final|best|text|image|checkpoint-\d+")


def model_title(settings: ModelSettings) -> str:
    """A model's title: its name, or those of its towers, without the folders that its own lies in.

    Parts of the path are added before a name that every run has, and before names of two towers that would be equal.

    >>> model_title(ModelSettings(text_model_name="org/MiniLM", image_model_name="/tmp"))
    'org/MiniLM + tmp'
    """
    return " + ".join(_titles([name for name in _names(settings) if name]))


def tuned_before(settings: ModelSettings) -> str | None:
    """What training made a model of a run's folder, in words; None for one that no run made, or that cannot be read."""
    told = [_tuned_before(name) for name in _names(settings) if name]
    return "; ".join(words for words in told if words is not None) or None


def _names(settings: ModelSettings) -> Iterator[str | None]:
    yield from (settings.model_name, settings.text_model_name, settings.image_model_name)


def _titles(names: Sequence[str]) -> list[str]:
    """A title for each name; those of different folders differ."""
    paths = [Path(os.path.abspath(name)) if is_there(name) else None for name in names]  # noqa: PTH100 - no links
    sizes = [1 if path is None else _num_telling_parts(path) for path in paths]
    while True:
        ends = zip(names, paths, sizes, strict=True)
        titles = [name if path is None else _end(path, size) for name, path, size in ends]
        places = {
            title: {path for path, other in zip(paths, titles, strict=True) if other == title} for title in titles
        }
        unclear = [
            number
            for number, path in enumerate(paths)
            if path is not None and len(places[titles[number]]) > 1 and sizes[number] < len(path.parts)
        ]
        if not unclear:
            return titles
        for number in unclear:
            sizes[number] += 1


def _num_telling_parts(path: Path) -> int:
    """How many parts from a path's end on tell its model: up to the first that is not a name of every run."""
    own = [number for number, part in enumerate(reversed(path.parts), 1) if not _OF_EVERY_RUN.fullmatch(part)]
    return own[0] if own else 1


def _end(path: Path, num_parts: int) -> str:
    """The last parts of a path; its root, which is no name, only where there is nothing else."""
    return "/".join(path.parts[1:][-num_parts:]) or str(path)


def _tuned_before(name: str) -> str | None:
    try:
        with library_errors(ModelError, f"{name} was made by no run"):
            saved = read_table(Path(name) / SPEC_FILE)
            if saved is None:
                return None
            base, step = ModelSettings(**saved["base_model"]), int(saved["step"])
    except ModelError:
        return None
    return f"{_titles([name])[0]}, the base, was itself tuned before: from {model_title(base)}, to step {step:,}"
