"""Joining a document's tokens: exactly Ward's clustering, and differentiable through the means."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from torch import Tensor

from vembed.model.late_interaction.token_pooling import Reduction, cluster, mean_by_label


def unit(tokens: int, dim: int = 6, seed: int = 0) -> Tensor:
    vectors = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def together(labels: np.ndarray | Tensor) -> list[list[bool]]:
    """Which tokens share a group, whatever the groups are called."""
    labels = np.asarray(labels)
    return (labels[:, None] == labels[None]).tolist()


def slow_clusters(vectors: Tensor, num_clusters: int) -> list[list[int]]:
    """Ward by definition: always join the two groups with the least distance."""
    squared = {
        frozenset((i, j)): float((1 - vectors[i] @ vectors[j]).clamp(0, 2)) ** 2
        for i in range(len(vectors))
        for j in range(i)
    }
    groups: dict[int, list[int]] = {token: [token] for token in range(len(vectors))}
    fresh = len(vectors)
    while len(groups) > num_clusters:
        pair = min(squared, key=squared.__getitem__)
        left, right = pair
        a, b = len(groups[left]), len(groups[right])
        for other, members in groups.items():
            if other in pair:
                continue
            c = len(members)
            to_left, to_right = squared[frozenset((left, other))], squared[frozenset((right, other))]
            joined = ((a + c) * to_left + (b + c) * to_right - c * squared[pair]) / (a + b + c)
            squared[frozenset((fresh, other))] = joined
        groups[fresh] = groups.pop(left) + groups.pop(right)
        squared = {key: value for key, value in squared.items() if not key & pair}
        fresh += 1
    return sorted(sorted(members) for members in groups.values())


@pytest.mark.parametrize("tokens", [2, 3, 9, 20])
def test_clusters_are_those_of_ward_by_definition(tokens):
    vectors = unit(tokens, seed=tokens)
    for num_clusters in range(1, tokens + 1):
        labels = cluster(vectors, num_clusters).tolist()
        found = [[token for token, label in enumerate(labels) if label == one] for one in sorted(set(labels))]
        assert found == slow_clusters(vectors, num_clusters)


@pytest.mark.parametrize("tokens", [5, 60, 300])
def test_clusters_are_those_of_scipy(tokens):
    vectors = unit(tokens)
    tree = linkage(squareform((1 - vectors @ vectors.T).clamp(0, 2).numpy(), checks=False), "ward")
    for num_clusters in (1, 2, tokens // 2):
        assert together(cluster(vectors, num_clusters)) == together(fcluster(tree, num_clusters, "maxclust"))
    for distance in (0.3, 0.8, 1.5):
        assert together(cluster(vectors, 1, distance)) == together(fcluster(tree, distance, "distance"))


@pytest.mark.parametrize("protected", [0, 1])
@pytest.mark.parametrize("factor", [1.0, 1.5, 2, 7, 1000])
def test_pooled_vectors_are_those_of_sentence_transformers(factor, protected):
    for tokens in (1, 2, 40):
        vectors = unit(tokens)
        ours = Reduction(factor=factor, protected=protected)(vectors, vectors[:, 0])
        theirs = HierarchicalTokenPooling(factor, num_protected_tokens=protected).pool_one(vectors)
        assert torch.allclose(ours[:protected], theirs[:protected], atol=1e-6)
        assert torch.allclose(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()], atol=1e-6)


def test_equal_tokens_become_one():
    vectors = unit(3).repeat(4, 1)
    pooled = Reduction(most=3)(vectors, vectors[:, 0])
    assert torch.allclose(pooled, unit(3), atol=1e-6)
    assert torch.allclose(Reduction(distance=0.01)(vectors, vectors[:, 0]), unit(3), atol=1e-6)


def test_the_strictest_limit_counts_and_distance_stops_it():
    vectors = unit(30)
    similarity = vectors[:, 0]

    def left(**settings: float) -> int:
        return len(Reduction(**settings)(vectors, similarity))

    assert left(topk=12) == left(most=12) == 12
    assert left(factor=2, most=20) == left(factor=2) == 15
    assert left(factor=2, most=8) == 8
    assert left(most=8, protected=1) == 8
    assert left(topk=10, factor=2) == 5
    assert left(topk=50, factor=1, most=50) == 30
    assert left(most=1, distance=0.5) == left(distance=0.5) > 1


def test_the_gradient_goes_through_the_means():
    vectors = unit(12).double().requires_grad_()
    Reduction(most=4, normalize=False)(vectors, vectors[:, 0])[:, 0].sum().backward()
    labels = cluster(vectors, 4)
    shares = 1 / torch.bincount(labels)[labels]
    assert torch.allclose(vectors.grad[:, 0], shares.double())
    assert not vectors.grad[:, 1:].any()
    assert torch.equal(
        mean_by_label(torch.tensor([[2.0], [4.0], [9.0]]), torch.tensor([0, 0, 1])).T, torch.tensor([[3.0, 9.0]])
    )
