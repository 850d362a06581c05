"""ModelFacts: the contents of a model's JSON files, read before any weights. Imports neither torch nor transformers."""

from dataclasses import dataclass
from pathlib import Path

from vembed.errors import ModelError
from vembed.model.folder.find import SPEC_FILE, Json, read_table
from vembed.model.folder.sentence_transformers import SentenceFolder, read_sentence_folder


@dataclass(frozen=True)
class ModelFacts:
    """Contents of one model's JSON files. name: its hub id or folder. folder: its local folder. config: config.json.

    sentence: the files of sentence-transformers, None without modules.json. mode: the setting `encoder_mode`, None if
    the family is to be detected.
    """

    name: str
    folder: Path
    config: Json
    sentence: SentenceFolder | None = None
    mode: str | None = None

    @property
    def model_folder(self) -> Path:
        """The folder of config.json and weights: `folder`, or a subfolder that modules.json names."""
        return self.folder / self.sentence.model_path if self.sentence else self.folder

    @property
    def tokenizer(self) -> Json:
        """The contents of tokenizer_config.json; {} if there is none."""
        return read_table(self.model_folder / "tokenizer_config.json") or {}

    @property
    def model_type(self) -> str:
        """`model_type` in config.json, "unknown" if it has none; timm_wrapper for a timm repository."""
        config = self.config
        if "model_type" not in config and "architecture" in config and "pretrained_cfg" in config:
            return "timm_wrapper"  # a timm repository, which transformers opens as such
        return str(config.get("model_type", "unknown"))

    @property
    def has_own_code(self) -> bool:
        """True if config.json has an auto_map: the folder comes with remote code."""
        return "auto_map" in self.config

    @property
    def own_class(self) -> str | None:
        """auto_map's class for AutoModel, such as "modeling_eva.EvaCLIPModel"; None without one."""
        named = (self.config.get("auto_map") or {}).get("AutoModel")
        return None if named is None else str(named)


def read_facts(name: str, folder: Path) -> ModelFacts:
    """The facts of the model in `folder`. Raises ModelError when it has no config.json, or a broken one."""
    sentence = read_sentence_folder(folder)
    path = folder / sentence.model_path if sentence else folder
    config = read_table(path / "config.json")
    if config is None:
        if sentence is not None and sentence.unsupported is not None:
            raise ModelError(sentence.unsupported)
        final = folder / "final"
        hint = f"; did you mean {str(final)!r}?" if (final / SPEC_FILE).exists() else ""
        raise ModelError(f"model folder {str(path)!r} holds no config.json{hint}")
    return ModelFacts(name, folder, config, sentence)
