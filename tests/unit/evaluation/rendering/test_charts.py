"""Curves are the same bytes every time, hold only numbers, and follow the page's colours."""

import re
import xml.etree.ElementTree as ET

from vembed.evaluation.rendering.charts import loss_chart, metric_chart

HISTORY = [{"step": 10 * n, "loss": 5 / n} for n in range(1, 100)] + [
    {"step": 100 * n, "eval": {"t2i": {"mrr": 0.1 * n}, "<script>$x$ 猫": {"mrr": 0.05 * n}}} for n in range(1, 5)
]


def test_charts_are_deterministic_and_valid():
    for draw in (lambda: loss_chart(HISTORY), lambda: metric_chart(HISTORY, "mrr")):
        assert draw().svg == draw().svg
        ET.fromstring(draw().svg)


def test_no_colour_font_size_or_date_is_fixed():
    for chart in (loss_chart(HISTORY), metric_chart(HISTORY, "mrr")):
        assert "#0102" not in chart.svg
        assert "var(--series-0)" in chart.svg
        assert "var(--muted)" in chart.svg
        assert "font-family" not in chart.svg
        assert "<style" not in chart.svg
        assert not re.search(r"20\d\d-", chart.svg)


def test_names_are_not_drawn():
    chart = metric_chart(HISTORY, "mrr")
    assert chart.curves == ("t2i", "<script>$x$ 猫")
    assert "script" not in chart.svg
    assert all(re.fullmatch(r"[\d.−-]+|step", text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg))


def test_ids_of_two_charts_differ():
    ids = [set(re.findall(r'id="([^"]+)"', chart.svg)) for chart in (loss_chart(HISTORY), metric_chart(HISTORY, "mrr"))]
    assert ids[0]
    assert not ids[0] & ids[1]
    for chart in (loss_chart(HISTORY), metric_chart(HISTORY, "mrr")):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', chart.svg))
        assert used <= set(re.findall(r'id="([^"]+)"', chart.svg))


def test_the_gist_says_where_curves_begin_and_end():
    assert loss_chart(HISTORY).gist == "Loss went from 5 to 0.0505."
    assert metric_chart(HISTORY, "mrr").gist == "Last values: t2i 40.0, <script>$x$ 猫 20.0."


def test_the_last_step_alone_is_no_end_of_the_curve():
    assert loss_chart([*HISTORY, {"step": 991, "loss": 9.0}]).gist == "Loss went from 5 to 0.0505."


def test_nothing_to_draw_gives_no_chart():
    assert loss_chart([]) is None
    assert loss_chart([{"step": 1, "loss": 2.0}]) is None
    assert metric_chart([{"step": 1, "loss": 2.0}], "mrr") is None
    assert metric_chart(HISTORY, "ndcg@10") is None


def test_a_very_long_run_is_thinned():
    history = [{"step": n, "loss": 1.0 + n % 7} for n in range(50_000)]
    assert len(loss_chart(history).svg) < 400_000
