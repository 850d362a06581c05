"""The base of every config section: frozen, and an unknown key is an error."""

from typing import Any

from pydantic import BaseModel, ConfigDict

# Marks the keys that `vembed train --help` shows; `--help-all` shows every key.
COMMON: dict[str, Any] = {"common": True}  # Any: pydantic's own type for extra schema entries


class Section(BaseModel):
    """The settings of one part of the house. Sections share one flat name space (`vembed.config`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
