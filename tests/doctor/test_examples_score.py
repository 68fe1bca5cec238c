"""What a split holds, and how outputs are judged."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from homeostat.doctor.budget import Budget, Deadline
from homeostat.doctor.examples import examples_of
from homeostat.doctor.score import score_of
from homeostat.errors import HomeostatError

X, Y = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 4


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class ShorterThanItSays(TensorDataset):
    """A loader over it ends before its length is reached."""

    def __len__(self):
        return 80


def ends_early():
    class Loader(DataLoader):
        def __iter__(self):
            return iter(list(super().__iter__())[:2])

    return Loader(TensorDataset(X, Y), batch_size=10)


@pytest.mark.parametrize(
    ("source", "count", "total"),
    [
        ((X, Y), 50, 50),
        (TensorDataset(X, Y), 50, 50),
        (DataLoader(TensorDataset(X, Y), batch_size=7), 50, 50),
        (DataLoader(Stream(), batch_size=7), 50, 50),
        (ends_early(), 20, 20),
        (DataLoader([{"x": x, "label": y} for x, y in zip(X, Y, strict=True)], batch_size=7), 50, 50),
    ],
    ids=["tensors", "dataset", "loader", "stream", "ends early", "dicts"],
)
def test_every_kind_of_split_is_read(source, count, total):
    found = examples_of(source, None, "train", Deadline())
    assert (len(found), found.total) == (count, total)
    inputs = found.inputs["x"] if isinstance(found.inputs, dict) else found.inputs
    assert torch.equal(inputs, X[:count])
    assert torch.equal(found.targets, Y[:count])


def test_reading_stops_at_the_deadline_with_one_batch():
    found = examples_of(DataLoader(TensorDataset(X, Y), batch_size=7), None, "train", Deadline(0))
    assert (len(found), found.total, found.complete) == (7, 50, False)


def test_reading_leaves_global_random_state_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    examples_of(DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True), None, "train", Deadline())
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize(
    "settings",
    [
        lambda draw: {"batch_size": 7, "shuffle": True, "generator": draw},
        lambda draw: {"batch_size": 7, "sampler": RandomSampler(range(50), generator=draw)},
        lambda draw: {"batch_sampler": BatchSampler(RandomSampler(range(50), generator=draw), 7, drop_last=False)},
    ],
    ids=["loader", "sampler", "batch sampler"],
)
def test_reading_leaves_the_users_generators_alone(settings):
    draw = torch.Generator().manual_seed(1)
    before = draw.get_state()
    examples_of(DataLoader(TensorDataset(X, Y), **settings(draw)), None, "train", Deadline())
    assert torch.equal(draw.get_state(), before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "train must hold examples"),
        ((X, Y[:3]), "as many inputs as targets"),
        (DataLoader([(x, x, y) for x, y in zip(X, Y, strict=True)], batch_size=7), "unpack="),
        (DataLoader([{"x": x, "z": y} for x, y in zip(X, Y, strict=True)], batch_size=7), "unpack="),
        ([], "give at least one batch"),
    ],
)
def test_what_cannot_be_read_is_refused(source, message):
    with pytest.raises(HomeostatError, match=message):
        examples_of(source, None, "train", Deadline())


def test_unpack_makes_pairs_of_anything():
    loader = DataLoader([(x, x, y) for x, y in zip(X, Y, strict=True)], batch_size=7)
    found = examples_of(loader, lambda batch: ((batch[0], batch[1]), batch[2]), "train", Deadline())
    assert isinstance(found.inputs, tuple)
    assert len(found.select(torch.tensor([3, 1]))) == 2


@pytest.mark.parametrize(
    ("outputs", "targets", "kind"),
    [
        (torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), "multiclass"),
        (torch.randn(4, 3), torch.eye(3)[[0, 2, 1, 1]], "multiclass"),
        (torch.randn(4, 3, 2, 2), torch.zeros(4, 2, 2, dtype=torch.long), "multiclass"),
        (torch.randn(4, 5, 3), torch.zeros(4, 5, dtype=torch.long), "multiclass"),
        (torch.randn(4, 1), torch.tensor([[0.0], [1.0], [1.0], [0.0]]), "binary"),
        (torch.randn(4), torch.tensor([0.0, 1.0, 1.0, 0.0]), "binary"),
        (torch.randn(4, 1), torch.tensor([[-1.0], [1.0], [1.0], [-1.0]]), "binary"),
        (torch.randn(4, 3), torch.tensor([[0.0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0]]), "multilabel"),
        (torch.randn(4, 1), torch.tensor([[0.5], [1.0], [3.0], [0.0]]), "regression"),
        (torch.randn(4, 1, 2, 2), torch.tensor([[[0, 1], [1, 1]]] * 4), "multilabel"),
        (torch.randn(4, 5, 1), torch.tensor([[0, 1, 1, 0, 0]] * 4, dtype=torch.uint8), "multilabel"),
        (torch.randn(4, 1, 2, 2), torch.tensor([[[False, True], [True, True]]] * 4), "multilabel"),
        (torch.randn(4, 1, 2, 2), torch.tensor([[[0, 3], [1, 7]]] * 4), "regression"),
        (torch.randn(4, 1), torch.tensor([0, 1, 1, 0]), "binary"),
        (torch.randn(4, 3), torch.tensor([0, 5, 4, 9]), "other"),
        (torch.randn(4, 3), torch.tensor([0, 255, 2, 255]), "multiclass"),
        (torch.randn(4, 3), torch.tensor([[[0.5]]] * 4), "other"),
    ],
)
def test_the_task_is_read_off_outputs_and_targets(outputs, targets, kind):
    assert score_of(None, outputs, targets).kind == kind


def test_accuracy_with_class_numbers_one_hot_and_classes_elsewhere():
    outputs = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.0]])
    numbers = torch.tensor([0, 2, 1, 1])
    assert score_of(None, outputs, numbers).of(outputs, numbers) == 0.75
    one_hot = torch.eye(3)[numbers]
    assert score_of(None, outputs, one_hot).of(outputs, one_hot) == 0.75
    words = outputs[None].expand(2, 4, 3)
    judge = score_of(None, words, numbers.expand(2, 4))
    assert judge.of(words, numbers.expand(2, 4)) == 0.75


@pytest.mark.parametrize(
    ("loss", "boundary"),
    [(F.binary_cross_entropy_with_logits, 0.0), (F.mse_loss, 0.5), (F.l1_loss, 0.5), (nn.SoftMarginLoss(), 0.0)],
)
def test_the_loss_tells_where_yes_begins(loss, boundary):
    targets = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    if isinstance(loss, nn.SoftMarginLoss):
        targets = 2 * targets - 1
    outputs = torch.tensor([[-1.3], [0.4], [0.8], [0.2]])
    assert score_of(None, outputs, targets, loss).boundary == pytest.approx(boundary, abs=0.026)


@pytest.mark.parametrize(
    ("loss", "boundary"),
    [
        (F.binary_cross_entropy_with_logits, 0.0),
        (lambda o, t: F.soft_margin_loss(o, 2 * t - 1), 0.0),
        (F.binary_cross_entropy, 0.5),
        (lambda o, t: F.binary_cross_entropy(o, t, weight=1 + 4 * t), 0.5),
        (lambda o, t: -(t * o.clamp(1e-7, 1).log() + (1 - t) * (1 - o).clamp(1e-7, 1).log()).mean(), 0.5),
        (F.mse_loss, 0.5),
    ],
)
def test_outputs_that_begin_between_0_and_1_are_probabilities_only_where_the_loss_takes_them_for_such(loss, boundary):
    targets = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    assert score_of(None, torch.tensor([[0.1], [0.4], [0.8], [0.2]]), targets, loss).boundary == boundary


@pytest.mark.parametrize("task", [None, "binary", "multilabel", "multiclass"])
def test_truth_values_of_pixels_and_words_are_judged_one_by_one(task):
    masks = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 1]]])
    outputs = torch.where(masks == 1, 2.0, -2.0)[:, None]
    outputs[0, 0, 0, 0] = 2.0
    loss = nn.BCEWithLogitsLoss()
    judge = score_of(task, outputs, masks, lambda o, t: loss(o[:, 0], t.float()))
    assert (judge.kind, judge.boundary, judge.of(outputs, masks)) == ("multilabel", 0.0, 7 / 8)
    words = outputs.reshape(2, 4, 1)
    assert score_of(task, words, masks.reshape(2, 4).bool()).of(words, masks.reshape(2, 4).bool()) == 7 / 8


def test_a_binary_task_may_have_an_output_for_no_and_one_for_yes():
    outputs, targets = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 4.0]]), torch.tensor([0, 1, 0])
    judge = score_of("binary", outputs, targets, F.cross_entropy)
    assert (judge.kind, judge.of(outputs, targets)) == ("multiclass", pytest.approx(2 / 3))


def test_r2_is_one_for_the_targets_zero_for_their_mean_and_nan_for_nan():
    targets = torch.tensor([[0.5], [1.0], [3.0], [0.0]])
    judge = score_of(None, targets, targets)
    assert judge.of(targets, targets) == 1.0
    assert judge.of(targets.mean().expand(4, 1), targets) == pytest.approx(0.0)
    assert math.isnan(judge.of(targets * math.nan, targets))


@pytest.mark.parametrize(
    ("text", "wanted"), [("30s", (30.0, None)), ("2m", (120.0, None)), (50, (None, 50)), (1.5, (1.5, None))]
)
def test_budgets(text, wanted):
    budget = Budget.parse(text, "examine")
    assert (budget.seconds, budget.steps) == wanted


@pytest.mark.parametrize("wrong", ["soon", "-3s", 0, -1, True, None, math.inf, "0s"])
def test_budgets_that_are_none(wrong):
    with pytest.raises(HomeostatError, match="positive time or number of steps"):
        Budget.parse(wrong, "examine")


def test_one_output_for_several_classes_is_read_as_the_number_of_the_class():
    score = score_of("multiclass", torch.zeros(4, 1), torch.tensor([0, 2, 1, 1]))
    assert (score.numbered, score.classes) == (True, 3)
    assert score.of(torch.tensor([[0.4], [1.6], [0.9], [2.0]]), torch.tensor([0, 2, 1, 1])) == 0.75


def test_one_output_for_two_classes_is_a_binary_task():
    score = score_of("multiclass", torch.zeros(4, 1), torch.tensor([[0.0], [1.0], [1.0], [0.0]]))
    assert (score.kind, score.numbered) == ("binary", False)


WORDS = torch.tensor([[0, 2, 1, -100], [1, 0, 2, 0], [2, 1, -100, -100]])
SAID = F.one_hot(torch.tensor([[0, 2, 1, 1], [1, 0, 0, 0], [2, 2, 0, 0]]), 3).float()


def masked(loss):
    return lambda o, t: loss(o[t.isfinite()], t[t.isfinite()])


def test_what_the_loss_leaves_out_is_not_judged():
    judge = score_of(None, SAID, WORDS, lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()))
    assert judge.of(SAID, WORDS) == pytest.approx(7 / 9)
    assert judge.labels(WORDS).min() == -1
    images, pixels = SAID[:, :3].movedim(2, 1), WORDS[:, :3].clamp(min=-1) % 256  # 255 is no class
    assert score_of(None, images, pixels).of(images, pixels) == pytest.approx(6 / 8)
    assert math.isnan(judge.of(SAID, torch.full_like(WORDS, -100)))


def test_missing_truth_values_and_numbers_are_not_judged():
    truths = torch.tensor([[0.0, math.nan, 1.0], [1.0, 1.0, math.nan], [1.0, 0.0, 1.0]])
    outputs = torch.tensor([[-1.0, 2.0, 3.0], [1.0, -1.0, 2.0], [3.0, -2.0, 4.0]])
    judge = score_of(None, outputs, truths, masked(F.binary_cross_entropy_with_logits))
    assert (judge.kind, judge.boundary, judge.of(outputs, truths)) == ("multilabel", 0.0, pytest.approx(6 / 7))
    padded = torch.tensor([[0, 1, 1, -100], [1, 0, -100, -100]])
    assert score_of(None, padded[..., None] + 0.1, padded).of(padded[..., None] + 0.1, padded) == 1.0
    values = torch.tensor([[0.5, 1.0], [math.nan, 3.0], [1.5, math.inf], [2.5, 8.0]])
    judge = score_of(None, torch.ones(4, 2), values)
    assert judge.kind == "regression"
    assert judge.spread == pytest.approx(((1 + 0 + 1) + (9 + 1 + 16)) / 6)
    assert judge.of(torch.nan_to_num(values, 7.0, 7.0), values) == 1.0
    assert judge.of(torch.tensor([[1.5, 4.0]]).expand(4, 2), values) == pytest.approx(0.0)


def test_signs_are_told_from_values_that_are_missing():
    signs, coded = torch.tensor([[-1.0], [1.0], [1.0]]), torch.tensor([[-1.0], [1.0], [0.0]])
    assert score_of(None, signs, signs).labels(signs).tolist() == [0, 1, 1]
    assert score_of("binary", coded, coded).labels(coded).tolist() == [-1, 1, 0]


def shifted(o, t):
    """Every word says the next one; nobody says the first."""
    return F.cross_entropy(o[:, :-1].flatten(0, 1), t[:, 1:].flatten())


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten(), ignore_index=2), 2),
        (lambda o, t: F.cross_entropy(o.movedim(2, 1), t, weight=torch.tensor([0.0, 1.0, 2.0, 1.0, 1.0])), 0),
        (lambda o, t: F.nll_loss(o.clamp(1e-7).log().flatten(0, 1), t.flatten(), ignore_index=0), 0),
        (lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()), -1),
        (lambda o, t: F.multi_margin_loss(o.flatten(0, 1), t.flatten()), -1),
        (lambda o, t: F.cross_entropy(o[:, -2:].flatten(0, 1), t[:, -2:].flatten(), ignore_index=2), 2),
        (lambda o, t: o.square().mean(), -1),
        (lambda o, t: 1 / 0, -1),
        (shifted, -1),
    ],
)
def test_the_loss_tells_which_class_it_leaves_out(loss, ignored):
    targets = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3]])
    assert score_of(None, torch.zeros(3, 4, 5), targets, loss).ignored == ignored
