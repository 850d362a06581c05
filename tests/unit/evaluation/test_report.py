"""The report: complete, self-contained, escaped, written whole or not at all."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.pictures import make_picture
from tests.unit.evaluation.made import make_comparison, make_composed, make_result, make_set
from vembed.errors import VembedError
from vembed.evaluation.comparison import compare
from vembed.evaluation.protocols import EvaluationProtocol
from vembed.evaluation.report import (
    FactTable,
    ReportContent,
    SettingLine,
    html_text,
    markdown_report,
    metrics_record,
    write_report,
)
from vembed.types import ImageSource, Item

HISTORY = [{"step": n, "loss": 3 / n} for n in range(1, 9)] + [{"step": 8, "eval": {"t2t": {"ndcg@10": 0.5}}}]
HOSTILE = '<script>alert("x")</script><img src=http://evil/x.png onerror=y> & "quoted"'


def content(sets=None, **changes) -> ReportContent:
    whole = ReportContent(
        title="a model",
        subtitle="Tuned on 12 rows.",
        comparison=make_comparison(sets or [make_set(30)]),
        headline="ndcg@10",
        facts=[FactTable("Run", [("steps", "8")]), FactTable("Data", [("t2t", "30")], ("set", "rows"))],
        history=HISTORY,
        config=[SettingLine("model", "freeze", "[text]", "my.yaml:3")],
        meta={"seed": 42},
    )
    return replace(whole, **changes)


class Page(HTMLParser):
    """Tags with their attributes, in order; refuses tags that are not closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_metrics_json_holds_values_intervals_and_what_was_measured(tmp_path):
    whole = content([make_set(30), make_set(20, name="other")])
    record = json.loads(write_report(tmp_path, whole).metrics.read_text())
    assert list(record) == ["base", "tuned", "intervals", "rows", "meta"]
    assert record["base"] == whole.comparison.metrics["base"]
    assert record["tuned"]["other"]["recall@10"] == whole.comparison.metrics["tuned"]["other"]["recall@10"]
    low, high = record["intervals"]["delta"]["t2t"]["mrr"]
    assert low < record["tuned"]["t2t"]["mrr"] - record["base"]["t2t"]["mrr"] < high
    assert record["meta"]["seed"] == 42
    assert record["meta"]["sets"]["other"]["queries"] == 20
    assert record["meta"]["sets"]["t2t"]["measured_on"] == {
        "base": "the model's embeddings",
        "tuned": "the model's embeddings",
    }


def test_the_page_is_well_formed_and_loads_nothing():
    pictures = tuple(Item(images=(ImageSource(pil=make_picture(number)),)) for number in range(30))
    text = html_text(content([replace(make_set(30, mode="t2i"), documents=pictures)]))
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert {"h1", "table", "svg", "img", "details"} <= tags
    assert not tags & {"script", "link", "iframe", "object", "form"}
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) > 50
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\((?!#)|@import", text)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_the_page_shows_figures_curves_gallery_facts_and_config():
    text = html_text(content())
    for part in ("nDCG@10 on t2t went from", "Training loss", "Validation nDCG@10", "Queries and what was found"):
        assert part in text
    for part in ("Tuned on 12 rows.", "my.yaml:3", "30 queries, 30 documents", "steps"):
        assert part in text


def test_the_page_says_what_a_base_was_measured_on_where_that_is_not_plain():
    whole = content()
    one = whole.comparison.sets[0]
    assert "measured on" not in html_text(whole)
    base = replace(one.results[0], protocol=EvaluationProtocol("tower", "the pretrained text tower's own features"))
    towers = replace(whole.comparison, sets=(replace(one, results=(base, one.results[1])),))
    assert "base measured on: the pretrained text tower&#39;s own features" in html_text(content(comparison=towers))


def test_every_row_of_a_composed_set_is_in_all_three_files():
    whole = content(comparison=make_composed())
    rows = metrics_record(whole)["rows"]["m2i"]
    assert [(row["model"], row["query"], row["query_image"], row["counts"]) for row in rows] == [
        ("base", "image", "in", False),
        ("base", "image", "out", True),
        ("tuned", "whole", "in", True),
        ("tuned", "whole", "out", False),
    ]
    assert rows[1]["metrics"] == metrics_record(whole)["base"]["m2i"]
    page, markdown = html_text(whole), markdown_report(whole)
    for text in (page, markdown):
        assert text.count("Queries of text and image, every row") == 1
        assert "m2i: base is image only by " in text
        for gallery in ("with the query's picture", "without the query's picture"):
            assert text.replace("&#39;", "'").count(gallery) >= 2
    cells = [words for words in re.findall(r"<td>([^<]*)</td>", page) if words in ("image only", "text + image")]
    assert cells == ["image only", "image only", "text + image", "text + image"]
    assert page.count('<tr class="headline"><td>base</td><td>image only') == 1
    assert page.count('<tr class="headline"><td>tuned</td><td>text + image') == 1


def test_sets_of_plain_queries_have_no_rows():
    assert metrics_record(content())["rows"] == {}
    assert "every row" not in html_text(content()) + markdown_report(content())


def test_nothing_from_data_or_config_is_markup():
    sets = [make_set(4, name=HOSTILE, texts=[f"{HOSTILE} {n}" for n in range(4)])]
    hostile = content(
        sets,
        title=HOSTILE,
        subtitle=HOSTILE,
        notes=[HOSTILE],
        facts=[FactTable(HOSTILE, [(HOSTILE, HOSTILE)], (HOSTILE, HOSTILE))],
        config=[SettingLine(HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
        history=[{"step": n, "eval": {HOSTILE: {"ndcg@10": 0.1}}} for n in (1, 2)],
    )
    text = html_text(hostile)
    assert "<script" not in text
    assert "<img src=http" not in text
    assert text.count("&lt;script&gt;") > 20
    assert "onerror" not in {name for _, attributes in Page(text).tags for name in attributes}
    markdown = markdown_report(hostile)
    assert "<script" not in markdown
    assert "<img" not in markdown


def test_a_report_is_the_same_bytes_every_time():
    assert html_text(content()) == html_text(content())
    assert markdown_report(content()) == markdown_report(content())


def test_validation_figures_are_marked_as_such():
    text = html_text(content(role="validation"))
    assert "also chose the checkpoint" in text
    assert "on the validation set" in text
    assert "also chose the checkpoint" in markdown_report(content(role="validation"))
    assert "chose the checkpoint" not in html_text(content())


def test_changes_that_may_be_chance_are_marked():
    comparison = make_comparison([make_set(60)], 1.0, 1.0)
    text = html_text(content(comparison=comparison))
    assert text.count('class="unclear" title="the interval holds zero') == 7
    assert 'class="better"' not in text


def test_one_model_alone_has_a_report_without_a_comparison():
    one = make_set(30)
    alone = content(comparison=compare([one], {"model": make_result([one], 1.0)}, samples=50), history=(), config=())
    text = html_text(alone)
    Page(text)
    assert "Figures on the test set" in text
    assert "was " not in text.partition("<main>")[2].partition("</section>")[0]
    assert "<svg" not in text
    assert list(metrics_record(alone)) == ["model", "intervals", "rows", "meta"]


def test_no_intervals_and_no_gallery_still_give_a_page():
    text = html_text(content(comparison=make_comparison([make_set(30)], samples=0), gallery_size=0))
    Page(text)
    assert "Queries and what was found" not in text


def test_markdown_holds_the_same_table():
    text = markdown_report(content())
    figure = content().comparison.sets[0].figure("mrr")
    assert f"| t2t | mrr | {100 * figure.values[0]:.1f} | {100 * figure.values[1]:.1f} |" in text
    assert "## Run" in text


def test_a_report_that_cannot_be_written_is_told_and_leaves_no_half(tmp_path):
    (tmp_path / "report").write_text("a file is in the way")
    with pytest.raises(VembedError, match="could not be written"):
        write_report(tmp_path / "report", content())
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_report_replaces_an_older_one(tmp_path):
    write_report(tmp_path, content(title="the first"))
    paths = write_report(tmp_path, content(title="the second"))
    assert "the second" in paths.html.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.html", "report.md"]
