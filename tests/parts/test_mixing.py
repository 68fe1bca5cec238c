"""Mixup and cutmix: what is mixed, in which proportion, and that targets say so exactly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.mixing import Mixup, cutmix, mixup
from homeostat.seeds import global_state, isolated


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def marked(n, height=12, width=9, dtype=torch.float64):
    """Image i holds 2^i everywhere, so that sums tell who is in a mixture; its class is i."""
    values = 2.0 ** torch.arange(n)
    return values.to(dtype).view(n, 1, 1, 1).expand(n, 2, height, width).clone(), torch.arange(n)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 9),
    alpha=st.sampled_from([0.05, 0.4, 1.0, 8.0]),
    per_batch=st.booleans(),
    cut=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels_last=st.booleans(),
)
def test_targets_are_in_proportion_to_what_is_seen(n, alpha, per_batch, cut, dtype, height, width, channels_last):
    x = torch.eye(max(n, 1), dtype=dtype)[:n, :, None, None].expand(-1, -1, height, width)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    target = torch.arange(n)
    before = x.clone()
    mix = cutmix if cut else mixup
    y, soft = mix(x, target, alpha, num_classes=max(n, 1), generator=generator(n), per_batch=per_batch)
    assert (y.shape, y.dtype, soft.shape, soft.dtype) == (x.shape, dtype, (n, max(n, 1)), dtype)
    assert torch.equal(x, before)
    if n:
        assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        torch.testing.assert_close(y.mean((2, 3)), soft, rtol=0, atol=1e-6)
        torch.testing.assert_close(soft.sum(1), torch.ones(n, dtype=dtype))
        assert ((soft > 0).sum(1) <= 2).all()
        if not cut:  # every pixel is the same blend
            torch.testing.assert_close(y, y[:, :, :1, :1].expand_as(y))
        else:  # every pixel is one or the other
            assert ((y == 0) | (y == 1)).all()
        if per_batch:
            assert len({round(value, 5) for value in soft.diagonal().tolist()} - {1.0}) <= 1


def lambdas(soft):
    return soft.diagonal().double()


def own_share(mix, n, alpha, **options):
    """The weight that each example kept, of those whose partner was another."""
    x, target = torch.zeros(n, 1, 64, 64), torch.arange(n)
    soft = mix(x, target, alpha, num_classes=n, generator=generator(), **options)[1]
    mixed = (soft > 0).sum(1) == 2
    return lambdas(soft)[mixed]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_lambda_has_its_distribution(alpha):
    share = own_share(mixup, 3000, alpha)
    assert len(share) > 2900 if alpha > 0.5 else len(share) > 2000
    # in float32, what lies within 2^-25 of 0 or 1 is seen as unmixed: the test leaves out both ends
    inside = share[(share > 1e-6) & (share < 1 - 1e-6)].numpy()
    low, high = stats.beta.cdf([1e-6, 1 - 1e-6], alpha, alpha)
    assert stats.kstest(inside, lambda v: (stats.beta.cdf(v, alpha, alpha) - low) / (high - low)).pvalue > 1e-4


def test_boxes_have_the_size_that_lambda_asks_for_and_a_uniform_center():
    n, side = 2000, 40
    x = torch.zeros(n, 1, side, side)
    x[:, 0] = torch.arange(float(n))[:, None, None]
    y, soft = cutmix(x, torch.arange(n), num_classes=n, generator=generator())
    pasted = (y != x)[:, 0]
    rows, columns = pasted.any(2), pasted.any(1)
    assert torch.equal(pasted, rows[:, :, None] & columns[:, None, :])
    whole = rows.sum(1) < side  # boxes that are not cut off are squares: as long as wide
    inner = whole & ~rows[:, 0] & ~rows[:, -1] & ~columns[:, 0] & ~columns[:, -1] & pasted.flatten(1).any(1)
    assert inner.sum() > 200
    assert torch.equal(rows[inner].sum(1), columns[inner].sum(1))
    torch.testing.assert_close(lambdas(soft).float(), 1 - pasted.float().mean((1, 2)), rtol=0, atol=1e-6)
    # a pixel in the middle is covered where |pixel - center| <= length / 2: E[1 - λ] = 1/2 less the rounding down;
    # the covered share is symmetric, and greatest in the middle
    cover = pasted.double().mean(0)
    assert cover[20, 20] > 1.5 * cover[0, 0] > 0
    bound = 5 * math.sqrt(0.25 / n) + 1 / side  # one pixel of asymmetry from rounding
    assert (cover - cover.flip(0)).abs().max() < bound
    assert (cover - cover.flip(1)).abs().max() < bound


def test_partners_are_a_permutation_of_the_batch():
    x, target = marked(20)
    soft = mixup(x, target, num_classes=20, generator=generator())[1]
    kept = torch.diag(lambdas(soft))
    others = (soft.double() - kept > 1e-9).double()
    assert (others.sum(0) <= 1).all()
    assert others.sum() >= 15
    again = mixup(x, target, num_classes=20, generator=generator(1))[1]
    assert not torch.equal(soft, again)


@pytest.mark.parametrize("mix", [mixup, cutmix, Mixup(1.0, 1.0, num_classes=7)])
def test_only_the_generator_decides(mix):
    x, target = marked(7)
    options = {} if isinstance(mix, Mixup) else {"num_classes": 7}

    def mixed(seed):
        if isinstance(mix, Mixup):
            mix.generator = generator(seed)
            return mix(x, target)
        return mix(x, target, generator=generator(seed), **options)

    with isolated(1, "reseeded"):
        first = mixed(5)
    with isolated(2, "reseeded"):
        before = global_state()
        second, other = mixed(5), mixed(6)
        after = global_state()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert str(before["numpy"]) == str(after["numpy"])


def test_without_a_generator_torch_s_own_decides():
    x, target = marked(7)
    torch.manual_seed(3)
    first = mixup(x, target, num_classes=7)[1]
    second = mixup(x, target, num_classes=7)[1]
    torch.manual_seed(3)
    assert torch.equal(mixup(x, target, num_classes=7)[1], first)
    assert not torch.equal(first, second)


def test_labels_are_smoothed_as_in_torch():
    x, target = marked(6)
    logits = torch.randn(6, 10, dtype=torch.float64, generator=generator())
    soft = mixup(x[:1], target[2:3], num_classes=10, label_smoothing=0.1)[1]
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits[:1], soft),
        torch.nn.functional.cross_entropy(logits[:1], target[2:3], label_smoothing=0.1),
    )
    both = mixup(x, target, num_classes=10, label_smoothing=0.1, generator=generator())[1]
    plain = mixup(x, target, num_classes=10, generator=generator())[1]
    torch.testing.assert_close(both, 0.9 * plain + 0.01)


def test_soft_targets_and_numbers_to_be_predicted_are_mixed_as_they_are():
    x = marked(8)[0]
    values = x[:, 0, 0, 0]
    y, target = mixup(x, values, generator=generator())
    torch.testing.assert_close(target, y[:, 0, 0, 0])
    soft = torch.softmax(torch.randn(8, 5, generator=generator()), 1)
    mixed = mixup(x, soft, num_classes=5, generator=generator())[1]
    torch.testing.assert_close(mixed.sum(1), torch.ones(8))
    assert mixed.dtype == torch.float32
    vectors = torch.randn(8, 3)
    assert mixup(vectors, values, generator=generator())[0].shape == (8, 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16])
def test_bytes_are_rounded_and_short_floats_blended_in_float32(dtype):
    x = torch.randint(0, 256, (6, 3, 5, 5), generator=generator()).to(dtype)
    y, soft = mixup(x, torch.arange(6), num_classes=6, generator=generator())
    wide = mixup(x.float(), torch.arange(6), num_classes=6, generator=generator())[0]
    assert y.dtype == dtype
    assert soft.dtype == torch.float32
    assert torch.equal(y, (wide.round() if dtype == torch.uint8 else wide).to(dtype))
    pasted = cutmix(x, torch.arange(6), num_classes=6, generator=generator())[0]
    assert torch.equal(pasted.float(), cutmix(x.float(), torch.arange(6), num_classes=6, generator=generator())[0])


def test_one_image_is_its_own_partner():
    x, target = marked(1)
    for mix in (mixup, cutmix):
        y, soft = mix(x, target, num_classes=3)
        torch.testing.assert_close(y, x)
        assert soft.tolist() == [[1, 0, 0]]


def test_gradients_reach_the_images():
    x = torch.rand(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    for mix in (mixup, cutmix):

        def function(z, m=mix):
            return m(z, torch.arange(4), num_classes=4, generator=generator())[0]

        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


class TestMixup:
    def test_defaults_are_timm_s(self):
        assert repr(Mixup()) == (
            "Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, cutmix_minmax=None, prob=1.0, switch_prob=0.5, mode='batch', "
            "correct_lam=True, label_smoothing=0.1, num_classes=1000)"
        )

    @pytest.mark.parametrize("mode", ["batch", "elem"])
    @pytest.mark.parametrize("alphas", [(1.0, 0.0), (0.0, 1.0), (0.5, 1.0)])
    def test_targets_are_in_proportion_to_what_is_seen(self, mode, alphas):
        x = torch.eye(9)[:, :, None, None].expand(-1, -1, 13, 11)
        for seed in range(20):
            mix = Mixup(*alphas, mode=mode, num_classes=9, label_smoothing=0.0, generator=generator(seed))
            y, soft = mix(x, torch.arange(9))
            torch.testing.assert_close(y.mean((2, 3)), soft, rtol=0, atol=1e-6)
            if mode == "batch":
                assert len({round(value, 5) for value in soft.diagonal().tolist()} - {1.0}) <= 1

    def test_how_often_which_is_chosen(self):
        n = 4000
        x = torch.zeros(n, 1, 16, 16)
        x[:, 0] = torch.arange(1.0, n + 1)[:, None, None]
        mix = Mixup(1.0, 1.0, prob=0.7, switch_prob=0.3, mode="elem", num_classes=1, generator=generator())
        y, _ = mix(x, torch.zeros(n, dtype=torch.int64))
        pixels = (y != x).flatten(1)
        cut = (pixels.any(1) & ~pixels.all(1)).double().mean().item()
        blended = pixels.all(1).double().mean().item()
        assert abs(blended - 0.49) < 5 * math.sqrt(0.49 * 0.51 / n) + 0.02  # a box may cover everything, or nothing
        assert abs(cut - 0.21) < 5 * math.sqrt(0.21 * 0.79 / n) + 0.02

    @pytest.mark.parametrize("mode", ["batch", "elem"])
    def test_what_is_not_mixed_stays_bit_for_bit_even_beside_what_is_not_finite(self, mode):
        x = torch.randn(9, 2, 5, 5)
        x[3] = math.inf
        mix = Mixup(1.0, 1.0, prob=0.0, mode=mode, num_classes=9, label_smoothing=0.0)
        y, soft = mix(x, torch.arange(9))
        assert torch.equal(y, x)
        assert torch.equal(soft, torch.eye(9))

    def test_boxes_between_two_sizes_lie_inside(self):
        n = 500
        x = torch.zeros(n, 1, 20, 30)
        x[:, 0] = torch.arange(float(n))[:, None, None]
        mix = Mixup(
            0.0, cutmix_minmax=(0.2, 0.8), mode="elem", num_classes=n, label_smoothing=0.0, generator=generator()
        )
        y, soft = mix(x, torch.arange(n))
        pasted = (y != x)[:, 0]
        pasted = pasted[pasted.flatten(1).any(1)]
        rows, columns = pasted.any(2).sum(1), pasted.any(1).sum(1)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 16, 6, 24)
        assert pasted[:, 0, 0].any()
        assert pasted[:, -1, -1].any()
        torch.testing.assert_close(lambdas(soft).float(), 1 - (y != x).float().mean((1, 2, 3)), rtol=0, atol=1e-6)

    def test_targets_may_follow_what_was_drawn_instead_of_what_was_replaced(self):
        x = torch.eye(50)[:, :, None, None].expand(-1, -1, 15, 15)
        seen = {}
        for correct in (True, False):
            mix = Mixup(
                0.0, 1.0, mode="elem", correct_lam=correct, num_classes=50, label_smoothing=0.0, generator=generator()
            )
            seen[correct] = mix(x, torch.arange(50))
        assert torch.equal(seen[True][0], seen[False][0])
        visible, drawn = (lambdas(seen[correct][1]) for correct in (True, False))
        assert (drawn <= visible + 1e-6).all()  # clipping only makes boxes smaller
        assert (drawn < visible - 0.05).any()

    def test_a_box_has_the_area_that_was_drawn_before_it_is_clipped(self):
        n, side = 400, 40
        x = torch.arange(float(n))[:, None, None, None].expand(n, 1, side, side)
        mix = Mixup(0.0, 1.0, mode="elem", correct_lam=False, num_classes=n, label_smoothing=0.0, generator=generator())
        y, soft = mix(x, torch.arange(n))
        pasted = (y != x)[:, 0]
        rows, columns = pasted.any(2), pasted.any(1)
        inner = pasted.any(2).any(1) & ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
        assert inner.sum() > 50
        expected = (1 - lambdas(soft)[inner]).sqrt() * side
        for lengths in (rows[inner].sum(1), columns[inner].sum(1)):
            assert ((expected - lengths) > -1e-3).all()
            assert ((expected - lengths) < 1 + 1e-3).all()

    def test_turned_off_it_makes_soft_targets(self):
        x, target = marked(5)
        mix = Mixup(num_classes=5)
        mix.mixup_enabled = False
        y, soft = mix(x, target)
        assert torch.equal(y, x)
        torch.testing.assert_close(soft, 0.9 * torch.eye(5, dtype=torch.float64) + 0.02)

    def test_batches_may_be_odd_or_empty_and_inputs_vectors(self):
        for n in (0, 1, 3):
            for mode in ("batch", "elem"):
                for alphas in ((1.0, 0.0), (1.0, 1.0)):
                    mix = Mixup(*alphas, mode=mode, num_classes=4)
                    y, soft = mix(torch.rand(n, 3, 8, 8), torch.zeros(n, dtype=torch.int64))
                    assert (y.shape, soft.shape) == ((n, 3, 8, 8), (n, 4))
        assert Mixup(num_classes=4)(torch.rand(3, 5), torch.tensor([0, 1, 2]))[0].shape == (3, 5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"mixup_alpha": 0.0}, "mixup_alpha must be positive where cutmix is off"),
            ({"mixup_alpha": -1}, "mixup_alpha must be finite and at least 0"),
            ({"cutmix_alpha": "1"}, "cutmix_alpha must be a number"),
            ({"prob": 1.1}, r"prob must lie in \[0, 1\]"),
            ({"mode": "pair"}, "unknown mode 'pair'"),
            ({"num_classes": 0}, "num_classes must be an integer of at least 1"),
            ({"label_smoothing": -0.1}, "label_smoothing must lie in"),
            ({"cutmix_minmax": (0.9, 0.1)}, "cutmix_minmax must give the least number first"),
            ({"cutmix_minmax": 0.5}, "cutmix_minmax must be two numbers"),
        ],
        ids=str,
    )
    def test_arguments_that_cannot_be_used(self, arguments, message):
        with pytest.raises((InvalidValue, InvalidType), match=f"Mixup: {message}"):
            Mixup(**arguments)


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_arguments_that_cannot_be_used(mix):
    x, target = marked(4)
    name = mix.__name__
    for alpha in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidValue, match=f"{name}: alpha must be finite and positive"):
            mix(x, target, alpha, num_classes=4)
    with pytest.raises(InvalidType, match=f"{name}: alpha must be a number"):
        mix(x, target, "1", num_classes=4)
    with pytest.raises(InvalidValue, match=f"{name}: num_classes must be given for class indices"):
        mix(x, target)
    with pytest.raises(InvalidValue, match=rf"{name}: target must lie in 0..2, but got \[0, 3\]"):
        mix(x, target, num_classes=3)
    with pytest.raises(InvalidValue, match=rf"{name}: target must lie in 0..3, but got \[-1, 2\]"):
        mix(x, target - 1, num_classes=4)
    with pytest.raises(InvalidValue, match=f"{name}: target must have one entry per example"):
        mix(x, target[:3], num_classes=4)
    with pytest.raises(InvalidValue, match=f"{name}: target must be class indices"):
        mix(x, target[:, None], num_classes=4)
    with pytest.raises(InvalidValue, match=f"{name}: target must have shape"):
        mix(x, torch.rand(4, 3), num_classes=4)
    with pytest.raises(InvalidValue, match=f"{name}: label_smoothing must be 0 for targets that are no classes"):
        mix(x, torch.rand(4), label_smoothing=0.1)
    with pytest.raises(InvalidType, match=f"{name}: input must be a floating or uint8 tensor"):
        mix(x.long(), target, num_classes=4)
    with pytest.raises(InvalidType, match=f"{name}: target must be a tensor"):
        mix(x, [0, 1, 2, 3], num_classes=4)


def test_boxes_need_height_and_width():
    with pytest.raises(InvalidValue, match=r"cutmix: input must be images \(N, C, H, W\).*mixup blends anything"):
        cutmix(torch.rand(3, 5), torch.tensor([0, 1, 2]), num_classes=3)
    with pytest.raises(InvalidValue, match="Mixup: input must be images"):
        Mixup(1.0, 1.0, num_classes=3)(torch.rand(3, 5), torch.tensor([0, 1, 2]))
