"""The base of every config section, and the marks a key can carry beside its type, default, range and description.

Sections are declared beside their owners and share one flat name space (`vembed.config`). A mark is part of a field's
`json_schema_extra`, and marks join with `|`:

    chunk_size: int = Field(32, description="...", json_schema_extra=COMMON | only_with("use_cache", True))
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

Marks = dict[str, Any]  # Any: pydantic's own type for extra schema entries

# Marks the keys that `vembed train --help` shows; `--help-all` shows every key.
COMMON: Marks = {"common": True}

# Marks a key that only some families of models have a use for; the others refuse it.
BY_FAMILY: Marks = {"by_family": True}


# Marks a key by which code of others runs, or more is read than was pointed at: only the caller sets it, no file that
# is looked at.
NEEDS_CONSENT: Marks = {"needs_consent": True}


def only_with(key: str, *values: object) -> Marks:
    """Marks a key that has an effect only while `key` has one of `values`; without values: only while `key` is set."""
    return {"only_with": [key, *values]}


def instead_of(*keys: str) -> Marks:
    """Marks a key that takes the place of `keys`: a user sets the one or the others, not both."""
    return {"instead_of": list(keys)}


class Section(BaseModel):
    """The settings of one part of the package. Sections share one flat name space (`vembed.config`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
