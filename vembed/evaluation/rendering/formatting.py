"""Figures, intervals, metrics and retrieval modes as texts for people."""

from vembed.evaluation.bootstrap import Interval

_METRICS = {"ndcg": "nDCG", "hit_rate": "Hit rate", "recall": "Recall", "mrr": "MRR", "map": "MAP"}
VERDICT_MARKS = {"better": "↑", "worse": "↓", "unclear": "≈", "equal": "", "": ""}
_SIDES = {"t": "text", "i": "image", "m": "text + image"}


def percent(value: float) -> str:
    """A share in percent, without the sign.

    >>> percent(0.473)
    '47.3'
    """
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign.

    >>> points(0.432), points(-0.0301), points(0.0001)
    ('+43.2', '−3.0', '0.0')
    """
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def interval_text(interval: Interval | None) -> str:
    """The interval of a difference, in points.

    >>> interval_text(Interval(0.031, 0.055)), interval_text(None)
    ('+3.1 … +5.5', '')
    """
    return "" if interval is None else f"{points(interval.low)} … {points(interval.high)}"


def metric_label(metric: str) -> str:
    """A metric's name as people write it.

    >>> metric_label("ndcg@10"), metric_label("hit_rate@1"), metric_label("mrr")
    ('nDCG@10', 'Hit rate@1', 'MRR')
    """
    name, _, k = metric.partition("@")
    return f"{_METRICS[name]}@{k}" if k else _METRICS[name]


def mode_label(mode: str) -> str:
    """A retrieval mode as people write it.

    >>> mode_label("t2i")
    'text → image'
    """
    return f"{_SIDES[mode[0]]} → {_SIDES[mode[2]]}"
