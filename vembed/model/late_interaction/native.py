"""transformers' own late-interaction models: ColPali, ColQwen2 and ColModernVBERT."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from vembed.errors import ModelError
from vembed.model.backbones.pretrained import Backbone, load_backbone
from vembed.model.backbones.vision_states import SplitAtVision, vision_call_of
from vembed.model.backbones.vision_states_model import VisionStatesModel
from vembed.model.base import disable_kv_cache
from vembed.model.folder.find import JsonFiles, ModelFolders
from vembed.model.folder.multi_vector import retrieval_files
from vembed.model.late_interaction.tokens import TokenVectorModel, TokenVectors
from vembed.model.network.parameters import Part
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import LateInteraction, ModelSpec
from vembed.types import Inputs, Ragged
from vembed.utils.untrusted import library_message


class LateRetrievalModel(VisionStatesModel, TokenVectorModel):
    """transformers' own ColPali, ColQwen2 and ColModernVBERT, which project and normalise by themselves."""

    has_towers_apart: ClassVar[bool] = False
    parts: ClassVar[Mapping[str, Part]] = {
        "backbone.vlm.vis": "vision",
        "backbone.vlm.multi_modal_projector": "vision",
        "backbone.vlm.connector": "vision",
        "backbone.": "text",
    }

    def __init__(self, spec: ModelSpec, backbone: Backbone) -> None:
        super().__init__(spec)
        self.backbone = backbone
        # ColQwen2 calls the vision model itself, without get_image_features.
        calls_vision = _late_interaction(spec).architecture == "colqwen2"
        vision_call = (backbone.vlm.visual, "forward") if calls_vision else vision_call_of(backbone.vlm)
        self.pictures = SplitAtVision(backbone.vlm, vision_call)

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "LateRetrievalModel":
        """The model in `folders.text`."""
        assert folders.text is not None
        loader = getattr(transformers, _CLASSES[_late_interaction(spec).architecture])
        backbone = load_backbone(folders.text, settings, loader=loader)
        disable_kv_cache(backbone)
        return cls(spec, backbone)

    @property
    def dim(self) -> int:
        """Width of a token's vector."""
        return int(self.backbone.config.embedding_dim)

    def towers(self) -> dict[Tower, nn.Module]:
        """The language model and the vision model, without projections."""
        parts = dict(self.backbone.vlm.named_children())
        text = next(parts[name] for name in ("language_model", "text_model") if name in parts)
        vision = next(parts[name] for name in ("vision_tower", "vision_model", "visual") if name in parts)
        return {"text": text, "vision": vision}

    def backbones(self) -> dict[str, Backbone]:
        """The whole model, at the root of a checkpoint."""
        return {"": self.backbone}

    def takes_adapter(self, name: str) -> bool:
        """True for the language model's layers: so these models were trained."""
        return name.startswith("backbone.vlm.") and self.part_of(name) == "text"

    def learns_whole(self, name: str) -> bool:
        """True for the projection to token vectors."""
        return not name.startswith("backbone.vlm.")

    def encode_tokens(self, inputs: Inputs) -> TokenVectors:
        """Vectors of all rows' text and image sequences, [sequences, tokens, dim], in one forward."""
        ids, mask = inputs.tensors["input_ids"].values, inputs.tensors["attention_mask"].values
        with self.pictures.given(inputs) as complete:
            images = _IMAGE_INPUTS[_late_interaction(self.spec).architecture](complete.tensors, ids)
            try:
                output = self.backbone(input_ids=ids, attention_mask=mask, **images)
            except ValueError as error:  # of transformers, which counts image tokens and what the pictures gave
                raise ModelError(f"the processor's inputs do not fit this model: {library_message(error)}") from error
        return TokenVectors(output.embeddings, mask.bool())

    def real_states(self, inputs: Inputs) -> Tensor:
        """The vectors of all rows' real tokens, [tokens, dim]."""
        tokens = self.encode_tokens(inputs)
        return tokens.vectors[tokens.mask]

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """The files of a MultiVectorEncoder."""
        config = self.backbone.config.vlm_config
        in_text = (
            _late_interaction(self.spec).architecture == "colpali"
        )  # its processor adds an image's number of tokens to max_length
        return retrieval_files(self.spec, int(config.text_config.num_image_tokens) if in_text else 0)


def _colpali_inputs(tensors: Mapping[str, Ragged], input_ids: Tensor) -> dict[str, Tensor]:
    """token_type_ids of zeros, for bidirectional attention, as in training."""
    inputs = {"token_type_ids": torch.zeros_like(input_ids)}
    if "pixel_values" in tensors and len(tensors["pixel_values"].values):
        inputs["pixel_values"] = tensors["pixel_values"].values
    return inputs


def _colqwen2_inputs(tensors: Mapping[str, Ragged], input_ids: Tensor) -> dict[str, Tensor]:
    """The patches of each image, padded to [images, patches, numbers]; the model removes the padding."""
    if "pixel_values" not in tensors or not len(tensors["pixel_values"].values):
        return {}
    grids = tensors["image_grid_thw"].values
    patches = torch.split(tensors["pixel_values"].values, grids.prod(dim=1).tolist())
    return {"pixel_values": nn.utils.rnn.pad_sequence(list(patches), batch_first=True), "image_grid_thw": grids}


def _colmodernvbert_inputs(tensors: Mapping[str, Ragged], input_ids: Tensor) -> dict[str, Tensor]:
    """All tiles as if of one row, [1, tiles, ...]: the model assigns them to image tokens in order."""
    if "pixel_values" not in tensors or not len(tensors["pixel_values"].values):
        return {}
    return {name: tensors[name].values[None] for name in ("pixel_values", "pixel_attention_mask")}


_CLASSES = {
    "colpali": "ColPaliForRetrieval",
    "colqwen2": "ColQwen2ForRetrieval",
    "colmodernvbert": "ColModernVBertForRetrieval",
}
_IMAGE_INPUTS: Mapping[str, Any] = {  # Any: all three have the same signature
    "colpali": _colpali_inputs,
    "colqwen2": _colqwen2_inputs,
    "colmodernvbert": _colmodernvbert_inputs,
}


def _late_interaction(spec: ModelSpec) -> LateInteraction:
    assert spec.late is not None
    return spec.late
