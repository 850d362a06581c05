"""What a model's JSON files say, before any weight is read. Imports neither torch nor transformers."""

from dataclasses import dataclass
from pathlib import Path

from vembed.errors import ModelError
from vembed.model.folder.find import SPEC_FILE, Json, read_json
from vembed.model.folder.sentence_transformers import SentenceFolder, read_sentence_folder


@dataclass(frozen=True)
class ModelFacts:
    """The files of one model. name: its hub id or folder. config: config.json. sentence: sentence-transformers' files.

    mode: the family or alias that `encoder_mode` asks for, None where it is left to the files.
    `folder` is where all files lie, `model_folder` where the transformers files do.
    """

    name: str
    folder: Path
    config: Json
    sentence: SentenceFolder | None = None
    mode: str | None = None

    @property
    def model_folder(self) -> Path:
        """Where config.json lies."""
        return self.folder / self.sentence.model_path if self.sentence else self.folder

    @property
    def tokenizer(self) -> Json:
        """What tokenizer_config.json says; nothing where there is none."""
        return read_json(self.model_folder / "tokenizer_config.json") or {}

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture, "unknown" when config.json does not say."""
        config = self.config
        if "model_type" not in config and "architecture" in config and "pretrained_cfg" in config:
            return "timm_wrapper"  # a timm repository, which transformers opens as such
        return str(config.get("model_type", "unknown"))

    @property
    def has_own_code(self) -> bool:
        """Whether the folder brings Python code that opens it."""
        return "auto_map" in self.config

    @property
    def own_class(self) -> str | None:
        """The class in the folder's own .py files that it wants to be opened with ("modeling_eva.EvaCLIPModel")."""
        named = (self.config.get("auto_map") or {}).get("AutoModel")
        return None if named is None else str(named)


def read_facts(name: str, folder: Path) -> ModelFacts:
    """The facts of the model in `folder`. Raises ModelError when it has no config.json, or a broken one."""
    sentence = read_sentence_folder(folder)
    path = folder / sentence.model_path if sentence else folder
    config = read_json(path / "config.json")
    if config is None:
        if sentence is not None and sentence.refusal is not None:
            raise ModelError(sentence.refusal)
        final = folder / "final"
        hint = f"; did you mean {str(final)!r}?" if (final / SPEC_FILE).exists() else ""
        raise ModelError(f"model folder {str(path)!r} holds no config.json{hint}")
    if not isinstance(config, dict):
        raise ModelError(f"{path / 'config.json'} holds no table of settings, but {type(config).__name__}")
    return ModelFacts(name, folder, config, sentence)
