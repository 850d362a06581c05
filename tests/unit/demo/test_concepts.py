"""Variants of one idea share a concept, and a concept is never divided between splits."""

import pytest

from vembed.demo.concepts import concept_of, split_concepts


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("man running facing right", "running"),
        ("person running", "running"),
        ("man dark skin tone curly hair", "person"),
        ("woman curly hair", "person"),
        ("woman and man holding hands", "holding hands"),
        ("older person", "old"),
        ("old man", "old"),
        ("Mrs. Claus", "claus"),
        ("Santa Claus", "claus"),
        ("merperson", "mermaid"),
        ("family man woman girl", "family"),
        ("smiling face with hearts", "heart"),
        ("five-thirty", "clock face"),
        ("human", "human"),
    ],
)
def test_variants_share_a_concept(name, concept):
    assert concept_of(name, "") == concept


def test_a_country_flag_is_a_flag_whatever_its_name():
    assert concept_of("Peru", "country-flag") == concept_of("Wales", "subdivision-flag") == "flag"


def test_splits_are_filled_exactly_and_no_concept_is_divided():
    concepts = [f"idea {number % 40}" for number in range(60)]
    splits = split_concepts(concepts, {"test": 11, "val": 7})
    sizes = {split: sum(splits[concept] == split for concept in concepts) for split in ("test", "val", "train")}
    assert sizes == {"test": 11, "val": 7, "train": 42}
    assert splits == split_concepts(reversed(concepts), {"test": 11, "val": 7})


def test_what_is_always_trained_on_is_in_no_other_split():
    assert set(split_concepts(["moon", "flag", "heart"], {"test": 3}).values()) == {"train"}
