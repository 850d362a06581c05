"""VisualRetrievalModel: a model with the processor that feeds it. Trainer, Predictor and evaluation each hold one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vembed.errors import ModelError
from vembed.model.adapters.base_model import AdapterBase
from vembed.model.base import BaseEmbeddingModel
from vembed.model.checkpoint import (
    ModelSource,
    adapter_bases,
    find_folders,
    load_learned,
    write_checkpoint,
)
from vembed.model.detect import detect
from vembed.model.encoding import EncodeOptions, Features, encode_items
from vembed.model.families.components import MODEL_CLASSES
from vembed.model.folder.damage import MODEL_FILES, files_to_blame
from vembed.model.heads import load_or_create_heads
from vembed.model.items import Picture, image_source
from vembed.model.learning.dtypes import cast_layer_inputs
from vembed.model.learning.lora import has_adapters
from vembed.model.learning.scale import set_temperature
from vembed.model.learning.set_up import set_up_learning
from vembed.model.processors.base import ItemProcessor
from vembed.model.processors.checks import check_fit
from vembed.model.processors.loading import processor_in
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import Embeddings, Item, Side


class VisualRetrievalModel:
    """Model, processor and spec of one checkpoint."""

    def __init__(
        self,
        model: BaseEmbeddingModel,
        processor: ItemProcessor,
        base: ModelSource | None = None,
        reason: str = "",
        adapter_bases: Mapping[str, AdapterBase] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.base = base or ModelSource()
        self.reason = reason
        self.adapter_bases = adapter_bases

    @classmethod
    def from_pretrained(
        cls,
        name: str | None = None,
        settings: ModelSettings | None = None,
        *,
        temperature: float | None = None,
        learn_temperature: bool = True,
        seed: int = 42,
    ) -> "VisualRetrievalModel":
        """The model of a folder or hub id (default: of the names in the settings), prepared for training as set.

        temperature: initial value; default: the checkpoint's, else 0.05. New parameters are drawn from `seed`.
        Raises ModelError, CheckpointError.
        """
        settings = settings or ModelSettings()
        name = name if name is not None else settings.model_name
        detected = detect(name, settings)
        shown = name if name is not None else f"{settings.text_model_name} + {settings.image_model_name}"
        with files_to_blame(shown, f"model {shown!r} cannot be opened; its files do not fit together", MODEL_FILES):
            folders = find_folders(name, settings, detected.spec)
            processor = processor_in(folders, detected.spec, settings)
            model = MODEL_CLASSES.get(detected.spec.family).load(detected.spec, folders, settings, seed)
            load_or_create_heads(model, folders.root, seed)
            processor.unreadable_tokens = check_fit(model, processor, shown)
        if temperature is not None:
            set_temperature(model, temperature)
        model.logit_scale.requires_grad_(learn_temperature)
        set_up_learning(model, settings, seed)
        pair = (settings.text_model_name, settings.image_model_name) if name is None else (None, None)
        source = ModelSource(name, settings.revision, *pair)
        cast_layer_inputs(model)
        bases = adapter_bases(model, source, folders, settings) if has_adapters(model) else None
        return cls(model.eval(), processor, source, detected.reason, bases)

    @property
    def spec(self) -> ModelSpec:
        """How the model is used."""
        return self.model.spec

    def with_image_limit(self, max_image_pixels: int) -> "VisualRetrievalModel":
        """The same model, refusing images of more pixels."""
        return self.with_processor(self.processor.with_image_limit(max_image_pixels))

    def with_processor(self, processor: ItemProcessor) -> "VisualRetrievalModel":
        """The same model, fed by another processor."""
        return VisualRetrievalModel(self.model, processor, self.base, self.reason, self.adapter_bases)

    def save_pretrained(
        self, folder: str | Path, extra: Mapping[str, Any] | None = None, *, merge_adapters: bool = True
    ) -> None:  # Any: JSON
        """Write a folder that from_pretrained, transformers and, if it supports the model, sentence-transformers load.

        merge_adapters: into the weights; else adapters are saved alone, with the name of their base model. extra: kept
        in vembed_config.json. Raises CheckpointError.
        """
        write_checkpoint(
            Path(folder),
            self.model,
            self.processor,
            base=self.base,
            adapter_bases=None if merge_adapters else self.adapter_bases,
            extra=extra or {},
        )

    def load_adapters(self, folder: Path) -> None:
        """Load adapters and heads that were saved with `merge_adapters=False`. Raises CheckpointError."""
        load_learned(self.model, folder)

    def encode(
        self,
        items: Sequence[Item],
        *,
        side: Side = "document",
        batch_size: int = 64,
        width: int | None = None,
        features: Features = "model",
    ) -> Embeddings:
        """Embeddings [items, dim] on the CPU in float32, in the order of the items, whatever the batch size.

        width: keep that many numbers of each vector, normalised again. features "tower": without added heads.
        """
        return encode_items(self.model, self.processor, items, EncodeOptions(side, batch_size, width, features))

    def get_text_features(self, texts: Sequence[str], *, side: Side = "query", batch_size: int = 64) -> Tensor:
        """Embeddings of texts [texts, dim]. Raises ModelError for a model with a vector per token: use `encode`."""
        self._refuse_tokens()
        items = [Item(text=text) for text in texts]
        return self.encode(items, side=side, batch_size=batch_size).vectors

    def get_image_features(self, images: Sequence[Picture], *, side: Side = "document", batch_size: int = 64) -> Tensor:
        """Embeddings of image files (paths), encoded bytes or PIL images [images, dim]. Raises as get_text_features."""
        self._refuse_tokens()
        items = [Item(images=(image_source(image),)) for image in images]
        return self.encode(items, side=side, batch_size=batch_size).vectors

    def _refuse_tokens(self) -> None:
        if self.spec.scoring != "single":
            raise ModelError(f"a {self.spec.family} model has a vector per token; `encode` gives them, with their mask")

    def check_mode(self, retrieval_mode: str) -> None:
        """Raise ModelError when a side of the retrieval mode (t2i, i2i, ...) cannot be embedded by this model."""
        if not self.spec.supports_mode(retrieval_mode):
            raise ModelError(
                f"retrieval_mode {retrieval_mode} cannot work: a {self.spec.family} model reads {self.spec.reads()}"
            )
