import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat import nn as fast
from homeostat.errors import HomeostatError, InvalidType, InvalidValue
from homeostat.parts.adapt import BatchNormAdaptation, Tent, collect_params, configure_model, softmax_entropy
from homeostat.parts.norm import LastAxisBatchNorm


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), norm(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 4),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model


def images(count=16, seed=1):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 1.5 + 0.5


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


class Published(nn.Module):
    """What the published code does, with the dropout of the model off."""

    def __init__(self, model, steps):
        super().__init__()
        self.model, self.steps = model.train(), steps
        model.requires_grad_(False)
        parameters = []
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(True)
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
                parameters += [module.weight, module.bias]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def forward(self, x):
        for _ in range(self.steps):
            logits = self.model(x)
            (-(logits.softmax(1) * logits.log_softmax(1)).sum(1)).mean(0).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return logits


@pytest.mark.parametrize("steps", [1, 3])
def test_it_computes_what_the_published_code_does(steps):
    ours, theirs = Tent(network().double(), steps=steps), Published(network().double(), steps)
    for seed in range(4):
        torch.testing.assert_close(ours(images(seed=seed).double()), theirs(images(seed=seed).double()))
    for name, parameter in theirs.model.named_parameters():
        torch.testing.assert_close(ours.model.get_parameter(name), parameter)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, fast.BatchNorm2d])
def test_only_scale_and_shift_change_and_the_model_is_left_as_it_was(norm):
    model = network(norm).train()
    model[4].eval()
    model[3].weight.requires_grad_(False)
    model[1].weight.requires_grad_(False)  # frozen by its owner, and adapted all the same
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].bias.grad = torch.ones_like(model[4].bias)
    before, modes = states(model), [module.training for module in model.modules()]
    wanted, random = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    adapted, x = Tent(model), images()
    kept = x.clone()
    logits = adapted(x)
    assert not logits.requires_grad
    assert changed(model, before) == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert modes == [module.training for module in model.modules()]
    assert wanted == [p.requires_grad for p in model.parameters()]
    assert model[1].track_running_stats
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(model[4].bias.grad, torch.ones_like(model[4].bias))
    assert model[3].weight.grad is None
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(x, kept)
    adapted.reset()
    assert changed(model, before) == set()
    assert torch.equal(adapted(x), logits)  # the optimizer starts anew too


def test_entropy_falls():
    model = network()
    adapted = Tent(model, torch.optim.SGD(collect_params(model)[0], lr=0.05))
    x = images(64)
    entropies = [softmax_entropy(adapted(x)).mean().item() for _ in range(20)]
    assert all(after < before for before, after in pairwise(entropies))


def test_without_a_prior_the_output_is_that_of_batch_statistics():
    model, x = network(), images()
    expected = deepcopy(model).train()
    expected[8].p = 0.0
    torch.testing.assert_close(BatchNormAdaptation(model)(x), expected(x))
    torch.testing.assert_close(Tent(model)(x), expected(x))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, fast.BatchNorm1d, LastAxisBatchNorm])
@pytest.mark.parametrize("prior", [0.5, 16, 1e6])
def test_a_prior_mixes_the_statistics(kind, prior):
    torch.manual_seed(0)
    layer = kind(3).eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    nn.init.normal_(layer.weight)
    x = torch.randn(5, 3) * 3 + 2
    share = prior / (prior + 5)
    mean = share * layer.running_mean + (1 - share) * x.mean(0)
    variance = share * layer.running_var + (1 - share) * x.var(0, correction=0)
    expected = (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias
    before = states(layer)
    torch.testing.assert_close(BatchNormAdaptation(layer, prior)(x), expected, rtol=1e-4, atol=1e-5)
    assert changed(layer, before) == set()
    assert not layer._forward_pre_hooks


def test_a_prior_keeps_the_gradient_through_the_batch_statistics():
    layer = nn.BatchNorm1d(2, eps=0.1).double().eval()
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(BatchNormAdaptation(layer, prior=3), x)


def test_fused_activation_and_residual_survive_the_prior():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = fast.BatchNorm1d(3, activation="relu").eval()

        def forward(self, x):
            return self.norm(input=x, residual=2 * x)

    x = torch.randn(6, 3)
    mean, variance = x.mean(0) * 6 / 8, (x.var(0, correction=0) * 6 + 2) / 8
    expected = F.relu((x - mean) / (variance + 1e-5).sqrt() + 2 * x)
    torch.testing.assert_close(BatchNormAdaptation(Residual(), prior=2)(x), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_is_refused_and_works_with_a_prior():
    model = network()
    before = states(model)
    for adapted in (Tent(model), BatchNormAdaptation(model)):
        with pytest.raises(InvalidValue, match=r"at least two examples .* Give more examples at once, or a prior"):
            adapted(images(1))
    assert changed(model, before) == set()
    vector = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    one = torch.randn(1, 4)
    assert torch.isfinite(BatchNormAdaptation(vector, prior=8)(one)).all()
    assert torch.isfinite(Tent(vector, prior=8)(one)).all()
    torch.testing.assert_close(BatchNormAdaptation(vector, prior=1e9)(one), vector(one))


def test_other_kinds_of_normalization_adapt_when_asked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), fast.RMSNorm(8), nn.Linear(8, 3)).eval()
    with pytest.raises(InvalidValue, match="kind batch"):
        Tent(model)
    before = states(model)
    Tent(model, kinds=("layer", "rms"))(torch.randn(1, 4))  # one example is enough
    assert changed(model, before) == {"1.weight", "1.bias", "3.weight"}
    assert collect_params(model, ("layer",))[1] == ["1.weight", "1.bias"]


def test_batch_norm_stays_in_evaluation_when_only_others_adapt():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 3)).train()
    x = torch.randn(6, 4)
    expected = deepcopy(model).eval()(x)
    torch.testing.assert_close(Tent(model, kinds=("layer",))(x), expected)


def test_transformers_adapt_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(24, 3)).eval()
    before, x = states(model), torch.randn(4, 3, 8)
    with torch.no_grad():
        Tent(model, kinds=("layer",))(x)
    assert len(changed(model, before)) == 8
    assert all("norm" in name for name in changed(model, before))


def test_episodic_forgets():
    model = network()
    adapted, first, second = Tent(model, episodic=True, steps=2), images(), images(seed=2)
    alone = adapted(second)
    adapted(first)
    assert torch.equal(adapted(second), alone)


def test_the_context_manager_puts_everything_back_after_an_error_too():
    model = network()
    before = states(model)

    def interrupted():
        with Tent(model) as adapted:
            adapted(images())
            assert changed(model, before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert changed(model, before) == set()


def test_an_error_half_way_leaves_modes_and_flags():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    model = nn.Sequential(network(), Fails()).train()
    modes, wanted = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    before = states(model)
    for adapted in (Tent(model), Tent(model, prior=4), BatchNormAdaptation(model, prior=4)):
        with pytest.raises(RuntimeError, match="no"):
            adapted(images())
        assert modes == [m.training for m in model.modules()]
        assert wanted == [p.requires_grad for p in model.parameters()]
        assert changed(model, before) == set()
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_is_not_finite_changes_nothing():
    model = network()
    before = states(model)
    with pytest.raises(InvalidValue, match="entropy of the predictions must be finite"):
        Tent(model)(images() * float("nan"))
    assert changed(model, before) == set()


def test_it_works_in_inference_mode_and_on_tensors_made_there():
    model = network()
    before = states(model)
    with torch.inference_mode():
        adapted = Tent(model)
        adapted(images())
        adapted(images(seed=2))
    assert changed(model, before) == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_double_precision_and_dense_predictions():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)).double()
    assert Tent(model)(images().double()).shape == (16, 3, 8, 8)


def test_outputs_that_hold_logits():
    class Output(dict):
        __getattr__ = dict.__getitem__

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, pixels):
            return Output(logits=self.inner(pixels))

    model = Wrapped()
    before = states(model)
    assert Tent(model)(pixels=images()).logits.shape == (16, 4)
    assert changed(model, before)


def test_state_dict_goes_on_where_it_was_taken():
    first, second = Tent(network()), Tent(network())
    first(images())
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(images(seed=2)), second(images(seed=2)))
    torch.testing.assert_close(first(images(seed=3)), second(images(seed=3)))
    second.reset()
    assert changed(second.model, states(network())) == set()


def test_a_copy_adapts_by_itself():
    first = Tent(network())
    first(images())
    second = deepcopy(first)
    before = states(first.model)
    second(images(seed=2))
    assert changed(first.model, before) == set()
    torch.testing.assert_close(first(images(seed=2)), Tent(network())(images(seed=2)), rtol=0.1, atol=0.1)


def test_configured_models_work_with_a_loop_of_ones_own_and_with_tent():
    model = configure_model(network().train())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["1.weight", "1.bias", "4.weight", "4.bias"]
    before = states(model)
    expected = BatchNormAdaptation(network())(images())
    torch.testing.assert_close(model(images()), expected)
    assert changed(model, before) == set()
    torch.testing.assert_close(Tent(model, torch.optim.Adam(collect_params(model)[0]))(images()), expected)


def test_wrong_arguments_say_what_is_wrong():
    model = network()
    with pytest.raises(InvalidValue, match="collect_params"):
        Tent(model, torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises(InvalidType, match="optimizer"):
        Tent(model, 1e-3)
    for steps in (0, 1.5, True):
        with pytest.raises(InvalidValue, match="steps"):
            Tent(model, steps=steps)
    for prior in (-1, math.nan, math.inf, "1"):
        with pytest.raises(InvalidValue, match="prior"):
            BatchNormAdaptation(model, prior)
    with pytest.raises(InvalidValue, match="Did you mean 'batch'"):
        collect_params(model, ("batchs",))
    with pytest.raises(InvalidType, match="sequence"):
        collect_params(model, "batch")
    with pytest.raises(InvalidValue, match="no running statistics"):
        BatchNormAdaptation(nn.BatchNorm1d(2, track_running_stats=False), prior=1)
    with pytest.raises(InvalidValue, match="normalization layers"):
        BatchNormAdaptation(nn.Linear(2, 2))
    with pytest.raises(InvalidValue, match="two logits"):
        Tent(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)))(torch.randn(3, 2))
    with pytest.raises(InvalidType, match="logits"):
        Tent(nn.Sequential(nn.BatchNorm1d(2), Listed()))(torch.randn(3, 2))
    with pytest.raises(HomeostatError, match="without a tensor"):
        Tent(model)()


class Listed(nn.Module):
    def forward(self, x):
        return [x]


def test_it_wins_back_accuracy_on_shifted_data():
    """A classifier of four noisy patterns, on inputs of another contrast and offset per pixel column."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, 1, 8, 8, generator=generator)

    def draw(count):
        y = torch.randint(4, (count,), generator=generator)
        return patterns[y] + 1.0 * torch.randn(count, 1, 8, 8, generator=generator), y

    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        x, y = draw(64)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    x, y = draw(512)
    x = 0.4 * x + 1.5

    def accuracy(predict):
        with torch.no_grad():
            found = torch.cat([predict(part).argmax(1) for part in x.split(64)])
        return (found == y).float().mean().item()

    source, norm = accuracy(model), accuracy(BatchNormAdaptation(model))
    with Tent(model) as tent:
        adapted = accuracy(tent)
    assert source < 0.7
    assert norm > source + 0.2
    assert adapted > source + 0.2


@pytest.mark.parametrize("kind", [Tent, BatchNormAdaptation, collect_params, configure_model])
def test_errors_name_the_callable_and_what_is_no_model(kind):
    with pytest.raises(InvalidType, match=rf"{kind.__name__}: model must be a torch.nn.Module, but got \[1\]"):
        kind([1])
    with pytest.raises(InvalidValue, match=f"{kind.__name__}: model must have normalization layers of kind batch"):
        kind(nn.Linear(2, 2))


def test_errors_about_kinds_name_the_callable():
    model = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(InvalidType, match="Tent: kinds must be a sequence"):
        Tent(model, kinds="batch")
    with pytest.raises(InvalidValue, match="configure_model: unknown kind 'bacth'"):
        configure_model(model, ("bacth",))
