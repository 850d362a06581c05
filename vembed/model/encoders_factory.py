"""One tower by itself as an embedding model: texts to vectors, or images to vectors.

    texts = SimpleTextEncoder.from_pretrained("output/final")     # of a composed model: its text tower
    vectors = texts.encode(["a red shoe"])                        # [texts, width]

For features of a tower before heads are trained on it, to use a tuned tower of a composed model elsewhere, or to fill a
vector store of one kind.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from torch import Tensor

from vembed.errors import ModelError
from vembed.model.detect import detect
from vembed.model.families.registry import family_named, hub_id
from vembed.model.folder.find import weights_folder
from vembed.model.items import Picture
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec
from vembed.types import Side

Encoder = TypeVar("Encoder", bound="_SimpleEncoder")


class _SimpleEncoder:
    """A model with one tower, for texts or for images."""

    tower: ClassVar[Tower]

    def __init__(self, model: VisualRetrievalModel) -> None:
        spec = model.spec
        if spec.towers != (self.tower,) or spec.scoring != "single":
            raise ModelError(
                f"{type(self).__name__}: a {spec.family} model is more than one {self.tower} tower that gives a vector"
                f" per item; it reads {spec.reads()}. Use VisualRetrievalModel or Predictor"
            )
        self.model = model

    @classmethod
    def from_pretrained(cls: type[Encoder], name: str | Path, settings: ModelSettings | None = None) -> Encoder:
        """The encoder in a folder or behind a hub id; of a composed checkpoint, its tower without the head.

        Raises ModelError for a model that is no single tower of this kind.
        """
        settings = settings or ModelSettings()
        spec = detect(str(name), settings).spec
        subfolder = family_named(spec.family).subfolders.get(cls.tower)
        if subfolder is not None:
            name = weights_folder(hub_id(str(name)), settings, settings.revision) / subfolder
            settings = settings.model_copy(update={"revision": None, **cls.tower_settings(spec)})
        return cls(VisualRetrievalModel.from_pretrained(str(name), settings))

    @classmethod
    def tower_settings(cls, spec: ModelSpec) -> dict[str, object]:
        """The settings of this tower in a composed model; a folder with adapters only does not have them.

        Subclasses may override it.
        """
        return {"image_size": spec.image_size}

    @property
    def width(self) -> int:
        """Number of components of a vector."""
        return self.model.model.dim


class SimpleTextEncoder(_SimpleEncoder):
    """A text model alone."""

    tower: ClassVar[Tower] = "text"

    @classmethod
    def tower_settings(cls, spec: ModelSpec) -> dict[str, object]:
        """Pooling, prompts and length of the text tower in a composed model."""
        keys = ("query_prompt", "document_prompt", "max_length")
        return {"pooling": spec.pooling["text"], **{key: getattr(spec, key) for key in keys}}

    def encode(self, texts: Sequence[str], *, side: Side = "query", batch_size: int = 64) -> Tensor:
        """Vectors of texts [texts, width] on the CPU in float32; `side` chooses the prompt."""
        return self.model.get_text_features(texts, side=side, batch_size=batch_size)


class SimpleImageEncoder(_SimpleEncoder):
    """An image model alone."""

    tower: ClassVar[Tower] = "vision"

    def encode(self, images: Sequence[Picture], *, batch_size: int = 64) -> Tensor:
        """Vectors of image files (paths), encoded bytes or PIL images [images, width] on the CPU in float32."""
        return self.model.get_image_features(images, batch_size=batch_size)
