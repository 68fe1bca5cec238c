"""What `set_norm_` does: which norm stands where, and that weights, modes, hooks and the optimizer follow."""

import copy
import pickle
import warnings

import pytest
import surgery_models as models
import torch
from torch import nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import InvalidValue
from homeostat.parts.extended import Copy, Extended
from homeostat.parts.layers import call, tensors_in
from homeostat.parts.norm import NORMS, LastAxisBatchNorm, is_norm, norm_kind
from homeostat.parts.surgery import set_norm_

KINDS = [kind for kind in NORMS if kind != "none"]


def norms(model):
    return {name: norm_kind(module) for name, module in model.named_modules() if is_norm(module)}


def works(model, sample):
    """Whether a training step runs and reaches every trainable parameter that the model uses."""
    model.train()
    outputs = [output for output in tensors_in(call(model, sample)) if output.is_floating_point()]
    sum(output.square().sum() for output in outputs).backward()
    return all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", models.ALL)
def test_every_kind_on_every_model_trains_survives_a_copy_and_a_checkpoint(name, kind):
    model, sample = models.ALL[name]()
    if kind == "instance" and name not in ("resnet", "preactivation", "upsampler"):
        with pytest.raises(InvalidValue, match="kind must apply to every layer, also to"):
            set_norm_(model, kind, sample)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_norm_(model, kind, sample)
    assert norms(model)
    assert set(norms(model).values()) == {kind} or kind in ("group", "layer")
    assert works(model, sample)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    other, _ = models.ALL[name]()
    set_norm_(other, kind, sample)
    other.load_state_dict(model.state_dict())
    outputs = [tensors_in(call(each.eval(), sample)) for each in (model, twin, other)]
    for ours, copied, loaded in zip(*outputs, strict=True):
        assert torch.equal(ours, copied)
        assert torch.equal(ours, loaded)


def test_norms_are_added_behind_every_hidden_weight_layer():
    model, sample = models.mlp()
    changes = set_norm_(model, "batch", sample)
    assert list(changes) == [
        ("LastAxisBatchNorm added after Linear", "0"),
        ("LastAxisBatchNorm added after Linear", "2"),
    ]
    plain, _ = models.mlp()
    x = plain[1](F.batch_norm(plain[0](sample), None, None, training=True))
    x = plain[3](F.batch_norm(plain[2](x), None, None, training=True))
    torch.testing.assert_close(model.train()(sample), plain[4](x))


def test_an_extended_layer_still_shows_the_layers_attributes():
    model, sample = models.mlp()
    weight = model[0].weight
    set_norm_(model, "layer", sample)
    assert model[0].weight is weight
    assert (model[0].in_features, model[0].out_features, model[0].bias.shape) == (6, 32, (32,))
    model[0].weight = nn.Parameter(torch.zeros(32, 6))
    assert not model[0].layer.weight.any()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = model[0].nonsense


def test_existing_norms_are_replaced_and_keep_scale_and_shift():
    model, sample = models.resnet()
    scale = model.blocks[0].bn1.weight.clone()
    changes = set_norm_(model, "group", sample)
    assert len(changes) == 6
    assert set(norms(model).values()) == {"group"}
    assert isinstance(model.blocks[0].bn1, nn.GroupNorm)
    assert torch.equal(model.blocks[0].bn1.weight, scale)


def test_none_removes_every_norm_and_nothing_else():
    model, sample = models.resnet()
    reference, _ = models.resnet()
    for module in list(reference.modules()):
        for name, child in list(module.named_children()):
            if is_norm(child):
                setattr(module, name, nn.Identity())
    assert len(set_norm_(model, "none", sample)) == 6
    assert norms(model) == {}
    assert torch.equal(model.eval()(sample), reference.eval()(sample))


def test_a_norm_before_an_in_place_activation_leaves_a_copy_behind():
    model, sample = models.preactivation()
    set_norm_(model, "none", sample)
    x = model.stem(sample)
    expected = model.head((x + model.conv(F.relu(x))).mean((2, 3)))
    torch.testing.assert_close(model(sample), expected)
    assert isinstance(model.norm, Copy)


def test_norms_on_tokens_act_over_their_features():
    model, sample = models.encoder()
    set_norm_(model, "batch", sample)
    assert isinstance(model.layers[0].norm1, LastAxisBatchNorm)
    assert model.layers[0].norm1.num_features == 16


@pytest.mark.parametrize("kind", ["batch", "rms", "none"])
def test_an_encoder_layer_gives_the_same_in_inference_as_with_gradients(kind):
    model, sample = models.encoder()
    set_norm_(model, kind, sample)
    model.eval()
    with_gradients = model(sample)
    with torch.no_grad():
        padding = torch.zeros(3, 5, dtype=torch.bool)
        torch.testing.assert_close(model(sample), with_gradients)
        torch.testing.assert_close(model(sample, src_key_padding_mask=padding), with_gradients)


def test_shared_layers_share_the_new_norm_and_tied_weights_stay_tied():
    model, sample = models.shared()
    set_norm_(model, "layer", sample)
    assert model.first is model.second
    assert isinstance(model.first, Extended)
    assert len([module for module in model.modules() if is_norm(module)]) == 2
    model, sample = models.tied()
    set_norm_(model, "rms", sample)
    assert model.decoder.weight is model.embedding.weight
    assert norms(model) == {"hidden.after": "rms"}


def test_output_layers_stay_plain():
    model, sample = models.two_heads()
    set_norm_(model, "layer", sample)
    assert sorted(norms(model)) == ["left.after", "right.after", "trunk.after"]


def test_plain_containers_that_hold_the_layer_are_followed():
    model, sample = models.named()
    set_norm_(model, "batch", sample)
    assert model.order["mid"] is model.layers["mid"]
    assert sorted(norms(model)) == ["layers.in.after", "layers.mid.after"]


def test_mode_dtype_device_and_trainability_stay():
    model, sample = models.resnet()
    model.double().train()
    model.blocks[0].eval()
    model.blocks[1].bn1.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    set_norm_(model, "layer", sample.double())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert not any(parameter.requires_grad for parameter in model.blocks[1].bn1.parameters())
    assert all(parameter.requires_grad for parameter in model.blocks[1].bn2.parameters())

    model, sample = models.mlp()
    model.to(torch.bfloat16).eval()
    model[0].requires_grad_(False)
    set_norm_(model, "batch", sample.bfloat16())
    assert not model[0].after.training
    assert model[0].after.running_mean.dtype == torch.bfloat16
    assert not model[0].after.weight.requires_grad
    assert model[2].after.weight.requires_grad


def test_hooks_of_a_replaced_norm_go_with_it_and_can_still_be_removed():
    model, sample = models.resnet()
    seen = []
    handle = model.blocks[0].bn1.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    set_norm_(model, "layer", sample)
    seen.clear()
    model(sample)
    assert seen == [hs.nn.GroupNorm]
    handle.remove()
    model(sample)
    assert len(seen) == 1


def test_the_optimizer_follows():
    model, sample = models.resnet()
    norm_parameters = [p for m in model.modules() if is_norm(m) for p in m.parameters()]
    weights = [p for p in model.parameters() if not any(p is n for n in norm_parameters)]
    optimizer = torch.optim.Adam(
        [{"params": weights, "weight_decay": 0.1}, {"params": norm_parameters, "weight_decay": 0.0}], lr=0.01
    )
    works(model, sample)
    optimizer.step()
    kept = {id(p): optimizer.state[p]["exp_avg"] for p in weights}
    set_norm_(model, "rms", sample, optimizer)
    in_optimizer = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in in_optimizer} == {id(p) for p in model.parameters()}
    assert len(in_optimizer) == len(list(model.parameters()))
    assert all(p.ndim == 1 for p in optimizer.param_groups[1]["params"])
    assert set(map(id, optimizer.state)) == {id(p) for p in weights}
    assert all(optimizer.state[p]["exp_avg"] is kept[id(p)] for p in weights)
    optimizer.zero_grad()
    works(model, sample)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def test_parameters_of_added_norms_join_the_group_of_the_layers_bias():
    model, sample = models.mlp()
    biases = [p for p in model.parameters() if p.ndim == 1]
    weights = [p for p in model.parameters() if p.ndim > 1]
    optimizer = torch.optim.SGD([{"params": weights, "weight_decay": 0.1}, {"params": biases}], lr=0.1)
    set_norm_(model, "batch", sample, optimizer)
    assert len(optimizer.param_groups[0]["params"]) == 3
    assert len(optimizer.param_groups[1]["params"]) == 3 + 4


def test_named_parameter_groups_stay_in_step():
    model, sample = models.resnet()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    set_norm_(model, "layer", sample, optimizer)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len(group["param_names"]) == len(list(model.parameters()))
    set_norm_(model, "none", sample, optimizer)
    assert len(group["params"]) == len(group["param_names"]) == len(list(model.parameters()))


def test_an_optimizer_of_other_parameters_is_left_alone_with_a_note():
    model, sample = models.mlp()
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)
    changes = set_norm_(model, "batch", sample, optimizer)
    assert len(optimizer.param_groups[0]["params"]) == 2
    assert "no group for the new LastAxisBatchNorm" in changes.notes[0]


def test_one_surgery_after_another():
    model, sample = models.mlp()
    set_norm_(model, "batch", sample)
    set_norm_(model, "layer", sample)
    assert set(norms(model).values()) == {"layer"}
    set_norm_(model, "none", sample)
    reference, _ = models.mlp()
    assert torch.equal(model.eval()(sample), reference.eval()(sample))
    set_norm_(model, "rms", sample)
    assert norms(model) == {"0.after": "rms", "2.after": "rms"}


def test_the_random_state_stays_and_only_new_norms_are_new():
    model, sample = models.mlp()
    before = {id(parameter): parameter.clone() for parameter in model.parameters()}
    state = torch.manual_seed(5).get_state()
    set_norm_(model, "batch", sample)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(id(parameter) in before for parameter in model.parameters()) == len(before)
    assert all(torch.equal(p, before[id(p)]) for p in model.parameters() if id(p) in before)


class Auxiliary(nn.Module):
    """Has a branch that only runs in training."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.extra = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.conv(x))
        extra = self.extra(x).sum() if self.training else 0
        return self.head(x.mean((2, 3))) + extra


def test_norms_that_do_not_run_on_the_sample_change_where_their_class_tells_how():
    model = Auxiliary()
    changes = set_norm_(model, "layer", torch.randn(2, 3, 8, 8))
    assert norms(model) == {"norm": "layer", "extra.1": "layer", "extra.2": "group"}
    assert "'extra.2' (GroupNorm) never ran" in changes.notes[0]
    set_norm_(model, "none", torch.randn(2, 3, 8, 8))
    assert norms(model) == {}


def test_channels_first_subclasses_and_layers_over_whole_images_are_understood():
    class LayerNorm2d(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class FrozenBatchNorm2d(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.register_buffer("weight", torch.ones(channels))

        def forward(self, x):
            return x * self.weight[:, None, None]

    class TokenRMSNorm(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(channels))

        def forward(self, x):
            return x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight

    class ChannelsLast(nn.Linear):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    mixed = nn.Sequential(nn.Conv2d(3, 6, 1), ChannelsLast(6, 6), LayerNorm2d(6), nn.Conv2d(6, 2, 1))
    set_norm_(mixed, "batch", torch.randn(2, 3, 6, 6))
    assert isinstance(mixed[2], nn.BatchNorm2d)

    square = nn.Sequential(nn.Linear(3, 5), TokenRMSNorm(5), nn.Linear(5, 2))
    set_norm_(square, "batch", torch.randn(2, 5, 3))
    assert isinstance(square[1], LastAxisBatchNorm)

    # Sizes agree on both ends of the shape, so only the layers themselves can tell.
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        LayerNorm2d(6),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.LayerNorm((8, 6, 6)),
        FrozenBatchNorm2d(8),
        nn.Conv2d(8, 2, 6),
    )
    set_norm_(model, "instance", torch.randn(2, 3, 6, 6))
    assert [module.num_features for module in model if isinstance(module, nn.InstanceNorm2d)] == [6, 8, 8]
