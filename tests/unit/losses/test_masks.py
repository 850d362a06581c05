"""Masks are what the five rules say: by hand, and against a double loop over many cases full of equal keys."""

import pytest
import torch

from tests.targets import make_targets, random_targets, rows_of
from tests.unit.losses.batches import graded
from vembed.losses.masks import Masks, dense_masks, document_mask_strips, mask_strips, query_mask_strips
from vembed.types import Targets

NUM_CASES = 500
POSITIVE, NEGATIVE, IGNORED = "positive", "negative", "ignored"


def naive_kind(targets: Targets, query: int, document: int, *, private: bool = False) -> str:
    """The six rules, read from top to bottom."""
    positives, negatives = rows_of(targets.positives), rows_of(targets.negatives)
    query_hashes, query_groups = targets.query_hashes.tolist(), targets.query_groups.tolist()
    document_hashes, document_groups = targets.document_hashes.tolist(), targets.document_groups.tolist()
    if document in positives[query]:
        return POSITIVE
    if document in negatives[query]:
        return NEGATIVE
    if targets.ignored is not None and document_hashes[document] in rows_of(targets.ignored)[query]:
        return IGNORED
    if query_groups[query] != -1 and query_groups[query] == document_groups[document]:
        return POSITIVE
    for other in range(len(query_hashes)):
        same_content = query_hashes[other] == query_hashes[query]
        same_group = query_groups[other] == query_groups[query] != -1
        if other == query or same_content or same_group:
            for column in positives[other]:
                if document_hashes[column] == document_hashes[document]:
                    return POSITIVE
    named = any(document in row for row in negatives) and not any(document in row for row in positives)
    return IGNORED if document_hashes[document] == query_hashes[query] or (private and named) else NEGATIVE


def kinds(masks: Masks) -> list[list[str]]:
    names = {(True, True): POSITIVE, (False, True): NEGATIVE, (False, False): IGNORED}
    pairs = zip(masks.positive.tolist(), masks.valid.tolist(), strict=True)
    return [[names[kind] for kind in zip(positive, valid, strict=True)] for positive, valid in pairs]


@pytest.mark.parametrize("private", [False, True])
def test_masks_equal_a_double_loop_over_random_keys(private):
    seen = {POSITIVE: 0, NEGATIVE: 0, IGNORED: 0}
    for seed in range(NUM_CASES):
        targets = graded(random_targets(seed), seed)
        num_queries, num_documents = len(targets.query_hashes), len(targets.document_hashes)
        expected = [
            [naive_kind(targets, i, j, private=private) for j in range(num_documents)] for i in range(num_queries)
        ]
        masks = dense_masks(targets, private_negatives=private)
        assert kinds(masks) == expected, seed
        named = [[j in row for j in range(num_documents)] for row in rows_of(targets.negatives)]
        assert torch.equal(masks.explicit, torch.tensor(named) & ~named_positives(targets))
        for row in expected:
            for kind in row:
                seen[kind] += 1
    assert min(seen.values()) > NUM_CASES / 4


def named_positives(targets: Targets) -> torch.Tensor:
    return torch.tensor([[j in row for j in range(len(targets.document_hashes))] for row in rows_of(targets.positives)])


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_rows_of_one_side_are_negatives_unless_something_joins_them(rows):
    """Queries: content, group, or a document that both ask for; documents: content, group, or a query of both."""
    joined = 0
    for seed in range(200):
        targets = random_targets(seed)
        hashes, groups = targets.query_hashes.tolist(), targets.query_groups.tolist()
        contents, labels = targets.document_hashes.tolist(), targets.document_groups.tolist()
        wanted = [{contents[column] for column in row} for row in rows_of(targets.positives)]

        def alike(i, j, keys, own_groups):
            return keys[i] == keys[j] or own_groups[i] == own_groups[j] != -1

        shared = [
            set().union(*(wanted[k] for k in range(len(hashes)) if k == i or alike(i, k, hashes, groups)))
            for i in range(len(hashes))
        ]
        queries = [
            [not (alike(i, j, hashes, groups) or shared[i] & wanted[j]) for j in range(len(hashes))]
            for i in range(len(hashes))
        ]
        documents = [
            [
                not (alike(i, j, contents, labels) or any({contents[i], contents[j]} <= both for both in wanted))
                for j in range(len(contents))
            ]
            for i in range(len(contents))
        ]
        for strips, expected in ((query_mask_strips, queries), (document_mask_strips, documents)):
            masks = list(strips(targets, rows))
            assert torch.cat([part.valid for part in masks]).tolist() == expected, seed
            assert not any(part.positive.any() or part.explicit.any() for part in masks)
            joined += sum(not value for row in expected for value in row) - len(expected)
    assert joined > 1000


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_strips_together_are_the_dense_masks(rows):
    for seed in range(50):
        targets = random_targets(seed)
        strips = list(mask_strips(targets, rows))
        dense = dense_masks(targets)
        assert torch.equal(torch.cat([strip.positive for strip in strips]), dense.positive)
        assert torch.equal(torch.cat([strip.valid for strip in strips]), dense.valid)
        assert [strip.start for strip in strips] == list(range(0, len(targets.query_hashes), rows))


def test_without_groups_and_repeats_only_the_named_columns_are_positive():
    masks = dense_masks(make_targets([[0], [1]], 3, negatives=[[2], []]))
    assert kinds(masks) == [[POSITIVE, NEGATIVE, NEGATIVE], [NEGATIVE, POSITIVE, NEGATIVE]]
    assert masks.negative.tolist() == [[False, True, True], [True, False, True]]


def test_an_explicit_positive_outranks_an_explicit_negative():
    assert kinds(dense_masks(make_targets([[0]], 1, negatives=[[0]]))) == [[POSITIVE]]


def test_an_explicit_negative_outranks_its_group():
    targets = make_targets([[0]], 2, negatives=[[1]], query_groups=[5], document_groups=[5, 5])
    assert kinds(dense_masks(targets)) == [[POSITIVE, NEGATIVE]]


def test_an_explicit_negative_outranks_the_content_of_a_positive_of_an_equal_query():
    targets = make_targets([[0], [1]], 2, negatives=[[1], []], query_hashes=[7, 7])
    assert kinds(dense_masks(targets)) == [[POSITIVE, NEGATIVE], [POSITIVE, POSITIVE]]


def test_documents_of_the_same_group_are_positives():
    targets = make_targets([[0], [1]], 3, query_groups=[5, 6], document_groups=[5, 6, 5])
    assert kinds(dense_masks(targets)) == [[POSITIVE, NEGATIVE, POSITIVE], [NEGATIVE, POSITIVE, NEGATIVE]]


def test_rows_without_a_group_do_not_form_one():
    targets = make_targets([[0], [1]], 2, query_groups=[-1, -1], document_groups=[-1, -1])
    assert kinds(dense_masks(targets)) == [[POSITIVE, NEGATIVE], [NEGATIVE, POSITIVE]]


def test_the_same_picture_twice_is_never_a_negative():
    targets = make_targets([[0], [1]], 2, document_hashes=[9, 9])
    assert kinds(dense_masks(targets)) == [[POSITIVE, POSITIVE], [POSITIVE, POSITIVE]]


def test_a_captions_other_picture_is_never_a_negative():
    targets = make_targets([[0], [1], [2]], 3, query_hashes=[7, 7, 8])
    assert kinds(dense_masks(targets))[0] == [POSITIVE, POSITIVE, NEGATIVE]


def test_queries_of_a_group_share_positives_that_carry_no_group():
    targets = make_targets([[0], [1]], 2, query_groups=[5, 5])
    assert kinds(dense_masks(targets)) == [[POSITIVE, POSITIVE], [POSITIVE, POSITIVE]]


def test_a_query_does_not_meet_its_own_content():
    targets = make_targets([[0], [1]], 3, query_hashes=[7, 8], document_hashes=[1, 2, 7])
    assert kinds(dense_masks(targets)) == [[POSITIVE, NEGATIVE, IGNORED], [NEGATIVE, POSITIVE, NEGATIVE]]


@pytest.mark.parametrize(("negatives", "group", "expected"), [([1], -1, NEGATIVE), ([], 5, POSITIVE)])
def test_every_other_rule_outranks_the_querys_own_content(negatives, group, expected):
    targets = make_targets(
        [[0]],
        2,
        negatives=[negatives],
        query_groups=[group],
        document_groups=[-1, group],
        query_hashes=[7],
        document_hashes=[1, 7],
    )
    assert kinds(dense_masks(targets)) == [[POSITIVE, expected]]


def test_a_positive_may_be_the_query_itself():
    assert kinds(dense_masks(make_targets([[0]], 1, query_hashes=[7], document_hashes=[7]))) == [[POSITIVE]]


def test_keys_of_any_int64_value_are_told_apart():
    low, high = -(2**63), 2**63 - 1
    targets = make_targets(
        [[0], [1]], 2, query_groups=[low, high], document_groups=[low, high], document_hashes=[low, high]
    )
    assert kinds(dense_masks(targets)) == [[POSITIVE, NEGATIVE], [NEGATIVE, POSITIVE]]
