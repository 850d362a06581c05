"""Distillation and the filter by a teacher: their formulas, one pair after the other; strips; extremes; refusals."""

import math
from dataclasses import replace

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss
from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score

from tests.targets import make_targets, ragged, rows_of, select_targets
from tests.unit.losses.batches import RandomBatch, random_batch
from vembed.errors import ConfigError, DataError
from vembed.losses import contrasts, strips
from vembed.losses.factory import LossFactory
from vembed.losses.masks import dense_masks
from vembed.losses.objective import Objective, Teacher, real_scores
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.scoring import cosine, dot, maxsim
from vembed.types import Embeddings, Ragged, Sides

DIM, TEACHER_DIM = 5, 4
SCORERS = {"cosine": (cosine, None), "dot": (dot, None), "maxsim": (maxsim, 3)}
TYPES = ("kl", "mse", "margin_mse")
SOFT = 1.7
PAIRS = [("cosine", "dot"), ("cosine", "maxsim"), ("dot", "cosine"), ("maxsim", "maxsim"), ("maxsim", "dot")]
PAIRS += [("dot", None), ("maxsim", None)]
# type, scorer of the student, scorer of the teacher (None: scores in the data)
CASES = [(kind, *pair) for kind in TYPES for pair in PAIRS]
CASES.append(("cosine", "cosine", "dot"))


def vectors(seed, rows, width=DIM, tokens=None):
    """Embeddings of so many rows, of up to `tokens` tokens each if given; none for every fourth then."""
    generator = torch.Generator().manual_seed(seed)
    if tokens is None:
        return Embeddings(torch.randn(rows, width, generator=generator, dtype=torch.float64))
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
    lengths[3::4] = 0
    made = torch.randn(rows, tokens, width, generator=generator, dtype=torch.float64)
    return Embeddings(made, torch.arange(tokens) < lengths)


def taught(batch, name, seed, width=TEACHER_DIM):
    """The batch with embeddings of a teacher of this scorer."""
    if name is None:
        return batch
    keys = (batch.targets.query_hashes, batch.targets.document_hashes)
    sides = [vectors(seed + number, len(side), width, SCORERS[name][1]) for number, side in enumerate(keys)]
    return replace(batch, targets=replace(batch.targets, teacher=Sides(*sides)))


def make_batch(kind, own, other, seed):
    width = DIM if kind == "cosine" else TEACHER_DIM
    return taught(random_batch(seed, tokens=SCORERS[own][1], num_keys=30), other, seed + 50, width)


def make_objective(kind, own, other, *, alpha=1.0, loss_type="infonce", shared=None, **options) -> Objective:
    soft = {"distillation_temperature": SOFT} if kind == "kl" else {}
    settings = {"loss_type": loss_type, "use_distillation": kind is not None, "distillation_alpha": alpha}
    settings |= {"distillation_type": kind, **soft} if kind else {}
    if other is None and kind is not None:
        settings |= {"teacher_temperature": 0.6}
    return LossFactory.create(
        LossSettings.model_validate(settings | (shared or {})),
        LossRegistry.get(loss_type).settings.model_validate(options),
        scorer=SCORERS[own][0],
        dim=DIM,
        teacher=None if other is None else Teacher(SCORERS[other][0], 0.6, DIM if kind == "cosine" else TEACHER_DIM),
    )


def value_of(objective, batch: RandomBatch):
    return objective(
        batch.queries, batch.documents, batch.targets, logit_scale=batch.logit_scale, logit_bias=batch.logit_bias
    )


def value_and_gradients(objective, batch):
    value = value_of(objective, batch)
    return value, torch.autograd.grad(value, batch.leaves, materialize_grads=True)


@pytest.fixture
def in_strips(monkeypatch):
    def set_rows(rows):
        monkeypatch.setattr(strips, "DENSE_SCORES", -1)
        for module in (strips, contrasts):
            monkeypatch.setattr(module, "strip_rows", lambda _view: rows)

    return set_rows


def distribution(scores):
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def divergence(student, teacher):
    """T^2 KL(teacher || student) of scores, at a temperature of SOFT on both sides."""
    p, q = (distribution([score / SOFT for score in side]) for side in (teacher, student))
    return SOFT**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def rows_in(batch, own, other):
    """For each query: scores of student and teacher of the documents that take part, and which are positive."""
    scale, bias = math.exp(batch.logit_scale.item()), batch.logit_bias.item()
    targets = batch.targets
    raw = SCORERS[own][0](batch.queries, batch.documents).tolist()
    if other is None:
        columns, grades, negatives = rows_of(targets.scored), rows_of(targets.scores), rows_of(targets.negatives)
        for q, (row, values) in enumerate(zip(columns, grades, strict=True)):
            student = [scale * raw[q][d] + bias for d in row]
            yield student, [grade / 0.6 for grade in values], [d not in negatives[q] for d in row]
        return
    masks, teacher = dense_masks(targets), targets.teacher
    real = real_scores(batch.queries, batch.documents) & real_scores(teacher.queries, teacher.documents)
    judged = SCORERS[other][0](teacher.queries, teacher.documents).tolist()
    for q, row in enumerate((masks.valid & real).tolist()):
        chosen = [d for d, counts in enumerate(row) if counts]
        student = [scale * raw[q][d] for d in chosen]
        yield student, [judged[q][d] / 0.6 for d in chosen], [bool(masks.positive[q, d]) for d in chosen]


def naive_term(kind, batch, own, other):
    if kind == "cosine":
        sides = ((batch.queries, batch.targets.teacher.queries), (batch.documents, batch.targets.teacher.documents))
        return sum(naive_distance(student.vectors.tolist(), t.vectors.tolist()) for student, t in sides) / 2
    costs = []
    for student, teacher, positive in rows_in(batch, own, other):
        if kind == "kl":
            costs += [divergence(student, teacher)] if student else []
        elif kind == "mse":
            costs += [(s - t) ** 2 for s, t in zip(student, teacher, strict=True)]
        else:
            numbers = range(len(student))
            costs += [
                ((student[p] - student[n]) - (teacher[p] - teacher[n])) ** 2
                for p in numbers
                for n in numbers
                if positive[p] and not positive[n]
            ]
    return sum(costs) / max(1, len(costs))


def naive_distance(students, teachers):
    distances = []
    for left, right in zip(students, teachers, strict=True):
        lengths = math.hypot(*left) * math.hypot(*right)
        distances.append(1 - sum(a * b for a, b in zip(left, right, strict=True)) / lengths if lengths else 1.0)
    return sum(distances) / len(distances)


@pytest.mark.parametrize(("kind", "own", "other"), CASES)
def test_the_term_equals_a_double_loop(kind, own, other):
    objective = make_objective(kind, own, other)
    values = []
    for seed in range(6):
        batch = make_batch(kind, own, other, seed)
        values.append(value_of(objective, batch).item())
        assert values[-1] == pytest.approx(naive_term(kind, batch, own, other), rel=1e-9, abs=1e-12), seed
    assert sum(value > 1e-3 for value in values) > 2


def test_values_worked_out_by_hand():
    query, documents = Embeddings(torch.ones(1, 1)), Embeddings(torch.tensor([[2.0], [1.0], [0.0]]))
    teacher = Sides(Embeddings(torch.ones(1, 1)), Embeddings(torch.tensor([[math.log(2)], [0.0], [0.0]])))
    targets = replace(make_targets([[0]], 3), teacher=teacher)

    def term(kind, scale=0.0, **shared):
        settings = LossSettings(
            use_distillation=True, distillation_type=kind, distillation_alpha=1, **shared
        )  # the teacher's distribution is 1/2, 1/4, 1/4
        objective = LossFactory.create(settings, scorer=dot, teacher=Teacher(dot))
        return objective(query, documents, targets, logit_scale=torch.tensor([scale])).item()

    e = math.e
    normalizer = math.log(e**2 + e + 1)
    assert term("kl") == pytest.approx(normalizer - 0.5 * (2 + math.log(2)) - 0.25 * (1 + 0 + 2 * math.log(4)))
    assert term("mse") == pytest.approx(((2 - math.log(2)) ** 2 + 1) / 3)
    assert term("margin_mse") == pytest.approx(((1 - math.log(2)) ** 2 + (2 - math.log(2)) ** 2) / 2)
    assert term("mse", math.log(3)) == pytest.approx(((6 - math.log(2)) ** 2 + 9) / 3)
    assert term("mse", teacher_temperature=0.5) == pytest.approx(((2 - 2 * math.log(2)) ** 2 + 1) / 3)
    # Documents point where the teacher's do, but for zeros, which point nowhere.
    assert term("cosine") == pytest.approx((0 + (0 + 1 + 1) / 3) / 2)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("kind", "own", "other"), CASES)
def test_strips_equal_the_full_matrix(kind, own, other, rows, in_strips):
    objective = make_objective(kind, own, other, alpha=0.4)
    batches = [make_batch(kind, own, other, seed) for seed in range(4)]
    expected = [value_and_gradients(objective, batch) for batch in batches]
    in_strips(rows)
    for batch, (wanted, gradients) in zip(batches, expected, strict=True):
        value, found = value_and_gradients(objective, batch)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-12)
        for one, other_one in zip(found, gradients, strict=True):
            assert (one - other_one).norm() <= 1e-12 * max(1.0, float(other_one.norm()))


@pytest.mark.parametrize("kind", TYPES)
def test_in_float32_strips_equal_the_full_matrix_to_rounding(kind, in_strips):
    objective = make_objective(kind, "cosine", "dot")
    batches = [make_batch(kind, "cosine", "dot", seed).to(torch.float32) for seed in range(6)]
    expected = [value_and_gradients(objective, batch) for batch in batches]
    in_strips(2)
    for batch, (wanted, gradients) in zip(batches, expected, strict=True):
        value, found = value_and_gradients(objective, batch)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-6, abs=1e-6)
        for one, other in zip(found, gradients, strict=True):
            assert (one - other).norm() <= 1e-6 * max(1.0, float(other.norm()))


@pytest.mark.parametrize("kind", TYPES)
def test_strips_never_hold_all_scores(kind, in_strips, monkeypatch):
    batch = make_batch(kind, "cosine", "dot", 2)
    seen = []
    real = strips.ScoreView.rows

    def noted(view, start, stop):
        seen.append(stop - start)
        return real(view, start, stop)

    in_strips(2)
    monkeypatch.setattr(strips.ScoreView, "rows", noted)
    monkeypatch.setattr(strips.ScoreView, "dense", lambda _view: pytest.fail("the full matrix was made"))
    value_and_gradients(make_objective(kind, "cosine", "dot"), batch)
    assert set(seen) <= {1, 2}
    assert len(seen) > 1


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize(
    ("kind", "own", "other"), [case for case in CASES if case[1:] in (("cosine", "dot"), ("dot", None))]
)
def test_the_gradient_is_the_derivative(kind, own, other, strip, in_strips):
    batch = make_batch(kind, own, other, 5)
    objective = make_objective(kind, own, other, alpha=0.7)
    if strip:
        in_strips(2)

    def function(queries, documents, scale, bias):
        sides = Embeddings(queries, batch.queries.mask), Embeddings(documents, batch.documents.mask)
        return value_of(objective, RandomBatch(*sides, batch.targets, scale, bias))

    assert torch.autograd.gradcheck(function, tuple(batch.leaves), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "own", "other"), CASES)
def test_half_precision_inputs_are_compared_in_float32(kind, own, other, dtype):
    objective = make_objective(kind, own, other)
    for seed in range(2):
        half = make_batch(kind, own, other, seed).to(dtype)
        if half.targets.teacher is not None:
            sides = (replace(side, vectors=side.vectors.to(dtype)) for side in vars(half.targets.teacher).values())
            half = replace(half, targets=replace(half.targets, teacher=Sides(*sides)))
        value, gradients = value_and_gradients(objective, half)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(value_of(objective, half.to(torch.float64)).item(), rel=1e-4, abs=1e-5)
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("kind", "own", "other"), CASES)
def test_the_order_of_rows_does_not_matter(kind, own, other):
    objective = make_objective(kind, own, other, alpha=0.4)
    for seed in range(3):
        batch = make_batch(kind, own, other, seed)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(batch.queries.vectors), generator=generator)
        columns = torch.randperm(len(batch.documents.vectors), generator=generator)
        targets, teacher = select_targets(batch.targets, rows.tolist(), columns.tolist()), batch.targets.teacher
        if teacher is not None:
            moved_teacher = Sides(take(teacher.queries, rows), take(teacher.documents, columns))
            targets = replace(targets, teacher=moved_teacher)
        moved = replace(
            batch, queries=take(batch.queries, rows), documents=take(batch.documents, columns), targets=targets
        )
        assert value_of(objective, moved).item() == pytest.approx(value_of(objective, batch).item(), rel=1e-10)


def take(side, rows):
    return Embeddings(side.vectors[rows], None if side.mask is None else side.mask[rows])


EXTREMES = {
    "one row": make_targets([[0]], 1),
    "one row that names all documents": make_targets([[0, 1, 2]], 3),
    "all rows one group": make_targets([[0], [1], [2]], 3, query_groups=[4, 4, 4], document_groups=[4, 4, 4]),
    "the only other document is the query itself": make_targets([[0]], 2, query_hashes=[5], document_hashes=[4, 5]),
}


def filled(rows, kind, tokens, width=DIM):
    shape = (rows, width) if tokens is None else (rows, tokens, width)
    made = {"zero": torch.zeros, "equal": torch.ones, "large": lambda *s: 50 * torch.ones(*s).cumsum(0)}[kind](*shape)
    return Embeddings(made.double(), None if tokens is None else torch.ones(shape[:2], dtype=torch.bool))


@pytest.mark.parametrize(
    ("kind", "own", "other"), [case for case in CASES if case[1:] in (("cosine", "dot"), ("maxsim", "maxsim"))]
)
def test_extremes_give_finite_numbers_without_a_nan_on_the_way(kind, own, other):
    objective = make_objective(kind, own, other, alpha=0.5)
    width = DIM if kind == "cosine" else TEACHER_DIM
    for targets in EXTREMES.values():
        for form in ("zero", "equal", "large"):
            sizes = (len(targets.query_hashes), len(targets.document_hashes))
            sides = [filled(rows, form, SCORERS[own][1]) for rows in sizes]
            judged = [filled(rows, form, SCORERS[other][1], width) for rows in sizes]
            scale, bias = (torch.tensor([one], dtype=torch.float64, requires_grad=True) for one in (4.0, -0.7))
            leaves = [Embeddings(side.vectors.requires_grad_(), side.mask) for side in sides]
            batch = RandomBatch(*leaves, replace(targets, teacher=Sides(*judged)), scale, bias)
            with torch.autograd.set_detect_anomaly(True, check_nan=True):
                value, gradients = value_and_gradients(objective, batch)
            assert value.isfinite()
            assert all(gradient.isfinite().all() for gradient in gradients)
            if kind != "kl" or form != "large":  # where Python's exp overflows
                wanted = naive_term(kind, batch, own, other)
                assert value_of(make_objective(kind, own, other), batch).item() == pytest.approx(
                    wanted, rel=1e-9, abs=1e-9
                )


@pytest.mark.parametrize("masked", ["student", "teacher"])
@pytest.mark.parametrize("kind", TYPES)
def test_rows_whose_tokens_are_all_padding_cost_nothing(kind, masked):
    batch = make_batch(kind, "maxsim", "maxsim", 3)

    def emptied(side):
        return Embeddings(side.vectors, torch.zeros_like(side.mask))

    if masked == "student":
        batch = replace(batch, queries=emptied(batch.queries), documents=emptied(batch.documents))
    else:
        teacher = batch.targets.teacher
        batch = replace(
            batch, targets=replace(batch.targets, teacher=Sides(emptied(teacher.queries), emptied(teacher.documents)))
        )
    value, gradients = value_and_gradients(make_objective(kind, "maxsim", "maxsim"), batch)
    assert value.item() == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("kind", TYPES)
def test_rows_without_stored_scores_cost_nothing(kind):
    batch = random_batch(5)
    columns, grades = rows_of(batch.targets.scored), rows_of(batch.targets.scores)
    assert len(columns) > 2
    columns, grades = ([row if q % 2 else [] for q, row in enumerate(side)] for side in (columns, grades))
    scores = Ragged(torch.tensor([one for row in grades for one in row]).double(), ragged(columns).counts)
    batch = replace(batch, targets=replace(batch.targets, scored=ragged(columns), scores=scores))
    value = value_of(make_objective(kind, "dot", None), batch)
    assert value.item() == pytest.approx(naive_term(kind, batch, "dot", None), rel=1e-9)
    none = replace(batch, targets=replace(batch.targets, scored=None, scores=None))
    with pytest.raises(DataError, match=r"distillation compares with scores; rows need a `score`"):
        value_of(make_objective(kind, "dot", None), none)


@pytest.mark.parametrize("kind", [*TYPES, "cosine"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind):
    batch = random_batch(5)
    teacher = Sides(Embeddings(batch.queries.vectors.detach()), Embeddings(batch.documents.vectors.detach()))
    temperature = math.exp(-batch.logit_scale.item())
    settings = LossSettings(use_distillation=True, distillation_type=kind, distillation_alpha=1)
    objective = LossFactory.create(settings, dim=DIM, teacher=Teacher(cosine, temperature, DIM))
    alike = replace(batch, targets=replace(batch.targets, teacher=teacher), logit_bias=torch.zeros(1).double())
    value, gradients = value_and_gradients(
        objective, replace(alike, logit_bias=alike.logit_bias.detach().requires_grad_())
    )
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert all(gradient.norm() < 1e-12 for gradient in gradients)


@pytest.mark.parametrize("loss_type", ["infonce", "sigmoid", "margin_mse", "cosent"])
def test_the_total_is_a_mixture_of_loss_and_term(loss_type):
    batch = make_batch("kl", "cosine", "dot", 5)
    loss = value_of(LossFactory.create(LossSettings(loss_type=loss_type)), batch)
    term = value_of(make_objective("kl", "cosine", "dot"), batch)
    mixed = value_of(make_objective("kl", "cosine", "dot", alpha=0.3, loss_type=loss_type), batch)
    assert mixed.item() == pytest.approx(0.7 * loss.item() + 0.3 * term.item(), rel=1e-12)


def test_the_loss_called_distillation_is_that_over_infonce():
    batch = make_batch("kl", "cosine", "dot", 5)
    named = LossFactory.create(LossSettings(loss_type="distillation"), teacher=Teacher(dot, 0.6))
    plain = LossFactory.create(LossSettings(use_distillation=True), teacher=Teacher(dot, 0.6))
    assert value_of(named, batch).item() == value_of(plain, batch).item()


@pytest.mark.parametrize("kind", [*TYPES, "cosine"])
def test_under_matryoshka_scores_are_learned_at_every_width_and_embeddings_at_the_full_one(kind):
    batch = make_batch(kind, "cosine", "dot", 5)
    mrl = {"use_mrl": True, "mrl_dims": (5, 2), "mrl_weights": (1.0, 0.5)}
    value = value_of(make_objective(kind, "cosine", "dot", alpha=0.3, shared=mrl), batch).item()
    cut = replace(
        batch, queries=Embeddings(batch.queries.vectors[:, :2]), documents=Embeddings(batch.documents.vectors[:, :2])
    )
    loss = value_of(LossFactory.create(LossSettings()), batch) + 0.5 * value_of(LossFactory.create(LossSettings()), cut)
    term = value_of(make_objective(kind, "cosine", "dot"), batch)
    if kind != "cosine":
        term = term + 0.5 * value_of(make_objective(kind, "cosine", "dot"), cut)
    assert value == pytest.approx(0.7 * loss.item() + 0.3 * term.item(), rel=1e-12)


def columns(num, rows=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, DIM, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(num)]


def scored_targets(num_negatives, grades, rows=6):
    """A positive per query, then the first negative of each, and so on; these grades for each row's documents."""
    negatives = [[rows * (1 + number) + row for number in range(num_negatives)] for row in range(rows)]
    targets = make_targets([[row] for row in range(rows)], rows * (1 + num_negatives), negatives=negatives)
    scored = ragged([[row, *negatives[row]] for row in range(rows)])
    return replace(targets, scored=scored, scores=Ragged(grades.flatten(), scored.counts))


def assert_as_theirs(value, theirs, leaves):
    assert value.item() == pytest.approx(theirs.item(), rel=1e-10)
    pairs = zip(torch.autograd.grad(value, leaves), torch.autograd.grad(theirs, leaves), strict=True)
    assert all(torch.allclose(gradient, other, rtol=1e-8, atol=1e-11) for gradient, other in pairs)


@pytest.mark.parametrize(("scorer", "similarity"), [(cosine, pairwise_cos_sim), (dot, pairwise_dot_score)])
@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.5])
@pytest.mark.parametrize("num_negatives", [1, 3])
def test_kl_of_stored_scores_is_that_of_sentence_transformers(num_negatives, temperature, scorer, similarity):
    leaves = columns(2 + num_negatives)
    grades = torch.randn(6, 1 + num_negatives, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    theirs = DistillKLDivLoss(model=None, similarity_fct=similarity, temperature=temperature)
    settings = LossSettings(
        loss_type="distillation", distillation_alpha=1, distillation_temperature=temperature, temperature=1
    )
    value = LossFactory.create(settings, scorer=scorer)(
        Embeddings(leaves[0]),
        Embeddings(torch.cat(leaves[1:])),
        scored_targets(num_negatives, grades),
        logit_scale=torch.zeros(1, dtype=torch.float64),
    )
    assert_as_theirs(value, theirs.compute_loss_from_embeddings(leaves, grades), leaves)


def test_temperatures_of_their_own_are_those_of_sentence_transformers():
    """Theirs are a student's 0.2 and a teacher's 0.5; the student's is the model's own here, the factor T^2 apart."""
    leaves, grades = columns(4), torch.randn(6, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    theirs = DistillKLDivLoss(
        model=None, similarity_fct=pairwise_cos_sim, student_temperature=0.2, teacher_temperature=0.5
    )
    settings = LossSettings(loss_type="distillation", distillation_alpha=1, teacher_temperature=0.5)
    value = LossFactory.create(settings)(
        Embeddings(leaves[0]),
        Embeddings(torch.cat(leaves[1:])),
        scored_targets(2, grades),
        logit_scale=torch.tensor([1 / 0.2], dtype=torch.float64).log(),
    )
    assert_as_theirs(0.2**2 * value, theirs.compute_loss_from_embeddings(leaves, grades), leaves)


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_margins_of_stored_scores_are_those_of_sentence_transformers(num_negatives):
    leaves = columns(2 + num_negatives)
    grades = torch.randn(6, 1 + num_negatives, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    settings = LossSettings(loss_type="distillation", distillation_alpha=1, distillation_type="margin_mse")
    value = LossFactory.create(settings, scorer=dot)(
        Embeddings(leaves[0]),
        Embeddings(torch.cat(leaves[1:])),
        scored_targets(num_negatives, grades),
        logit_scale=torch.zeros(1, dtype=torch.float64),
    )
    assert_as_theirs(value, MarginMSELoss(model=None).compute_loss_from_embeddings(leaves, grades), leaves)


MARGINS = [
    {"false_negative_teacher_margin": 0.1},
    {"false_negative_teacher_relative_margin": 0.3},
    {"false_negative_teacher_margin": 0.0, "false_negative_margin": 0.05},
    {"false_negative_teacher_margin": 0.1, "false_negative_teacher_relative_margin": 0.1, "hardness_strength": 2.0},
]


def naive_filtered(batch, other, options):
    """infonce from queries to documents without the negatives that the teacher, or the model, takes for positives."""
    scale, bias = math.exp(batch.logit_scale.item()), batch.logit_bias.item()
    masks, teacher = dense_masks(batch.targets), batch.targets.teacher
    raw = cosine(batch.queries, batch.documents).tolist()
    judged = SCORERS[other][0](teacher.queries, teacher.documents).tolist()
    real = real_scores(teacher.queries, teacher.documents).tolist()
    losses = []
    for q in range(len(raw)):
        positives = [d for d in range(len(raw[0])) if masks.positive[q, d]]
        against = 0.0
        for d in range(len(raw[0])):
            if not masks.negative[q, d]:
                continue
            limits = [math.inf]
            best = max((judged[q][p] for p in positives if real[q][p]), default=None)
            if best is not None and real[q][d]:
                limits.append(best - options.get("false_negative_teacher_margin", 0))
                limits.append(best - options.get("false_negative_teacher_relative_margin", 0) * abs(best))
            own = (
                max(raw[q][p] for p in positives) - options["false_negative_margin"]
                if ("false_negative_margin" in options)
                else math.inf
            )
            if masks.explicit[q, d] or (judged[q][d] <= min(limits) and raw[q][d] <= own):
                against += math.exp(scale * raw[q][d] + bias + options.get("hardness_strength", 0) * raw[q][d])
        own_losses = []
        for p in positives:
            mine = math.exp(scale * raw[q][p] + bias)
            own_losses.append(-math.log(mine / (mine + against)))
        losses.append(sum(own_losses) / len(own_losses))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("other", ["dot", "maxsim"])
@pytest.mark.parametrize("options", MARGINS)
def test_negatives_that_the_teacher_takes_for_positives_are_left_out(options, other, rows, in_strips):
    objective = make_objective(None, "cosine", other, loss_direction="query_to_document", **options)
    own = {name: value for name, value in options.items() if "teacher" not in name}
    own["loss_direction"] = "query_to_document"
    plain = LossFactory.create(LossSettings(), LossRegistry.get("infonce").settings.model_validate(own))
    batches = [make_batch(None, "cosine", other, seed) for seed in range(8)]
    expected = [value_and_gradients(objective, batch) for batch in batches]
    changed = sum(
        value_of(plain, batch).item() > value.item() + 1e-6 for batch, (value, _) in zip(batches, expected, strict=True)
    )
    assert changed >= 3
    if rows is not None:
        in_strips(rows)
    for batch, (wanted, gradients) in zip(batches, expected, strict=True):
        value, found = value_and_gradients(objective, batch)
        assert value.item() == pytest.approx(naive_filtered(batch, other, options), rel=1e-9)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-12)
        for one, other_one in zip(found, gradients, strict=True):
            assert (one - other_one).norm() <= 1e-12 * max(1.0, float(other_one.norm()))


def test_the_filter_and_the_term_read_one_teacher():
    batch = make_batch("kl", "cosine", "dot", 5)
    both = make_objective("kl", "cosine", "dot", alpha=0.3, false_negative_teacher_margin=0.1)
    loss = make_objective(None, "cosine", "dot", false_negative_teacher_margin=0.1)
    term = make_objective("kl", "cosine", "dot")
    wanted = 0.7 * value_of(loss, batch) + 0.3 * value_of(term, batch)
    assert value_of(both, batch).item() == pytest.approx(wanted.item(), rel=1e-12)


TEACHER = Teacher(cosine, 0.05, 7)


@pytest.mark.parametrize(
    ("settings", "options", "teacher", "scorer", "words"),
    [
        (
            {},
            {},
            TEACHER,
            cosine,
            "teacher_model_name: nothing would be learned from the teacher; set use_distillation",
        ),
        ({"loss_type": "sigmoid"}, {}, TEACHER, cosine, "nothing would be learned from the teacher"),
        (
            {"use_distillation": True, "distillation_type": "cosine"},
            {},
            TEACHER,
            cosine,
            "embeddings of one width: the teacher's have 7 numbers, the model's 5; kl, mse and margin_mse",
        ),
        (
            {"use_distillation": True, "distillation_type": "cosine"},
            {},
            Teacher(maxsim, 1, 5),
            cosine,
            "one vector per row with another, and the teacher has one per token",
        ),
        (
            {"use_distillation": True, "distillation_type": "cosine"},
            {},
            Teacher(cosine, 1, 5),
            maxsim,
            "one vector per row with another, and the model has one per token",
        ),
        (
            {"use_distillation": True, "distillation_type": "cosine"},
            {},
            None,
            cosine,
            "cosine compares with a teacher's embeddings, not with scores in the data; set teacher_model_name",
        ),
        (
            {},
            {"false_negative_teacher_margin": 0.1},
            None,
            cosine,
            "false_negative_teacher_margin: goes by a teacher's embeddings; set teacher_model_name",
        ),
        (
            {"use_distillation": True, "distillation_type": "cosine", "teacher_temperature": 2.0},
            {},
            Teacher(cosine, 1, 5),
            cosine,
            "teacher_temperature: has an effect only where",
        ),
    ],
)
def test_a_teacher_that_cannot_be_learned_from_is_refused(settings, options, teacher, scorer, words):
    section = LossRegistry.get(settings.get("loss_type", "infonce")).settings.model_validate(options)
    with pytest.raises(ConfigError, match=words):
        LossFactory.create(LossSettings.model_validate(settings), section, scorer=scorer, dim=DIM, teacher=teacher)


@pytest.mark.parametrize("kind", ["kl", "cosine"])
def test_a_batch_without_the_teachers_embeddings_is_refused(kind):
    objective = make_objective(kind, "cosine", "dot")
    with pytest.raises(DataError, match="the batch brings no"):
        value_of(objective, random_batch(3))
