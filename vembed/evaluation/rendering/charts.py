"""Curves of a run as inline SVG: the same input gives the same bytes, and colours are those of the page's theme.

Only numbers are written into the pictures; titles and legends are the page's own text.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vembed.evaluation.rendering.formatting import metric_label

Line = Mapping[str, Any]  # Any: a line of metrics.jsonl
Axes = Any  # matplotlib is untyped here
Array = NDArray[np.float64]

# Drawn in colours that mean nothing, which are then replaced by the page's own.
_INK, _GRID = "#010203", "#010204"
_SERIES = tuple(f"#0102{number:02x}" for number in range(0x10, 0x18))
_PAGE_COLOURS = {_INK: "var(--muted)", _GRID: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.bottom": False,
    "ytick.left": False,
}
_MAX_POINTS = 2000
_SMOOTHED_FROM = 30  # points; a shorter curve is readable as it is


@dataclass(frozen=True)
class Chart:
    """A picture, its title, its curves' names in the order of the page's series colours, and its gist in words."""

    title: str
    svg: str
    gist: str
    curves: tuple[str, ...] = ()


def loss_chart(history: Sequence[Line]) -> Chart | None:
    """Training loss over steps; None when there are fewer than two points."""
    points = _of_many_steps([(line["step"], line["loss"]) for line in history if line.get("loss") is not None])
    if len(points) < 2:
        return None
    steps, losses = np.array(points, dtype=np.float64)[:: 1 + len(points) // _MAX_POINTS].T

    def draw(axes: Axes) -> None:
        smooth = len(losses) >= _SMOOTHED_FROM
        axes.plot(steps, losses, color=_SERIES[0], alpha=0.3 if smooth else 1, linewidth=1 if smooth else 2)
        if smooth:
            axes.plot(steps, _smoothed(losses), color=_SERIES[0], linewidth=2)

    return Chart("Training loss", _draw_svg(draw, "loss"), f"Loss went from {losses[0]:.3g} to {losses[-1]:.3g}.")


def _of_many_steps(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points without a last one that is the mean of less than half as many steps as the one before: chance.

    >>> _of_many_steps([(10, 3.0), (20, 2.0), (21, 2.9)])
    [(10, 3.0), (20, 2.0)]
    >>> _of_many_steps([(10, 3.0), (20, 2.0), (25, 1.9)])
    [(10, 3.0), (20, 2.0), (25, 1.9)]
    """
    steps = [step for step, _ in points[-3:]]
    return points[:-1] if len(steps) == 3 and 2 * (steps[2] - steps[1]) < steps[1] - steps[0] else points


def metric_chart(history: Sequence[Line], metric: str) -> Chart | None:
    """A metric of every validation set over steps; None when nothing was evaluated while training."""
    curves = _metric_curves(history, metric)
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        for number, points in enumerate(curves.values()):
            steps, values = np.array(points).T
            axes.plot(steps, values, color=_SERIES[number % len(_SERIES)], linewidth=2, marker="o", markersize=4)
        axes.set_ylim(bottom=0)

    ends = ", ".join(f"{name} {points[-1][1]:.1f}" for name, points in curves.items())
    title = f"Validation {metric_label(metric)}, %"
    return Chart(title, _draw_svg(draw, metric), f"Last values: {ends}.", tuple(curves))


def _metric_curves(history: Sequence[Line], metric: str) -> dict[str, list[tuple[float, float]]]:
    """Data set -> (step, percent)."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in history:
        for name, values in (line.get("eval") or {}).items():
            if metric in values:
                curves.setdefault(name, []).append((line["step"], 100 * values[metric]))
    return curves


def _draw_svg(draw: Callable[[Axes], None], name: str) -> str:
    """The drawing as an <svg> element without a fixed size."""
    with mpl.rc_context():
        mpl.rcdefaults()  # not what a matplotlibrc in the current folder says
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=0)
        draw(axes)
        axes.set_xlabel("step")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), re.sub(r"\W", "", name))


def _for_page(svg: str, prefix: str) -> str:
    """The <svg> element with the page's colours, font and size, and ids that no other picture of the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg)
    svg = re.sub(r'\bid="|href="#|url\(#', lambda match: match[0] + prefix + "-", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for drawn, wanted in _PAGE_COLOURS.items():
        svg = svg.replace(drawn, wanted)
    return svg


def _smoothed(values: Array) -> Array:
    """Mean over a sliding window of a tenth of the curve, narrower at its ends."""
    reach = max(1, len(values) // 20)
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    width = np.minimum(np.minimum(places, len(values) - 1 - places), reach)
    return np.asarray((total[places + width + 1] - total[places - width]) / (2 * width + 1))
