"""What a comparison says in sentences."""

from dataclasses import replace

import torch

from tests.unit.evaluation.made import make_comparison, make_composed, make_result, make_set
from vembed.data.validation import BadRow
from vembed.evaluation.comparison import Comparison, compare
from vembed.evaluation.rendering.sentences import distinct_figures, headline_sentence, reading_notes
from vembed.types import Ragged


def test_the_headline_gives_both_figures_the_gain_and_its_interval():
    comparison = make_comparison([make_set(100)], 3.0, 0.2)
    figure = comparison.sets[0].figure("mrr")
    sentence = headline_sentence(comparison, "mrr")
    assert sentence.startswith(
        f"MRR on t2t went from {100 * figure.values[0]:.1f} % to {100 * figure.values[1]:.1f} % (+"
    )
    assert "95 % interval +" in sentence


def test_the_headline_counts_sets_that_gained_lost_or_stayed():
    better = make_comparison([make_set(200, name="a")], 3.0, 0.2).sets[0]
    worse = make_comparison([make_set(200, name="b")], 0.2, 3.0).sets[0]
    same = make_comparison([make_set(200, name="c")], 1.0, 1.0).sets[0]
    mixed = Comparison(("base", "tuned"), (better, worse, same))
    assert headline_sentence(mixed, "mrr").endswith(
        "Of the 3 sets, 1 gained, 1 lost, 1 changed by no more than chance may."
    )
    assert headline_sentence(Comparison(("base", "tuned"), (better, better)), "mrr").endswith(" All 2 sets gained.")


def test_the_headline_of_one_model_is_its_figure():
    one = make_set()
    comparison = compare([one], {"model": make_result([one], 0.0)}, samples=10)
    assert headline_sentence(comparison, "recall@1") == "Recall@1 on t2t is 100.0 %."


def test_validation_figures_say_that_they_chose_the_checkpoint():
    comparison = make_comparison([make_set()])
    assert "also chose the checkpoint" in next(reading_notes(comparison, "validation"))
    assert list(reading_notes(comparison, "test")) == []
    one = make_set()
    untuned = compare([one], {"base": make_result([one], 1.0)}, samples=10)
    assert list(reading_notes(untuned, "validation")) == []


def test_notes_tell_what_was_left_out_or_cut():
    one = replace(make_set(), num_unmeasured=2, skipped=(BadRow("rows.jsonl:3", "no picture"),))
    result = make_result([one], 1.0)
    result = replace(result, sets=(replace(result.sets[0], num_truncated=5),))
    notes = list(reading_notes(compare([one], {"model": result}, samples=0), "test"))
    assert [note.split(":")[0] for note in notes] == ["t2t"] * 3
    assert "2 queries are not measured" in notes[0]
    assert notes[1].endswith("1 rows were left out because they cannot be used; the first: no picture")
    assert "5 texts are longer than the model reads" in notes[2]
    bad = (BadRow("rows.jsonl:4", "cut off"), BadRow("rows.jsonl:5", "gone"))
    (note,) = reading_notes(make_comparison([replace(make_set(), left_out=bad)]), "test")
    assert note.endswith("2 documents of other rows cannot be read and were left out; the first: cut off")


def test_a_note_tells_by_which_row_each_model_of_a_composed_set_counts():
    (note,) = reading_notes(make_composed(), "test")
    assert note == (
        "m2i: base is image only by the pretrained image tower's own features, without the query's picture;"
        " tuned is text + image by the model's embeddings, with the query's picture. Every row is listed below the"
        " figures."
    )


def test_figures_that_cannot_differ_are_shown_once():
    one = make_comparison([make_set()]).sets[0]
    shown = [figure.metric for figure in distinct_figures(one)]
    assert shown == ["recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr"]
    for twin, metric in (("hit_rate@5", "recall@5"), ("map", "mrr"), ("ndcg@1", "recall@1")):
        assert one.figure(twin).values == one.figure(metric).values


def test_with_several_relevant_documents_every_figure_is_shown():
    one = make_comparison([make_set()]).sets[0]
    several = Ragged(torch.arange(12), torch.tensor([2, 0] + [1] * 10))
    assert distinct_figures(replace(one, retrieval_set=replace(one.retrieval_set, relevant=several))) == one.figures


def test_notes_name_the_figures_that_cannot_differ():
    (note,) = reading_notes(make_comparison([make_set(8)]), "test")
    assert note == "t2t: Recall@10 cannot differ between models, because it has 8 documents."
    (note,) = reading_notes(make_comparison([make_set(1)]), "test")
    assert note == (
        "t2t: no figure can differ between models, because every document is relevant to every query that may find it."
    )
