"""Residual branches: found in what a model computes, and treated by `initialize_`."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.parts.dataflow import record
from homeostat.parts.init import initialize_
from homeostat.parts.init.paths import Paths
from homeostat.parts.init.residual import find_branches
from homeostat.parts.init.sites import Wiring, find_sites
from homeostat.training.models import ResNet


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed))


def branches_of(model, sample):
    flow = record(model, sample)
    paths = Paths(Wiring(flow, find_sites(model, flow)))
    for value in flow.values:
        paths.to(value)
    return find_branches(paths)


class Block(nn.Module):
    def __init__(self, width, norm, where):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = norm(width) if norm else nn.Identity()
        self.where = where

    def forward(self, x):
        if self.where == "before":
            return x + self.second(F.gelu(self.first(self.norm(x))))
        if self.where == "inside":
            return F.relu(self.norm(self.second(F.relu(self.first(x)))) + x)
        if self.where == "behind":
            return self.norm(x + self.second(F.gelu(self.first(x))))
        x = x.clone()
        x += self.second(F.relu(self.first(x)))
        return x


def residual(where, norm=None, count=15, width=128):
    blocks = [Block(width, norm, where) for _ in range(count)]
    return nn.Sequential(nn.Linear(width, width), *blocks, nn.Linear(width, 10))


@pytest.mark.parametrize(
    ("where", "norm", "count", "ends_in_norm"),
    [
        ("before", None, 15, False),
        ("before", nn.LayerNorm, 15, False),
        ("in place", None, 15, False),
        ("inside", nn.BatchNorm1d, 15, True),
        ("behind", nn.LayerNorm, 1, False),
    ],
)
def test_branches_and_how_many_share_a_stream(where, norm, count, ends_in_norm):
    found = branches_of(residual(where, norm), normal(16, 128))
    assert len(found) == 15
    for index, branch in enumerate(found, start=1):
        assert [site.name for site in branch.last] == [f"{index}.second"]
        assert {site.name for site in branch.sites} == {f"{index}.first", f"{index}.second"}
        assert (branch.depth, branch.count, bool(branch.norms)) == (2, count, ends_in_norm)


def test_sums_that_are_no_residual_branches():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.shift = nn.Parameter(torch.ones(8))

        def forward(self, x):
            two_towers = self.a(x).relu() + self.b(x).tanh()
            return self.c(two_towers + self.shift + 1) + two_towers.mean()

    assert branches_of(Sums(), normal(4, 8)) == []


def test_gates_projections_and_parallel_branches():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.gate, self.short = nn.Linear(8, 8), nn.Conv2d(4, 8, 1)
            self.p, self.q = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            h = self.b(F.silu(self.a(x)))
            h = h * self.gate(h.mean((2, 3))).sigmoid()[:, :, None, None] + self.short(x)
            return h + F.silu(self.p(h)) + F.silu(self.q(h))

    found = branches_of(Many(), normal(2, 4, 6, 6))
    assert [[site.name for site in branch.last] for branch in found] == [["b"], ["p"], ["q"]]
    assert [branch.depth for branch in found] == [2, 1, 1]
    assert {branch.count for branch in found} == {3}


def test_the_residual_networks_of_this_library():
    x = normal(4, 3, 16, 16)
    for norm, ends in (("none", False), ("batch", True), ("rms", True)):
        found = branches_of(ResNet((3, 16, 16), 10, depth=14, norm=norm), x)
        assert [branch.last[0].name for branch in found] == [f"blocks.{i}.second" for i in range(6)]
        assert {bool(branch.norms) for branch in found} == {ends}
    assert branches_of(ResNet((3, 16, 16), 10, depth=14, norm="none", shortcut=False), x) == []


@pytest.mark.parametrize(("where", "norm"), [("before", None), ("before", nn.LayerNorm), ("in place", None)])
def test_scaled_branches_add_one_to_the_mean_square_and_unscaled_ones_grow_with_depth(where, norm):
    x = normal(64, 128)
    stream = {}
    for scheme, choice in (("he", None), ("he", "keep"), ("he_normal", None)):
        model = residual(where, norm)
        initialize_(model, scheme, sample=x, generator=generator(), residual=choice)
        model[15].register_forward_hook(lambda module, args, output, key=(scheme, choice): stream.update({key: output}))
        model(x)
    sizes = {key: value.square().mean().item() for key, value in stream.items()}
    # The stream starts at 1 and L branches of mean square 1/L come on top; each mean square is that of 128 numbers.
    assert sizes["he", None] < 2 * (1 + 5 * math.sqrt(2 / 128))
    assert sizes["he", "keep"] > 5
    assert sizes["he_normal", None] > sizes["he", "keep"]


def test_scaled_by_the_root_of_the_number_of_branches():
    x = normal(64, 128)
    tables = [
        initialize_(residual("before", nn.LayerNorm), "he", sample=x, generator=generator(), residual=choice).rows
        for choice in ("keep", "scaled")
    ]
    for kept, scaled in zip(*tables, strict=True):
        factor = 15**-0.5 if kept.layer.endswith("second") else 1
        assert scaled.std == pytest.approx(factor * kept.std, rel=1e-5)
        assert ("scaled: times 0.258" in scaled.note) == (factor < 1)


def test_nothing_is_scaled_where_normalization_ends_the_branch():
    for where, norm in (("inside", nn.BatchNorm1d), ("behind", nn.LayerNorm)):
        rows = initialize_(residual(where, norm), "he", sample=normal(16, 128), generator=generator()).rows
        assert not any("scaled" in row.note for row in rows)


def test_zero_makes_every_block_the_identity():
    x = normal(16, 128)
    model = residual("inside", nn.BatchNorm1d)
    initialize_(model, "he_normal", sample=x, generator=generator(), residual="zero")
    assert all((block.norm.weight == 0).all() for block in model[1:-1])  # Goyal et al. 2017, section 5.1
    assert all((block.second.weight != 0).any() for block in model[1:-1])
    torch.testing.assert_close(model[1:-1](model[0](x)), model[0](x).relu())
    model = residual("before", nn.LayerNorm)
    initialize_(model, "he", sample=x, generator=generator(), residual="zero")
    assert all((block.second.weight == 0).all() for block in model[1:-1])
    assert all((block.norm.weight == 1).all() for block in model[1:-1])
    torch.testing.assert_close(model[1:-1](model[0](x)), model[0](x))


def test_zero_on_normalization_that_adds_the_residual_itself():
    model = ResNet((3, 16, 16), 10, depth=14, norm="batch")
    initialize_(model, "he", sample=normal(4, 3, 16, 16), generator=generator(), residual="zero")
    assert all((block.norm.weight == 0).all() for block in model.blocks)
    assert (model.stem[1].weight == 1).all()


def test_fixup():
    x = normal(16, 128)
    kept, model = residual("before"), residual("before")
    initialize_(kept, "he_normal", sample=x, generator=generator())
    initialize_(model, "he_normal", sample=x, generator=generator(), residual="fixup")
    for before, after in zip(kept[1:-1], model[1:-1], strict=True):
        # Zhang et al. 2019: L^(-1 / (2m - 2)) with L = 15 branches of m = 2 layers; the last of a branch is 0.
        torch.testing.assert_close(after.first.weight, 15**-0.5 * before.first.weight)
        assert (after.second.weight == 0).all()
    assert (model[-1].weight == 0).all()
    assert torch.equal(model[0].weight, kept[0].weight)


def test_fixup_zeroes_what_is_returned_and_not_what_is_divided_by_its_length():
    class Heads(nn.Module):
        def __init__(self, end):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)
            self.end = end

        def forward(self, x):
            return self.end(self.b(F.relu(self.a(x))))

    ends = {nn.Identity(): True, nn.LogSoftmax(-1): True, nn.Tanh(): True, nn.Flatten(): True}
    for end, zeroed in ends.items():
        model = Heads(end)
        initialize_(model, "he", sample=normal(16, 8), generator=generator(), residual="fixup")
        assert (model.b.weight == 0).all() == zeroed
    for divide in (lambda y: y / y.norm(dim=-1, keepdim=True), lambda y: F.normalize(y, dim=-1)):
        model = Heads(divide)
        initialize_(model, "he", sample=normal(16, 8), generator=generator(), residual="fixup")
        assert (model.b.weight != 0).all()


def test_fixup_with_three_layers_in_a_branch():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.c(F.relu(self.b(F.relu(self.a(x)))))

    kept, model = nn.Sequential(*[Three() for _ in range(4)]), nn.Sequential(*[Three() for _ in range(4)])
    x = normal(16, 8)
    initialize_(kept, "he_normal", sample=x, generator=generator())
    initialize_(model, "he_normal", sample=x, generator=generator(), residual="fixup")
    torch.testing.assert_close(model[0].b.weight, 4**-0.25 * kept[0].b.weight)


def test_a_branch_is_closed_even_where_the_weight_is_parametrized():
    norm = nn.utils.parametrizations.weight_norm
    model = residual("before", count=2)
    norm(model[1].second)
    initialize_(model, "he", sample=normal(16, 128), generator=generator(), residual="zero")
    assert model[1].second.weight.isfinite().all()
    assert model[1].second.weight.abs().max() < 1e-6


def test_frozen_and_shared_branches():
    x = normal(16, 128)
    model = residual("before", count=3)
    model[1].second.requires_grad_(False)
    before = model[1].second.weight.clone()
    for scheme in ("he", "he_normal", "lsuv"):
        initialize_(model, scheme, sample=x, generator=generator(), residual="zero")
        assert torch.equal(model[1].second.weight, before)
        assert (model[2].second.weight == 0).all()
    block = Block(128, nn.LayerNorm, "before")
    shared = nn.Sequential(nn.Linear(128, 128), block, block, block, block, nn.Linear(128, 10))
    for scheme in ("he", "he_normal"):
        done = initialize_(shared, scheme, sample=x, generator=generator(), residual="scaled")
        row = next(row for row in done.rows if row.layer == "1.second")
        assert "scaled: times 0.5" in row.note
        assert row.std == pytest.approx(row.gain * 0.5 / math.sqrt(128), rel=6 * math.sqrt(0.5 / 128**2))


def test_a_model_without_gradients_is_measured_forward():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8))
    model[1].register_forward_hook(lambda module, args, output: output.mul_(2))  # sigmoid's gradient needs its output
    rows = initialize_(model, "he", sample=normal(16, 8), generator=generator()).rows
    assert all(math.isfinite(row.forward) for row in rows)
    assert math.isnan(rows[0].backward)


def test_a_deep_model_is_no_problem():
    model = residual("before", nn.LayerNorm, count=120, width=4)
    done = initialize_(model, "he", sample=normal(4, 4), generator=generator())
    assert len(done.rows) == 242
