"""Texts of mixed length for the benchmarks: log-uniform from SHORTEST to LONGEST tokens, the same ones every time."""
# ruff: noqa: PLC0415 - whoever takes its constants imports nothing heavy

import math
import random
from pathlib import Path

SHORTEST, LONGEST = 8, 256


def write_minilm_and_draw(folder: Path, number: int) -> list[str]:
    """Write all-MiniLM-L6-v2 into `folder`; gives texts of whole words of its vocabulary."""
    from transformers import AutoTokenizer

    from vembed.demo.models import write_minilm

    write_minilm(folder)
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    draw = random.Random(0)

    def text() -> str:
        num_tokens = round(math.exp(draw.uniform(math.log(SHORTEST), math.log(LONGEST))))
        return " ".join(draw.choices(words, k=num_tokens - 2))  # and [CLS] and [SEP]

    return [text() for _ in range(number)]
