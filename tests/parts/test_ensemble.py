import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from homeostat import nn as fast
from homeostat.errors import InvalidType, InvalidValue, NoEffectWarning
from homeostat.parts.ensemble import Ensemble, bootstrap, enumerate_masks, mc_dropout, mean_outputs, summarize
from homeostat.parts.modes import drop_probability


def network(drop=nn.Dropout, outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), drop(0.4), nn.Linear(6, outputs))


def inputs(count=5, seed=1):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("drop", [nn.Dropout, fast.Dropout])
def test_the_mean_comes_to_the_exact_one(drop):
    model, x = network(drop), inputs()
    exact, sampled = enumerate_masks(model, x), mc_dropout(model, 1000, seed=2)(x)
    assert exact.kind == sampled.kind == "classification"
    assert ((sampled.mean - exact.mean).abs() < 5 * (exact.variance / 1000).sqrt()).all()
    assert (sampled.entropy - exact.entropy).abs().max() < 0.05
    assert (sampled.mutual_information - exact.mutual_information).abs().max() < 0.05


def test_the_model_is_left_as_it_was():
    model = network().train()
    model[3].eval()
    before, modes, random = states(model), [m.training for m in model.modules()], torch.get_rng_state()
    for seed in (None, 3):
        mc_dropout(model, 4, seed=seed)(inputs())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("drop", [nn.Dropout, fast.Dropout])
def test_seeds(drop):
    model, x = network(drop), inputs()
    seeded = mc_dropout(model, 8, seed=3)
    first = seeded(x).samples
    torch.manual_seed(99)
    assert torch.equal(first, seeded(x).samples)
    assert torch.equal(first[:4], mc_dropout(model, 4, seed=3)(x).samples)
    assert not torch.equal(first, mc_dropout(model, 8, seed=4)(x).samples)
    torch.manual_seed(5)
    free = mc_dropout(model, 8)
    one, two = free(x).samples, free(x).samples
    assert not torch.equal(one, two)
    torch.manual_seed(5)
    assert torch.equal(one, mc_dropout(model, 8)(x).samples)
    torch.manual_seed(6)
    assert not torch.equal(one, mc_dropout(model, 8)(x).samples)


def test_samples_have_masks_of_their_own():
    model = nn.Sequential(nn.Dropout(0.5), nn.Flatten())
    samples = mc_dropout(model, 200, seed=0, kind="regression")(torch.ones(50, 10)).samples
    flat = samples.reshape(200, -1)
    assert set(flat.unique().tolist()) == {0.0, 2.0}
    # the correlation of two masks of 500 units has standard error 0.045, over 199 pairs of neighbors
    centered = flat - 1
    assert (centered[:-1] * centered[1:]).mean(1).abs().max() < 5 * 0.045


class FunctionalNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(F.dropout(self.norm(x), 0.5, self.training))


def test_functional_dropout_draws_and_batch_norm_stays_in_evaluation():
    model = FunctionalNet().train()
    before = states(model)
    prediction = mc_dropout(model, 8, seed=0)(inputs())
    assert (prediction.variance > 0).any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    alone = mc_dropout(model, 500, seed=0)(inputs()[:1])  # a batch of one has no batch statistics
    exact = enumerate_masks(model, inputs()[:1])
    assert ((alone.mean - exact.mean).abs() < 5 * (exact.variance / 500).sqrt()).all()


@pytest.mark.parametrize("nested", [False, True])
def test_dropout_inside_torchs_encoder_draws(nested):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(3, 5, 8)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 3:] = nested
    keywords = {"src_key_padding_mask": mask} if nested else {}

    def spread():
        return mc_dropout(encoder, 16, seed=0, kind="regression")(x, **keywords).variance.mean().item()

    everything = spread()
    assert everything > 0
    for module in encoder.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    without_attention = spread()
    assert 0 < without_attention < everything
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with pytest.warns(NoEffectWarning):
        assert spread() == 0


@pytest.mark.parametrize(
    "module",
    [
        nn.GRU(4, 4, 2, dropout=0.5, batch_first=True),
        nn.AlphaDropout(0.5),
        fast.DropPath(0.5),
        fast.DropConnectLinear(4, 3, p=0.5),
        fast.DropConnectLinear(4, 3, p=0.5, per_example=True),
    ],
)
def test_everything_that_drops_draws(module):
    assert drop_probability(module) == 0.5

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            found = self.inner(x)
            return found[0] if isinstance(found, tuple) else found

    prediction = mc_dropout(Last().eval(), 8, seed=0, kind="regression")(torch.randn(5, 4) + 1)
    assert prediction.variance.max() > 0


def test_dropout_that_a_module_computes_from_its_own_mode_draws_when_it_is_named():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0).mean(1)

    model, x = nn.Sequential(nn.BatchNorm1d(4), Attention(), nn.Dropout(0.0)), torch.randn(3, 4, 2)
    with pytest.warns(NoEffectWarning):
        assert mc_dropout(model, 4, kind="regression")(x).variance.max() == 0
    assert mc_dropout(model, 4, kind="regression", also=[model[1]])(x).variance.max() > 0
    with pytest.raises(InvalidValue, match="modules of the model"):
        mc_dropout(model, also=[nn.Dropout()])


def test_foreign_dropout_layers_draw():
    class StochasticDepth(nn.Module):
        def forward(self, x):
            return x * torch.bernoulli(torch.full((len(x), 1), 0.5)) if self.training else x

    model = nn.Sequential(StochasticDepth(), nn.Linear(4, 2)).eval()
    assert mc_dropout(model, 8, seed=0)(inputs()).variance.max() > 0


def test_nothing_that_drops_is_said():
    with pytest.warns(NoEffectWarning, match="nothing in the model drops"):
        prediction = mc_dropout(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)), 4)(inputs())
    assert prediction.variance.max() == 0


def test_compiled_models_draw_too():
    model = torch.compile(network().eval(), backend="eager")
    model(inputs())
    torch.testing.assert_close(
        mc_dropout(model, 8, seed=0)(inputs()).samples, mc_dropout(network(), 8, seed=0)(inputs()).samples
    )


def test_half_precision_and_outputs_that_hold_logits():
    class Output(dict):
        pass

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network().bfloat16().eval()

        def forward(self, x):
            return Output(logits=self.inner(x))

    prediction = mc_dropout(Wrapped(), 4, seed=0)(x=inputs().bfloat16())
    assert prediction.mean.dtype == torch.float32
    torch.testing.assert_close(prediction.mean.sum(1), torch.ones(5))


def test_kinds():
    outputs = torch.randn(7, 5, 3).double()
    classes = summarize(outputs)
    p = outputs.softmax(2)
    torch.testing.assert_close(classes.mean, p.mean(0))
    torch.testing.assert_close(classes.variance, p.var(0))
    torch.testing.assert_close(classes.entropy, -(p.mean(0) * p.mean(0).log()).sum(1))
    expected = classes.entropy + (p * p.log()).sum(2).mean(0)
    torch.testing.assert_close(classes.mutual_information, expected)
    numbers = summarize(outputs, "regression")
    torch.testing.assert_close(numbers.mean, outputs.mean(0))
    assert numbers.entropy is None
    assert numbers.mutual_information is None
    assert summarize(torch.randn(4, 5)).kind == summarize(torch.randn(4, 5, 1)).kind == "regression"
    binary = summarize(torch.tensor([[-100.0], [100.0]]), "binary")
    assert binary.mean.item() == 0.5
    assert binary.mutual_information.item() == pytest.approx(math.log(2))
    assert summarize(torch.randn(4, 5, 3, 2, 2)).entropy.shape == (5, 2, 2)
    sure = summarize(torch.tensor([[[0.0, 1000.0]], [[0.0, 1000.0]]]))
    assert sure.entropy.item() == sure.mutual_information.item() == 0
    assert math.isnan(summarize(torch.randn(1, 5, 3)).variance[0, 0])
    assert "classification, 7 samples" in repr(classes)


def test_averages_of_extreme_logits_are_finite():
    logits = torch.tensor([[[0.0, 500.0]], [[500.0, 0.0]]])
    torch.testing.assert_close(mean_outputs(logits, "classification").softmax(1), torch.tensor([[0.5, 0.5]]))
    binary = torch.tensor([[500.0], [-500.0]])
    torch.testing.assert_close(mean_outputs(binary, "binary").sigmoid(), torch.tensor([0.5]))
    both = torch.tensor([[-500.0], [-500.0]])
    torch.testing.assert_close(mean_outputs(both, "binary"), torch.tensor([-500.0]))


def test_mistakes():
    with pytest.raises(InvalidType, match="model"):
        mc_dropout(3)
    for samples in (1, 0, 2.5, True):
        with pytest.raises(InvalidValue, match="samples"):
            mc_dropout(network(), samples)
    with pytest.raises(InvalidType, match="seed"):
        mc_dropout(network(), seed=1.5)
    with pytest.raises(InvalidValue, match="Did you mean 'regression'"):
        mc_dropout(network(), kind="regresion")
    with pytest.raises(InvalidValue, match="kind='binary'"):
        mc_dropout(network(outputs=1), kind="classification")(inputs())
    with pytest.raises(InvalidType, match="logits"):
        mc_dropout(nn.GRU(4, 4))(torch.randn(2, 3, 4))
    model = network().train()
    with pytest.raises(RuntimeError):
        mc_dropout(model)(torch.randn(5, 7))
    assert all(module.training for module in model.modules())


def test_ensembles_average():
    members = [network() for _ in range(3)]
    for number, member in enumerate(members):
        member[4].weight.data += number
        member.eval()
    x = inputs()
    outputs = torch.stack([member(x) for member in members])
    torch.testing.assert_close(Ensemble(members)(x), outputs.mean(0))
    torch.testing.assert_close(Ensemble(members, "probabilities")(x), outputs.softmax(2).mean(0))
    torch.testing.assert_close(Ensemble(members).predict(x).mean, outputs.softmax(2).mean(0))
    single = Ensemble([network(outputs=1).eval()], "probabilities")
    torch.testing.assert_close(single(x), network(outputs=1).eval()(x).sigmoid())
    ensemble = Ensemble(members).train()
    ensemble.predict(x)
    assert all(module.training for module in ensemble.modules())
    again = Ensemble([network() for _ in range(3)])
    again.load_state_dict(deepcopy(ensemble.state_dict()))
    torch.testing.assert_close(again.eval()(x), ensemble.eval()(x))
    with pytest.raises(InvalidValue, match="models"):
        Ensemble([])
    with pytest.raises(InvalidValue, match="models"):
        Ensemble([network(), 3])
    with pytest.raises(InvalidValue, match="Known: outputs, probabilities"):
        Ensemble(members, "median")


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 500), seed=st.integers(0, 2**40))
def test_a_bootstrap_sample_and_what_it_leaves_out_are_everything(n, seed):
    drawn, left = bootstrap(n, seed)
    assert len(drawn) == n
    assert sorted({*drawn.tolist(), *left.tolist()}) == list(range(n))
    assert not {*drawn.tolist()} & {*left.tolist()}
    torch.manual_seed(n)
    assert torch.equal(drawn, bootstrap(n, seed)[0])


def test_the_share_left_out_is_one_over_e():
    shares = [len(bootstrap(1000, seed)[1]) / 1000 for seed in range(100)]
    # the variance of the share is about (1/e - 2/e²)/n: a standard error of 0.00098 over 100 samples
    assert abs(sum(shares) / 100 - (1 - 1 / 1000) ** 1000) < 5 * 0.00098
    with pytest.raises(InvalidValue, match="positive"):
        bootstrap(0, 1)


def test_types_that_cannot_be_used_are_refused():
    with pytest.raises(InvalidValue, match=r"models must be one or more torch.nn.Modules, but got 3"):
        Ensemble(3)
    with pytest.raises(InvalidType, match="seed must be an integer, but got 'a'"):
        bootstrap(3, "a")
    with pytest.raises(InvalidValue, match=r"weights must have the shape \(3,\)"):
        summarize(torch.randn(3, 4, 2), weights=torch.ones(2) / 2)


def test_one_module_may_be_named_without_a_list():
    class Own(nn.Module):
        def forward(self, x):
            return torch.bernoulli(torch.full_like(x, 0.5)) if self.training else x

    model = nn.Sequential(Own())
    assert mc_dropout(model, 8, seed=0, also=model[0])(torch.ones(2, 3)).variance.max() > 0


def test_functions_of_homeostat_draw_whatever_the_mode():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.drop = nn.Linear(4, 3), nn.Dropout(0.0)

        def forward(self, x):
            return fast.functional.dropout(self.layer(x), 0.5, self.training)

    model, x = Functional(), torch.randn(2, 4)
    for training in (True, False):
        prediction = mc_dropout(model.train(training), 400, seed=0, kind="regression")(x)
        mean = model.layer(x)
        assert ((prediction.mean - mean).abs() <= 5 * mean.abs() / 20 + 1e-6).all()  # the factor has variance 1
        assert model.training is training
