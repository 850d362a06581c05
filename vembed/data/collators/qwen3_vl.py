"""The collator of vision-language models, under its own name.

There is one collator, and it serves every family: what differs between families is done by their processors
(`vembed.model.processors`). This name is for code that asks for it.
"""

from vembed.data.collators.default import Collator

__all__ = ["Qwen3VLCollator"]

Qwen3VLCollator = Collator
