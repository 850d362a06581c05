"""Tables for the terminal and for Markdown."""

from dataclasses import replace

from tests.unit.evaluation.made import make_comparison, make_composed, make_result, make_set
from vembed.evaluation.bootstrap import Interval
from vembed.evaluation.comparison import MetricComparison, compare
from vembed.evaluation.rendering.formatting import points
from vembed.evaluation.rendering.tables import comparison_rows, markdown_table, markdown_text, protocol_rows, text_table
from vembed.evaluation.report import ReportContent, html_text


def test_rows_hold_figures_in_percent_and_changes_in_points():
    comparison = make_comparison([make_set(100)], 3.0, 0.2)
    header, *rows = comparison_rows(comparison)
    assert header == ("set", "metric", "base", "tuned", "change", "95 % interval", "")
    figure = comparison.sets[0].figure("recall@10")
    assert rows[2][:5] == (
        "t2t", "recall@10", f"{100 * figure.values[0]:.1f}", f"{100 * figure.values[1]:.1f}", points(figure.delta)
    )  # fmt: skip
    assert rows[2][6] == "↑"


def test_a_change_that_may_be_chance_is_marked():
    rows = comparison_rows(make_comparison([make_set(100)], 1.0, 1.0))
    assert {row[6] for row in rows[1:]} == {"≈"}


def test_a_change_of_nothing_has_no_arrow():
    comparison = make_comparison([make_set(20)], 3.0, 0.2)
    one = comparison.sets[0]
    tiny = MetricComparison("mrr", (0.5, 0.4997), (None, None), Interval(-0.0004, -0.0002))
    same = replace(comparison, sets=(replace(one, figures=(tiny,)),))
    assert comparison_rows(same)[1] == ("t2t", "mrr", "50.0", "50.0", "0.0", "0.0 … 0.0", "")
    page = html_text(ReportContent("title", same, "mrr"))
    assert page.count(">0.0 </span>") == 2
    assert not [sign for sign in ("↓", "↑", "−0.0") if sign in page]


def test_one_model_has_no_change():
    one = make_set()
    rows = comparison_rows(compare([one], {"model": make_result([one], 1.0)}, samples=10))
    assert rows[0] == ("set", "metric", "model")


def test_text_columns_are_aligned():
    lines = text_table(comparison_rows(make_comparison([make_set(30, name="a long name"), make_set()]))).splitlines()
    places = {line.index("recall@1") for line in lines if "recall@1 " in line}
    assert len(places) == 1
    assert len(lines) == 13


def test_markdown_shows_signs_as_they_are():
    hostile = "a|b *c* `d` <script>alert(1)</script>\n# [x](y)"
    assert markdown_text(hostile) == (r"a\|b \*c\* \`d\` &lt;script&gt;alert(1)&lt;/script&gt; \# \[x\](y)")
    table = markdown_table([("set", "metric"), (hostile, "mrr")])
    assert len(table.splitlines()) == 3
    assert "<script>" not in table


def test_rows_of_composed_queries_say_by_what_and_in_which_gallery():
    comparison = make_composed()
    header, *rows = protocol_rows(comparison, "ndcg@10")
    assert header[:5] == ("set", "model", "query", "compared by", "gallery")
    assert header[5:] == ("recall@1", "recall@5", "recall@10", "ndcg@10", "")
    assert [(row[1], row[2], row[4], row[-1]) for row in rows] == [
        ("base", "image only", "with the query's picture", ""),
        ("base", "image only", "without the query's picture", "counts"),
        ("tuned", "text + image", "with the query's picture", "counts"),
        ("tuned", "text + image", "without the query's picture", ""),
    ]
    figure = comparison.sets[0].figure("recall@1")
    assert (rows[1][5], rows[2][5]) == tuple(f"{100 * value:.1f}" for value in figure.values)
    assert protocol_rows(make_comparison([make_set()]), "ndcg@10") == []
