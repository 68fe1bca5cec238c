import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.init.gains import NAMES, backward_gain, gain, mean_square, mean_square_slope


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_known_gains():
    # Closed forms: He et al. 2015 for (leaky) ReLU; E[min(|z|, 1)²] for hardtanh from the normal's moments.
    assert gain("identity") == pytest.approx(1, abs=1e-12)
    assert gain("relu") == pytest.approx(math.sqrt(2), abs=1e-12)
    for slope in (0.01, 0.2, 0.5):
        assert gain(nn.LeakyReLU(slope)) == pytest.approx(math.sqrt(2 / (1 + slope**2)), abs=1e-12)
        assert backward_gain(nn.LeakyReLU(slope)) == pytest.approx(math.sqrt(2 / (1 + slope**2)), abs=1e-12)
    inside = stats.norm.cdf(1) - stats.norm.cdf(-1)
    clipped = inside - 2 * stats.norm.pdf(1) + (1 - inside)
    assert gain("hardtanh") == pytest.approx(1 / math.sqrt(clipped), abs=1e-10)
    assert backward_gain("hardtanh") == pytest.approx(1 / math.sqrt(inside), abs=1e-6)
    # E[e^{2z}] = e², and its derivative is itself; sin: (1 - e^{-2}) / 2, cos: (1 + e^{-2}) / 2.
    assert gain(torch.exp) == pytest.approx(math.exp(-1), rel=1e-9)
    assert backward_gain(torch.exp) == pytest.approx(math.exp(-1), rel=1e-9)
    assert gain(torch.sin) == pytest.approx(math.sqrt(2 / (1 - math.exp(-2))), rel=1e-12)
    assert backward_gain(torch.sin) == pytest.approx(math.sqrt(2 / (1 + math.exp(-2))), rel=1e-12)
    # Klambauer et al. 2017, arXiv:1706.02515: SELU keeps variance 1.
    assert gain("selu") == pytest.approx(1, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(place=st.floats(-3, 3), left=st.floats(-2, 2), right=st.floats(-2, 2))
def test_kinks_and_steps_at_any_place_are_integrated_accurately(place, left, right):
    def kinked(x):
        return torch.where(x < place, left * (x - place), right * (x - place)) + 0.5

    def squared(z):
        return ((left if z < place else right) * (z - place) + 0.5) ** 2 * stats.norm.pdf(z)

    pieces = [integrate.quad(squared, a, b, epsabs=1e-13)[0] for a, b in ((-12, place), (place, 12))]
    assert mean_square(kinked) == pytest.approx(sum(pieces), abs=1e-6)
    slopes = left**2 * stats.norm.cdf(place) + right**2 * stats.norm.sf(place)
    assert mean_square_slope(kinked) == pytest.approx(slopes, abs=4 * 0.4 / 64)  # a step within one panel


@pytest.mark.parametrize("name", NAMES)
def test_gains_of_all_names_against_sampling(name):
    z = torch.randn(400_000, generator=generator(), dtype=torch.float64)
    function = nn.Identity() if name == "identity" else getattr(nn.functional, name)
    z.requires_grad_()
    out = function(z)
    (slope,) = torch.autograd.grad(out.sum(), z)
    for values, found in ((out.detach(), gain(name)), (slope, backward_gain(name))):
        squares = values.square()
        assert abs(squares.mean() * found**2 - 1) < 5 * found**2 * squares.std() / math.sqrt(len(z)) + 1e-9


def test_modules_functions_and_names_agree_and_modules_are_left_alone():
    for ours, name in ((nn.SiLU(), "silu"), (lambda x: x * torch.sigmoid(x), "silu"), (nn.ReLU(inplace=True), "relu")):
        assert gain(ours) == pytest.approx(gain(name), rel=1e-12)
        assert backward_gain(ours) == pytest.approx(backward_gain(name), rel=1e-12)
    noisy, several = nn.RReLU(0.1, 0.3), nn.PReLU(7)
    state = torch.get_rng_state()
    assert gain(noisy) == pytest.approx(math.sqrt(2 / (1 + 0.2**2)))  # its mean slope, as in evaluation
    assert noisy.training
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        several.weight.copy_(torch.arange(7) / 10)
    expected = (1 + (several.weight.detach() ** 2).mean().item()) / 2
    assert gain(several) == pytest.approx(1 / math.sqrt(expected), rel=1e-6)
    assert several.weight.dtype == torch.float32
    assert several.weight.grad is None


def test_gradients_of_custom_functions_are_their_own():
    class StraightThrough(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input):
            return input.sign()

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    assert gain(StraightThrough.apply) == pytest.approx(1, abs=1e-6)
    assert backward_gain(StraightThrough.apply) == pytest.approx(0.5, abs=1e-6)


def test_gains_work_whatever_the_gradient_mode():
    with torch.no_grad():
        assert backward_gain(lambda x: x.tanh()) == pytest.approx(backward_gain("tanh"))
    with torch.inference_mode():
        assert gain(lambda x: x.tanh()) == pytest.approx(gain("tanh"))


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (nn.GLU(), "Halving dimension"),
        (nn.Softmax(-1), "be elementwise"),
        (lambda x: x.cumsum(0), "be elementwise"),
        (lambda x: x - x.mean(), "be elementwise"),
        (lambda x: x[0], "be elementwise"),
        (lambda x: x * 0, "finite mean square above 0.*is 0"),
        (lambda x: torch.exp(x * x), "finite mean square above 0.*is inf"),
        (lambda x: x.foo(), "AttributeError"),
        ("rel", "Did you mean 'relu'"),
    ],
)
def test_what_has_no_gain_is_refused(activation, message):
    with pytest.raises(InvalidValue, match=message):
        gain(activation)


def test_what_has_no_backward_gain_is_refused():
    for flat in (torch.sign, torch.round, lambda x: x.detach()):
        with pytest.raises(InvalidValue, match="derivative"):
            backward_gain(flat)
    with pytest.raises(InvalidType, match="a name, a module or a function"):
        gain(3)
