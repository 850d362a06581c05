"""The work of `vembed models`: list the families of models, or load one model and show how it is used.

vembed models
vembed models --check output/final
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vembed.entrypoints.load_options import LoadOptions
from vembed.errors import ModelError
from vembed.model.families.family import Family
from vembed.model.families.registry import families
from vembed.model.spec import ModelSpec, reads_in_words
from vembed.utils.untrusted import library_errors

if TYPE_CHECKING:
    from torch import Tensor

    from vembed.model.modeling import VisualRetrievalModel

_INDENT = 16
_WIDTH = 100
_TEXT = "a red square"
_PICTURE_SIDE = 64
_SHOWN_NUMBERS = 4


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """The model to load, and how."""

    model: str
    load_options: LoadOptions = field(default_factory=LoadOptions)


def listing(plugins: Sequence[str] = ()) -> str:
    """Every family: what it reads, its names and presets, the architectures that it opens. Imports no torch."""
    _import_plugins(LoadOptions(plugins=plugins))
    blocks = [list(_family_lines(family)) for family in families()]
    head = "model_name may be a hub id, a folder, a checkpoint of a run, or one of the short names below."
    return "\n\n".join([head, *("\n".join(lines) for lines in blocks)])


def check(request: CheckRequest) -> str:
    """Load a model, and show its spec and what it makes of one text and one picture.

    Raises ModelError or CheckpointError for a model that cannot be used, and says why.
    """
    settings = request.load_options.settings
    _import_plugins(request.load_options)
    from vembed.model.modeling import VisualRetrievalModel  # noqa: PLC0415 (the listing needs no torch)

    model = VisualRetrievalModel.from_pretrained(request.model, settings)
    with library_errors(ModelError, f"model {request.model!r} opens, but cannot embed"):
        return "\n".join([*_model_lines(request.model, model), "", *_embedding_lines(model)])


def _import_plugins(load_options: LoadOptions) -> None:
    if load_options.plugins:
        load_options.import_plugins("command line")


def _family_lines(family: Family) -> Iterator[str]:
    yield f"{family.name}  (preset {family.preset})"
    yield from _entry("reads", [reads_in_words(family.towers)])
    yield from _entry("encoder_mode", [family.name, *family.aliases])
    yield from _entry("short names", [f"{name} = {target}" for name, target in family.model_names.items()])
    tested = [name for name, architecture in family.architectures.items() if architecture.tested]
    yield from _entry("tested with", tested)
    others = [name for name in family.architectures if name not in tested]
    yield from _entry("opens too", others + (["models that bring their own code"] if family.own_code else []))
    yield from _entry("own settings", sorted(family.keys))


def _entry(title: str, words: Sequence[str]) -> Iterator[str]:
    """A title and its words, comma-separated and wrapped; nothing without words."""
    if not words:
        return
    line = f"  {title}".ljust(_INDENT)
    for number, word in enumerate(words):
        piece = word if number + 1 == len(words) else f"{word}, "
        if len(line) + len(piece.rstrip()) > _WIDTH and line.strip() not in ("", title):
            yield line.rstrip()
            line = " " * _INDENT
        line += piece
    yield line


def _model_lines(name: str, model: "VisualRetrievalModel") -> Iterator[str]:
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    rows = [
        ("model", name),
        ("known by", model.reason),
        ("parameters", f"{parameters:,}"),
        ("embedding", f"{model.model.dim} numbers per {_unit_of(model.spec)}"),
        *((key, _shown(value)) for key, value in model.spec.model_dump().items()),
    ]
    width = max(len(key) for key, _ in rows)
    for key, words in rows:
        yield f"{key:<{width}}  {words}"


def _unit_of(spec: ModelSpec) -> str:
    return "item" if spec.scoring == "single" else "token"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else repr(value) if isinstance(value, str) else str(value)


def _embedding_lines(model: "VisualRetrievalModel") -> Iterator[str]:
    """The embeddings of a text as a query and of a picture as a document, as far as the model reads them."""
    import PIL.Image  # noqa: PLC0415 (as above)

    from vembed.scoring import get_scorer  # noqa: PLC0415 (as above)
    from vembed.types import ImageSource, Item  # noqa: PLC0415 (as above)

    picture = PIL.Image.new("RGB", (_PICTURE_SIDE, _PICTURE_SIDE), "red")
    given = [("text", f"the text {_TEXT!r}", Item(text=_TEXT), "query")] if model.spec.supports(["text"]) else []
    if model.spec.supports(["image"]):
        given.append(("image", "a red picture", Item(images=(ImageSource(pil=picture),)), "document"))
    embedded = []
    for _, words, item, side in given:
        embeddings = model.encode([item], side="query" if side == "query" else "document")
        embedded.append(embeddings)
        yield f"{words}, as a {side}: {_vector_words(embeddings.vectors[0])}"
    if len(embedded) == 2:
        score = get_scorer(model.spec.similarity, model.spec.scoring)(*embedded).item()
        yield f"their score: {score:.4f}"


def _vector_words(vectors: "Tensor") -> str:
    """[dim] or [tokens, dim] in words."""
    first = vectors if vectors.ndim == 1 else vectors[0]
    numbers = ", ".join(f"{number:.4f}" for number in first[:_SHOWN_NUMBERS].tolist())
    count = "one vector" if vectors.ndim == 1 else f"{len(vectors)} vectors"
    return f"{count} of {first.shape[0]} numbers, length {float(first.norm()):.4f} [{numbers}, ...]"
