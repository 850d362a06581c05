"""Vision-language models as embedders: the hidden state of a row's last token, without the language head."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from vembed.errors import ModelError
from vembed.model.adapters.base_model import plain_folder
from vembed.model.backbones.pretrained import Backbone, load_backbone, refuse_own_code
from vembed.model.backbones.vision_states import SplitAtVision, vision_call_of
from vembed.model.backbones.vision_states_model import VisionStatesModel
from vembed.model.base import disable_kv_cache
from vembed.model.folder.find import JsonFiles, ModelFolders, read_table
from vembed.model.folder.sentence_transformers import sentence_files
from vembed.model.network.parameters import Part, layer_numbers
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec
from vembed.model.vectors.pooling import pool
from vembed.model.vectors.rows import unit_vectors
from vembed.types import Embeddings, Inputs
from vembed.utils.untrusted import library_message

_HEAD_NAME = "lm_head.weight"
_CLASSES_WITH_HEAD = ("ForConditionalGeneration", "ForCausalLM", "ForVision2Seq")
IMAGE_TOKENS = "image_tokens"  # mask of the image placeholder tokens; the backbone does not read it


@dataclass(frozen=True)
class TokenStates:
    """The language model's last hidden states.

    hidden: [rows, tokens, width], after the final norm. mask: bool [rows, tokens], True for real tokens (the chat
    template's among them). is_image: bool [rows, tokens], True for image tokens.
    """

    hidden: Tensor
    mask: Tensor
    is_image: Tensor


class VlmModel(VisionStatesModel):
    """A vision-language model that reads a row's text and images in one sequence, and is pooled at its last token.

    `token_states(inputs)` gives all tokens' hidden states instead, which a late-interaction model projects. The text
    tower is the language model; everything else in the checkpoint, the projector included, is the vision tower.
    """

    has_towers_apart: ClassVar[bool] = False
    head_tensors: ClassVar[tuple[str, ...]] = ()  # inputs for a subclass's heads, which the backbone does not read

    def __init__(self, spec: ModelSpec, backbone: Backbone, language_head: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(spec)
        self.backbone = backbone
        self._language_head = dict(language_head or {})  # untied lm_head: not run, saved again
        self._language_model_name = _name_of_language_model(backbone)
        self._has_head = type(backbone).__name__.endswith(_CLASSES_WITH_HEAD)  # remote code may have no class without
        self._forward_options = {"output_hidden_states": True} if self._has_head else {"use_cache": False}
        self.pictures = SplitAtVision(backbone, vision_call_of(backbone))
        _freeze_unused_parameters(backbone)
        disable_kv_cache(backbone)

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "VlmModel":
        """The model in `folders.text` (which is also `folders.image`)."""
        assert folders.text is not None
        refuse_own_code(folders.text, settings)
        plain = plain_folder(folders.text, settings)
        return cls(spec, load_backbone(folders.text, settings, loader=_auto_class(plain)), _read_language_head(plain))

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.backbone.config.get_text_config().hidden_size)

    @property
    def language_head(self) -> Mapping[str, Tensor]:
        """The untied `lm_head` of the checkpoint, by name; {} if it has none. It is not run, and saved again."""
        return self._language_head

    def towers(self) -> dict[Tower, nn.Module]:
        """The language model, and the largest network beside it."""
        others = [
            child for name, child in self.backbone.named_children() if self.part_of(f"backbone.{name}.") == "vision"
        ]
        vision = max(others, key=lambda child: sum(parameter.numel() for parameter in child.parameters()))
        return {"text": self.backbone.get_submodule(self._language_model_name), "vision": vision}

    def backbones(self) -> dict[str, Backbone]:
        """The whole model, at the root of a checkpoint."""
        return {"": self.backbone}

    def takes_adapter(self, name: str) -> bool:
        """True for the language model's layers, in attention and MLP."""
        return name.startswith(f"backbone.{self._language_model_name}.")

    def learns_whole(self, name: str) -> bool:
        """False for all layers: a projector was pretrained on more pictures than any fine-tuning has."""
        return False

    def token_states(self, inputs: Inputs) -> TokenStates:
        """The language model's hidden states of finished inputs [rows, tokens, width], with masks."""
        with self.pictures.given(inputs) as whole:
            tensors = {name: ragged.values for name, ragged in whole.tensors.items() if len(ragged.values)}
            is_image = tensors.pop(IMAGE_TOKENS)
            read = {name: value for name, value in tensors.items() if name not in self.head_tensors}
            dtype = self.backbone.get_input_embeddings().weight.dtype
            read = {name: value.to(dtype) if value.is_floating_point() else value for name, value in read.items()}
            try:
                output = self.backbone(**read, **self._forward_options, return_dict=True)
            except ValueError as error:  # of transformers, which counts image tokens and what the pictures gave
                raise ModelError(f"the processor's inputs do not fit this model: {library_message(error)}") from error
        hidden = output.hidden_states[-1] if self._has_head else output.last_hidden_state
        return TokenStates(hidden, read["attention_mask"].bool(), is_image)

    def real_states(self, inputs: Inputs) -> Tensor:
        """The hidden states of all rows' real tokens, [tokens, width]."""
        states = self.token_states(inputs)
        return states.hidden[states.mask]

    def forward(self, inputs: Inputs) -> Embeddings:
        """Embeddings [rows, dim] of finished inputs: each row's tokens, pooled (by its last one, usually)."""
        if inputs.num_rows == 0:
            return Embeddings(self.logit_scale.new_zeros(0, self.dim))
        states = self.token_states(inputs)
        vectors = pool(states.hidden, states.mask, self.spec.pooling["text"])
        if vectors.dtype in (torch.float16, torch.bfloat16):
            vectors = vectors.float()
        return Embeddings(unit_vectors(vectors) if self.spec.normalize else vectors)

    def part_of(self, name: str) -> Part:
        """text for the language model and its head, vision for the rest of the backbone."""
        if not name.startswith("backbone."):
            return super().part_of(name)
        return "text" if name.startswith((f"backbone.{self._language_model_name}.", "backbone.lm_head.")) else "vision"

    def save_backbone(self, subfolder: str, folder: Path) -> None:
        """Write the weights under the class and names of the original checkpoint, its language head included."""
        state = self.backbone_state(subfolder)
        whole = _model_with_head(self.backbone)
        if whole is None:
            self.backbone.save_pretrained(folder, state_dict=state)
            return
        dtype = next(iter(state.values())).dtype
        named = {f"{whole.base_model_prefix}.{name}": tensor for name, tensor in state.items()}
        head = {name: tensor.to(dtype) for name, tensor in self._language_head.items()}
        whole.save_pretrained(folder, state_dict=named | head)

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """The JSON files with which sentence-transformers opens the folder and renders its chat template."""
        files = sentence_files(self.spec, self.dim)
        reads = {"method": "forward", "method_output_name": "last_hidden_state"}
        settings = files["sentence_bert_config.json"]
        settings["module_output_name"] = "token_embeddings"
        settings["modality_config"] = {name: dict(reads) for name in ("text", "image")}
        settings["modality_config"]["message"] = reads | {"format": "structured"}
        settings["processing_kwargs"] = {"chat_template": {"add_generation_prompt": self.spec.starts_answer}}
        return files


def _name_of_language_model(backbone: Backbone) -> str:
    """The name of the child module that is the language model: the one with the input embeddings."""
    words = backbone.get_input_embeddings()
    for name, child in backbone.named_children():
        if any(module is words for module in child.modules()) and len(list(backbone.children())) > 1:
            return str(name)
    raise ModelError(f"{type(backbone).__name__} has no language model beside its vision tower")


def _auto_class(folder: Path) -> Any:  # Any: transformers is untyped here
    """AutoModel, or the auto class for which a folder's remote code has a model."""
    config = read_table(folder / "config.json") or {}
    offered = config.get("auto_map") or {}
    if config.get("model_type") in transformers.CONFIG_MAPPING or "AutoModel" in offered:
        return transformers.AutoModel
    heads = ("AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForCausalLM")
    return getattr(transformers, next((name for name in heads if name in offered), "AutoModel"))


def _freeze_unused_parameters(backbone: Backbone) -> None:
    """Freeze parameters that the embedding does not depend on, so that no trainable one is without a gradient.

    These are a language head, and a vision tower's layers after `vision_feature_layer` (LLaVA).
    """
    head = backbone.get_output_embeddings() if hasattr(backbone, "lm_head") else None
    if head is not None and head.weight is not backbone.get_input_embeddings().weight:
        head.requires_grad_(False)
    read = getattr(backbone.config, "vision_feature_layer", None)
    if not isinstance(read, int):
        return
    parameters = dict(backbone.vision_tower.named_parameters())
    layers, num_layers = layer_numbers(list(parameters))
    last = read if read >= 0 else num_layers + 1 + read
    for layer, (name, parameter) in zip(layers, parameters.items(), strict=True):
        if layer > last or "post_layernorm" in name or ".head." in name:
            parameter.requires_grad_(False)


def _read_language_head(folder: Path) -> dict[str, Tensor]:
    """The untied `lm_head` in a folder's safetensors, by name; {} if there is none."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no mapping)
                if name.endswith(_HEAD_NAME):
                    found[_HEAD_NAME] = weights.get_tensor(name)
    return found


def _model_with_head(backbone: Backbone) -> Backbone | None:
    """The config's class with a head, around such a backbone and without weights; None if the backbone is of it."""
    named = (backbone.config.architectures or [type(backbone).__name__])[0]
    whole = getattr(transformers, named, None)
    if whole is None or isinstance(backbone, whole):
        return None
    with torch.device("meta"):
        model = whole(backbone.config)
    inner = getattr(model, model.base_model_prefix, None)
    return model if type(inner) is type(backbone) else None
