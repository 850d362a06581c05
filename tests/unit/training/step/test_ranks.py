"""What a joined batch knows of its ranks, without any; tests/integration/test_ranks.py has real ones."""

import pytest
import torch

from tests.targets import make_targets
from vembed.training.step.ranks import JoinedBatch, join_ranks
from vembed.types import Embeddings, Sides


def test_in_one_process_a_batch_stays_as_it_is():
    targets = make_targets([[0], [1]], 2, document_hashes=[7, 7])
    own = Sides(Embeddings(torch.zeros(2, 3)), Embeddings(torch.zeros(2, 3)))
    joined = join_ranks(targets)
    assert joined.targets is targets
    assert joined.gather(own) is own


@pytest.mark.parametrize(
    ("queries", "documents", "ranks"),
    [([], [], []), ([1], [], [0]), ([2], [], [1]), ([], [1], [0]), ([], [2], [2]), ([0], [2], [0, 2])],
)
def test_rows_belong_to_the_rank_that_embeds_them(queries, documents, ranks):
    """Three ranks with 2, 1 and 1 queries; of their 2, 1 and 2 documents those of rank 1 stand on rank 0 already."""
    joined = JoinedBatch(make_targets([[0]] * 4, 3), (2, 1, 1), (2, 1, 2), torch.tensor([0, 1, 4]))
    chosen = [torch.zeros(4, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)]
    for side, numbers in zip(chosen, (queries, documents), strict=True):
        side[numbers] = True
    assert joined.ranks_of(*chosen) == ranks
