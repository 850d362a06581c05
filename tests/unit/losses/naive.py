"""Every loss once more as its docstring says it: one pair after the other, in Python's own floats."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.targets import rows_of
from tests.unit.losses.batches import CASES, CLASS_LOSSES, CLASSES, RandomBatch, is_cut, make_objective
from vembed.losses.functions.colbert import mean_over_tokens
from vembed.losses.masks import dense_masks, document_mask_strips, query_mask_strips
from vembed.types import Embeddings, Sides, Targets

Matrix = Sequence[Sequence[float]]
Kinds = Sequence[Sequence[bool]]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """Raw scores of queries x documents, queries x queries and documents x documents, and what the keys say.

    reference: scores of queries x documents by the reference.
    """

    raw: Matrix
    reference: Matrix
    among_queries: Matrix
    among_documents: Matrix
    targets: Targets
    scale: float
    bias: float

    def score(self, query: int, document: int) -> float:
        return self.scale * self.raw[query][document] + self.bias

    def kinds(self, *, private: bool = False) -> tuple[Kinds, Kinds, Kinds]:
        """Positive, negative, explicit negative; test_masks holds the masks against a double loop of their own."""
        masks = dense_masks(self.targets, private_negatives=private)
        return masks.positive.tolist(), masks.negative.tolist(), masks.explicit.tolist()


def naive_loss(name: str, batch: RandomBatch, scorer: Callable[[Embeddings, Embeddings], torch.Tensor]) -> float:
    """The value of one of CASES."""
    loss_type, options, shared = CASES[name]
    if options.get("maxsim_reduction") == "mean":
        scorer = mean_over_tokens
    if loss_type in CLASS_LOSSES:
        weights = make_objective(name, scorer, batch.queries.vectors.shape[-1]).classes.weight.tolist()
        widths = shared.get("mrl_dims", (len(weights[0]),)), shared.get("mrl_weights", (1.0,))
        losses = [class_loss(name, batch, [row[:width] for row in weights]) for width in widths[0]]
        return sum(weight * loss for weight, loss in zip(widths[1], losses, strict=True))
    if is_cut(name):
        at_once = "infonce" if loss_type == "mrl" else loss_type
        return sum(
            weight * naive_loss(at_once, cut(batch, width), scorer)
            for width, weight in zip(shared["mrl_dims"], shared["mrl_weights"], strict=True)
        )
    queries, documents, reference = batch.queries, batch.documents, batch.targets.reference
    assert reference is not None
    case = Case(
        scorer(queries, documents).tolist(),
        scorer(reference.queries, reference.documents).tolist(),
        scorer(queries, queries).tolist(),
        scorer(documents, documents).tolist(),
        batch.targets,
        math.exp(batch.logit_scale.item()),
        batch.logit_bias.item(),
    )
    return LOSSES[loss_type](case, options)


def cut(batch: RandomBatch, width: int) -> RandomBatch:
    def narrow(side: Embeddings) -> Embeddings:
        if width == side.vectors.shape[-1]:
            return side
        vectors = side.vectors[..., :width]
        return Embeddings(vectors / vectors.norm(dim=-1, keepdim=True), side.mask)

    reference = batch.targets.reference
    assert reference is not None
    targets = replace(batch.targets, reference=Sides(narrow(reference.queries), narrow(reference.documents)))
    return RandomBatch(narrow(batch.queries), narrow(batch.documents), targets, batch.logit_scale, batch.logit_bias)


def infonce(case: Case, options: Options) -> float:
    positive, negative, explicit = case.kinds(private=options.get("private_negatives", False))
    num_queries, num_documents = len(case.raw), len(case.raw[0])
    weights = [[0.0] * num_documents for _ in range(num_queries)]
    for q in range(num_queries):
        best = max((case.raw[q][d] for d in range(num_documents) if positive[q][d]), default=None)
        for d in range(num_documents):
            if negative[q][d] and (explicit[q][d] or not too_good(case.raw[q][d], best, options)):
                weights[q][d] = hardness(case.raw[q][d], explicit[q][d], options)
    own_queries = own_side(case, case.among_queries, query_mask_strips) if options.get("query_to_query") else {}
    own_documents = (
        own_side(case, case.among_documents, document_mask_strips) if options.get("document_to_document") else {}
    )

    def against_query(q: int) -> list[tuple[float, float]]:
        return [(case.score(q, d), weights[q][d]) for d in range(num_documents) if weights[q][d]] + own_queries.get(
            q, []
        )

    def against_document(d: int) -> list[tuple[float, float]]:
        return [(case.score(q, d), weights[q][d]) for q in range(num_queries) if weights[q][d]] + own_documents.get(
            d, []
        )

    smoothing = options.get("label_smoothing", 0.0)
    pairs = [(q, d) for q in range(num_queries) for d in range(num_documents) if positive[q][d]]
    if options.get("joint_denominator"):
        return mean_of_means(
            [(q, softmax_loss(case.score(q, d), against_query(q) + against_document(d), smoothing)) for q, d in pairs]
        )
    sides = {
        "query_to_document": [(q, softmax_loss(case.score(q, d), against_query(q), smoothing)) for q, d in pairs],
        "document_to_query": [(d, softmax_loss(case.score(q, d), against_document(d), smoothing)) for q, d in pairs],
    }
    return directed(sides, options)


def too_good(score: float, best: float | None, options: Options) -> bool:
    margin, relative = (options.get(f"false_negative_{name}margin") for name in ("", "relative_"))
    if best is None:
        return False
    return (margin is not None and score > best - margin) or (
        relative is not None and score > best - relative * abs(best)
    )


def hardness(score: float, explicit: bool, options: Options) -> float:
    strength = options.get("hardness_strength")
    applies = {"all": True, "explicit": explicit, "in_batch": not explicit}[options.get("hardness_on", "all")]
    return math.exp(strength * score) if strength and applies else 1.0


def own_side(case: Case, scores: Matrix, strips: Callable) -> dict[int, list[tuple[float, float]]]:
    (masks,) = strips(case.targets, 1000)
    valid = masks.valid.tolist()
    return {
        row: [
            (case.scale * score + case.bias, 1.0)
            for score, counts in zip(scores[row], valid[row], strict=True)
            if counts
        ]
        for row in range(len(scores))
    }


def softmax_loss(score: float, against: list[tuple[float, float]], smoothing: float = 0.0) -> float:
    log_sum = math.log(math.exp(score) + sum(weight * math.exp(other) for other, weight in against))
    mean = (score + sum(other for other, _ in against)) / (1 + len(against))
    return log_sum - (1 - smoothing) * score - smoothing * mean


def mean_of_means(losses: list[tuple[int, float]]) -> float:
    anchors = {anchor: [loss for other, loss in losses if other == anchor] for anchor, _ in losses}
    return sum(sum(own) / len(own) for own in anchors.values()) / len(anchors)


def directed(sides: Mapping[str, list[tuple[int, float]]], options: Options) -> float:
    values = {name: mean_of_means(losses) for name, losses in sides.items()}
    direction = options.get("loss_direction", "both")
    return sum(values.values()) / 2 if direction == "both" else values[direction]


def supcon(case: Case, options: Options) -> float:
    positive, negative, _ = case.kinds()
    queries, documents = range(len(case.raw)), range(len(case.raw[0]))
    sides: dict[str, list[tuple[int, float]]] = {"query_to_document": [], "document_to_query": []}
    for q in queries:
        for d in documents:
            if positive[q][d]:
                row = [case.score(q, c) for c in documents if positive[q][c] or negative[q][c]]
                column = [case.score(c, d) for c in queries if positive[c][d] or negative[c][d]]
                sides["query_to_document"].append((q, math.log(sum(map(math.exp, row))) - case.score(q, d)))
                sides["document_to_query"].append((d, math.log(sum(map(math.exp, column))) - case.score(q, d)))
    return directed(sides, options)


def sigmoid(case: Case, options: Options) -> float:
    positive, negative, _ = case.kinds(private=options.get("private_negatives", False))
    total = 0.0
    for q in range(len(case.raw)):
        for d in range(len(case.raw[0])):
            if positive[q][d]:
                total += math.log(1 + math.exp(-case.score(q, d)))
            elif negative[q][d]:
                total += math.log(1 + math.exp(case.score(q, d)))
    return total / len(case.raw)


def hard_negative(case: Case, options: Options) -> float:
    positive, negative, _ = case.kinds()
    losses = []
    for q in range(len(case.raw)):
        hardest = sorted((case.score(q, d) for d in range(len(case.raw[0])) if negative[q][d]), reverse=True)
        kept = [(score, 1.0) for score in hardest[: options["num_hardest"]]]
        losses += [(q, softmax_loss(case.score(q, d), kept)) for d in range(len(case.raw[0])) if positive[q][d]]
    return mean_of_means(losses)


def triplet(case: Case, options: Options) -> float:
    positive, negative, explicit = case.kinds()
    mining = options.get("triplet_mining", "batch_hard")

    def cost(wanted: float, other: float) -> float:
        if options.get("soft_margin"):
            return math.log(1 + math.exp(other - wanted))
        return max(0.0, options.get("margin", 0.2) - wanted + other)

    costs: list[float] = []
    for row, chosen, against, named in zip(case.raw, positive, negative, explicit, strict=True):
        wanted = [score for score, counts in zip(row, chosen, strict=True) if counts]
        others = [
            score for score, counts in zip(row, named if mining == "explicit" else against, strict=True) if counts
        ]
        if not wanted or not others:
            continue
        if mining == "batch_hard":
            costs.append(cost(min(wanted), max(others)))
        elif mining == "batch_semi_hard":
            for score in wanted:
                below = [other for other in others if other < score]
                costs.append(cost(score, max(below) if below else min(others)))
        else:
            all_costs = [cost(score, other) for score in wanted for other in others]
            costs += [value for value in all_costs if mining == "explicit" or value > 0]
    return sum(costs) / max(1, len(costs))


def cosent(case: Case, options: Options) -> float:
    if options.get("cosent_pairs") == "in_batch":
        positive, negative, _ = case.kinds()
        places = [(q, d) for q in range(len(case.raw)) for d in range(len(case.raw[0]))]
        graded = [(case.score(q, d), 1.0) for q, d in places if positive[q][d]]
        graded += [(case.score(q, d), 0.0) for q, d in places if negative[q][d]]
    else:
        graded = [(case.score(q, d), grade) for q, d, grade, _ in scored(case.targets)]
    return math.log(1 + sum(math.exp(low - high) for high, more in graded for low, less in graded if more > less))


def contrastive(case: Case, _options: Options) -> float:
    costs = []
    for q, d, label, _ in scored(case.targets):
        distance = 1 - case.raw[q][d]
        costs.append((label * distance**2 + (1 - label) * max(0.0, 0.5 - distance) ** 2) / 2)
    return sum(costs) / len(costs)


def margin_mse(case: Case, _options: Options) -> float:
    pairs = scored(case.targets)
    costs = [
        (case.score(q, d) - case.score(other, e) - (high - low)) ** 2
        for q, d, high, against in pairs
        for other, e, low, below in pairs
        if q == other and below and not against
    ]
    return sum(costs) / max(1, len(costs))


def preference(case: Case, options: Options) -> float:
    beta, smoothing = options.get("preference_beta", 0.1), options.get("preference_label_smoothing", 0.0)
    costs = []
    rows = zip(rows_of(case.targets.positives), rows_of(case.targets.negatives), strict=True)
    for q, (chosen, rejected) in enumerate(rows):
        for c in chosen:
            for r in rejected:
                if r in chosen:
                    continue
                lead = case.raw[q][c] - case.raw[q][r] - (case.reference[q][c] - case.reference[q][r])
                right, wrong = (math.log1p(math.exp(sign * beta * case.scale * lead)) for sign in (-1, 1))
                costs.append((1 - smoothing) * right + smoothing * wrong)
    loss = sum(costs) / max(1, len(costs))
    weight = options.get("preference_infonce_weight", 0.0)
    return loss + weight * infonce(case, {}) if weight else loss


def distillation(case: Case, options: Options) -> float:
    """Half infonce, half the divergence from the distribution that the scores in the data make."""
    rows: dict[int, list[tuple[float, float]]] = {}
    for q, d, grade, _ in scored(case.targets):
        rows.setdefault(q, []).append((case.score(q, d), grade))
    costs = []
    for pairs in rows.values():
        student, teacher = ([math.exp(pair[side]) for pair in pairs] for side in (0, 1))
        shares = [(own / sum(student), wanted / sum(teacher)) for own, wanted in zip(student, teacher, strict=True)]
        costs.append(sum(wanted * math.log(wanted / own) for own, wanted in shares))
    return 0.5 * infonce(case, options) + 0.5 * sum(costs) / len(costs)


def scored(targets: Targets) -> list[tuple[int, int, float, bool]]:
    """Query, document, score, and whether the row names the document as a negative."""
    assert targets.scored is not None
    assert targets.scores is not None
    columns, grades = rows_of(targets.scored), rows_of(targets.scores)
    negatives = rows_of(targets.negatives)
    return [
        (q, d, grade, d in negatives[q])
        for q, (row, values) in enumerate(zip(columns, grades, strict=True))
        for d, grade in zip(row, values, strict=True)
    ]


def class_loss(name: str, batch: RandomBatch, weights: Matrix) -> float:
    """arcface or proxy_anchor with these weights, whose width is that of the embeddings too."""
    loss_type, options, _ = CASES[name]
    places = class_places(batch, len(weights[0]))
    classes = {
        content: {one for _, other, own in places for one in own if other == content} for _, content, _ in places
    }
    counts = Counter(content for _, content, _ in places)
    cosines = [[cosine_of(vector, weight) for weight in weights] for vector, _, _ in places]
    if loss_type == "proxy_anchor":
        return naive_proxy_anchor(cosines, places, classes, counts, options)
    total = 0.0
    for row, (_, content, _) in zip(cosines, places, strict=True):
        total += naive_arcface(row, classes[content], options) / counts[content]
    return total / max(1, len(counts))


Place = tuple[Sequence[float], int, set[int]]  # a vector, its content, and the groups of the rows that hold it there


def class_places(batch: RandomBatch, width: int) -> list[Place]:
    targets = batch.targets
    groups, positives = targets.query_groups.tolist(), rows_of(targets.positives)
    queries, documents = (side.vectors[:, :width].tolist() for side in (batch.queries, batch.documents))
    places = [
        (vector, content, {group})
        for vector, content, group in zip(queries, targets.query_hashes.tolist(), groups, strict=True)
    ]
    for column, (vector, content) in enumerate(zip(documents, targets.document_hashes.tolist(), strict=True)):
        holders = {group for group, row in zip(groups, positives, strict=True) if column in row}
        places.append((vector, content, holders))
    return [(vector, content, own - {-1}) for vector, content, own in places if own - {-1}]


def cosine_of(left: Sequence[float], right: Sequence[float]) -> float:
    lengths = math.hypot(*left) * math.hypot(*right)
    return sum(a * b for a, b in zip(left, right, strict=True)) / lengths if lengths else 0.0


def naive_arcface(cosines: Sequence[float], own: set[int], options: Options) -> float:
    margin, scale, per_class = (
        options.get("arcface_margin", 0.5),
        options["class_scale"],
        options.get("sub_centres", 1),
    )
    nearest = [max(cosines[start : start + per_class]) for start in range(0, len(cosines), per_class)]
    others = sum(math.exp(scale * score) for number, score in enumerate(nearest) if number not in own)
    losses = []
    for number in own:
        angle = math.acos(max(-1.0, min(1.0, nearest[number])))
        shifted = math.cos(angle + margin) if angle + margin <= math.pi else math.cos(angle) - margin * math.sin(margin)
        mine = math.exp(scale * shifted)
        losses.append(-math.log(mine / (mine + others)))
    return sum(losses) / len(losses)


def naive_proxy_anchor(
    cosines: Matrix, places: list[Place], classes: dict[int, set[int]], counts: Mapping[int, int], options: Options
) -> float:
    scale, margin = options.get("class_scale", 32.0), 0.1
    num_present, num_classes = len(set().union(*classes.values())), len(CLASSES)
    total = 0.0
    for proxy in range(num_classes):
        pull = push = 0.0
        for row, (_, content, _) in zip(cosines, places, strict=True):
            if proxy in classes[content]:
                pull += math.exp(-scale * (row[proxy] - margin)) / counts[content]
            else:
                push += math.exp(scale * (row[proxy] + margin)) / counts[content]
        total += math.log(1 + pull) / max(1, num_present) + math.log(1 + push) / num_classes
    return total


LOSSES: dict[str, Callable[[Case, Options], float]] = {
    "infonce": infonce,
    "colbert": infonce,
    "supcon": supcon,
    "sigmoid": sigmoid,
    "hard_negative": hard_negative,
    "in_batch_hard": hard_negative,
    "triplet": triplet,
    "cosent": cosent,
    "contrastive": contrastive,
    "margin_mse": margin_mse,
    "preference": preference,
    "distillation": distillation,
}
