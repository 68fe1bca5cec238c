"""What folding refuses because it is not exact, what it tells the user, and PyTorch's known wrong answers."""

from __future__ import annotations

import pytest
import torch
from fold_models import Calls, fold_with_plan, folded, norms_in, outputs, reason, settle
from torch import nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import HomeostatError, InvalidType, InvalidValue, NoEffectWarning
from homeostat.parts.fold import fold, plan_folding
from homeostat.parts.fold.check import relative_difference, second_batch
from homeostat.parts.norm import make_norm

pytestmark = pytest.mark.usefixtures("one_thread")

X2 = torch.randn(3, 4, 9, 9)


# Wrong answers of others, and everything that must stay


def test_convolution_shared_with_a_path_without_norm():
    """pytorch/pytorch#197539 and #104593: the fused weights leak into the second path."""
    model = settle(
        Calls(lambda self, x, y: (self.bn(self.conv(x)), self.conv(y)), conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6))
    )
    assert "returns or keeps" in reason(model, (X2, X2))
    model.function = lambda self, x, y: self.conv(x) + self.bn(self.conv(y))
    assert "goes to add" in reason(model, (X2, X2))
    with pytest.warns(NoEffectWarning, match="changed nothing"):
        new = fold(model, (X2, X2 + 1))
    assert torch.equal(outputs(new, (X2, X2 + 1))[0], outputs(model, (X2, X2 + 1))[0])


def test_convolution_shared_by_two_norms():
    """As in inductor's test_folded_conv_bn_with_multi_bn_share_conv."""
    model = Calls(
        lambda self, x: self.a(self.conv(x)) + self.b(self.conv(x)),
        conv=nn.Conv2d(4, 6, 3), a=nn.BatchNorm2d(6), b=nn.BatchNorm2d(6),
    )  # fmt: skip
    settle(model)
    plan = plan_folding(model, X2)
    assert not plan.folded
    assert len(plan.refused) == 2


def test_norm_called_on_a_layer_and_on_something_else():
    model = Calls(
        lambda self, x: self.bn(self.conv(x)) + self.bn(x[:, :, 1:-1, 1:-1]),
        conv=nn.Conv2d(4, 4, 3),
        bn=nn.BatchNorm2d(4),
    )
    assert "model's input" in reason(model, X2)


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda self, x: (y := self.conv(x), self.bn(y)), "returns or keeps"),
        (lambda self, x: self.bn(y := self.conv(x)) + y.mean(), "goes to mean"),
        (lambda self, x: self.bn(y := self.conv(x)) * float(y.max()), "goes to max"),
        (lambda self, x: self.bn(self.conv(x).relu()), "that is relu"),
        (lambda self, x: self.bn(self.conv(x).relu_()), "that is relu"),
        (lambda self, x: self.bn(F.pad(self.conv(x), [1, 1])), "that is pad"),
        (lambda self, x: self.bn(self.conv(x)) + self.conv.weight.mean(), "uses weights of"),
        (lambda self, x: self.bn(F.dropout(self.conv(x), training=True)), "that is dropout"),
        (lambda self, x: self.bn(self.conv(x).double().float()), "that is float"),
        (lambda self, x: setattr(self, "kept", self.conv(x)) or self.bn(self.kept), "returns or keeps"),
        (lambda self, x: self.bn(F.conv2d(x, self.conv.weight * 2)), "computed"),
    ],
)
def test_what_else_sees_the_output_stops_it(forward, why):
    assert why in reason(Calls(forward, conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)), X2)


def test_writing_into_the_output_through_a_view_stops_it():
    def forward(self, x):
        y = self.conv(x)
        y[:, :2].zero_()
        return self.bn(y)

    assert "that is zero" in reason(Calls(forward, conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)), X2)


@pytest.mark.parametrize("hooked", ["conv", "bn", ""])
def test_hooks_stop_it(hooked):
    model = Calls(lambda self, x: self.bn(self.conv(x)), conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6))
    seen = []
    model.get_submodule(hooked).register_forward_hook(lambda module, args, output: seen.append(output.sum()))
    if hooked:
        assert "a hook of" in reason(model, X2)
    else:
        folded(model, X2, 1)


def test_norms_that_use_the_batch_are_refused():
    class Forced(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(True)

    for norm in (
        nn.BatchNorm2d(6, track_running_stats=False),
        Forced(6),
        hs.nn.BatchNorm2d(6, track_running_stats=False),
    ):
        assert "batch's own statistics" in reason(nn.Sequential(nn.Conv2d(4, 6, 3), norm), X2)


def test_computed_weights_are_refused():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6))
    assert "computed" in reason(model, X2)
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)), nn.BatchNorm1d(6))
    assert "computed" in reason(model, torch.randn(4, 6))


def test_a_norm_that_did_not_run_stays():
    model = Calls(lambda self, x: self.conv(x), conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6))
    assert "did not run" in reason(model, X2)


def test_other_norms_are_left_alone():
    model = nn.Sequential(
        *[m for kind in ("layer", "group", "instance") for m in (nn.Conv2d(4, 4, 1), make_norm(kind, 4, 2))]
    )
    plan = plan_folding(model, X2)
    assert not plan
    assert not plan.refused
    assert torch.equal(fold(model, X2)(X2), model.eval()(X2))


# What the user is told


def test_fold_does_what_the_plan_says():
    model = settle(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.Dropout()))
    assert fold_with_plan(model, X2)[1] == plan_folding(model, X2)


def test_the_plan_reads_well():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.Dropout())
    text = str(plan_folding(model, X2))
    assert text.splitlines()[0] == "Folding of Sequential"
    assert "  1 (BatchNorm2d) goes into 0 (Conv2d), before it" in text
    assert "  3 (BatchNorm2d) stays: not into what is before it: that is relu in '2'" in text
    assert "  4 (Dropout) is removed" in text


def test_a_difference_is_an_error():
    class Twice(nn.Module):
        """Reads the norm's parameters in a way that a run on tensors does not tell apart."""

        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x):
            y = self.bn(self.conv(x))
            return y if isinstance(self.bn, nn.BatchNorm2d) else y * 2

    with pytest.raises(InvalidValue, match=r"the output may differ by 1\.0e-04, but got"):
        fold(settle(Twice()), X2)


def test_a_model_that_no_longer_runs_is_an_error():
    model = Calls(
        lambda self, x: self.bn(self.conv(x)) * self.bn.weight[0], conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)
    )
    with pytest.raises(InvalidValue, match=r"run without its norms.*fails with AttributeError"):
        fold(settle(model), X2)


def test_wrong_arguments():
    with pytest.raises(InvalidType, match=r"model must be a torch\.nn\.Module"):
        fold(lambda x: x, X2)
    for rtol in (0, -1.0, 1, "small", True, float("nan")):
        with pytest.raises(InvalidValue, match="rtol"):
            fold(nn.Linear(2, 2), torch.randn(3, 2), rtol=rtol)
    with pytest.raises(InvalidValue, match="any DataParallel"):
        plan_folding(nn.DataParallel(nn.Linear(2, 2)), torch.randn(3, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fold(nn.Linear(2, 2), torch.randn(3, 5))
    with pytest.raises(InvalidValue, match="hold numbers"):
        fold(nn.Linear(2, 2), torch.randn(0, 2))
    model = nn.Linear(2, 2)
    model.lock = (part for part in ())
    with pytest.raises(HomeostatError, match="copyable"):
        fold(model, torch.randn(3, 2))


def test_global_seeds_change_nothing():
    model = settle(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(fold(model, X2))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0][0].weight, results[1][0].weight)
    first, second = second_batch(X2), second_batch({"x": [X2]})["x"][0]
    assert torch.equal(first, second)
    assert not torch.equal(first, X2)


def test_relative_differences():
    inf, nan = float("inf"), float("nan")
    same = torch.tensor([1.0, inf, nan, -inf])
    assert relative_difference(same, same) == 0
    assert relative_difference(same, torch.tensor([1.0, inf, nan, inf])) == inf
    assert relative_difference(torch.tensor([1.0]), torch.tensor([nan])) != 0
    assert relative_difference(torch.zeros(2), torch.ones(2)) == inf
    assert relative_difference(torch.zeros(2), torch.zeros(3)) == inf
    assert relative_difference(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) == inf
    assert relative_difference(torch.zeros(0), torch.zeros(0)) == 0
    assert relative_difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == inf


def test_nothing_is_left_of_the_norm():
    model = settle(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    assert norms_in(model, X2) == 1
    assert norms_in(fold(model, X2), X2) == 0
