"""Normalization in use, penalties, early stopping: small runs end in a verdict, judges tell truth from falsehood."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from homeostat import claims
from homeostat.claims.claim import Runs
from homeostat.claims.themes import adaptation, early_stopping, normalization_use, penalties

CLAIMS = {
    claim.id: claim for theme in (normalization_use, adaptation, penalties, early_stopping) for claim in theme.CLAIMS
}  # fmt: skip
SMALL = {
    "bn-inference": {"factors": {"batch_size": [128]}, "recipe": {"widths": [8], "epochs": 1}},
    "bn-small-batch": {
        "factors": {"norm": ["batch", "group"], "parts": ["16 mixed", "16 of one class"]},
        "recipe": {"widths": [4], "epochs": 1},
    },
    "layernorm-fcn": {"recipe": {"widths": [8], "epochs": 1}},
    "tent": {"recipe": {"widths": [4], "epochs": 1}},
    "l1-l2-elastic": {"recipe": {"widths": [8], "epochs": 1}},
    "weight-decay-shrink": {"recipe": {"widths": [8], "epochs": 1}},
    "weight-decay-and-bn": {"recipe": {"widths": [8], "epochs": 2}},
    "l2-and-init": {"recipe": {"widths": [8], "epochs": 1}},
    "early-stopping": {"recipe": {"widths": [8], "epochs": 8}},
}


@pytest.mark.parametrize("id", SMALL)
def test_a_small_run_ends_in_a_verdict_with_a_figure(id, tmp_path):
    claim, small = CLAIMS[id], SMALL[id]
    settings = {**claim.quick.settings, "recipe": {**claim.quick.settings["recipe"], **small["recipe"]}}
    quick = replace(claim.quick, seeds=1, settings=settings, factors=small.get("factors", claim.quick.factors))
    evidence = claims.run(replace(claim, quick=quick), workers=0, out=tmp_path, progress=False)
    assert not evidence.failures
    assert evidence.verdict.word in ("fails", "undecided")  # a single seed has no interval
    assert evidence.verdict.says
    assert (tmp_path / "quick" / id / "figure.svg").exists()


@pytest.mark.parametrize("id", SMALL)
def test_a_claim_says_what_it_needs_to_say(id):
    claim = CLAIMS[id]
    assert all((claim.sentence, claim.source, claim.hypothesis, claim.criterion))
    assert claim.quick.settings.get("task") in ("digits", "curve")
    assert claim.full.seeds >= 5


def planted(id, cells, noise=0.0, seeds=6, setup=None):
    """A table of runs: (levels, means of metrics) per cell, with noise of a deviation around them."""
    draws = np.random.default_rng(0)
    rows = [
        {**levels, "seed": seed, **{name: value * (1 + noise * draws.normal()) for name, value in metrics.items()}}
        for levels, metrics in cells
        for seed in range(seeds)
    ]
    return Runs(pd.DataFrame(rows), pd.DataFrame(), setup or CLAIMS[id].quick)


def word(id, cells, noise=0.001, **options):
    return CLAIMS[id].judge(planted(id, cells, noise, **options)).word


def inference(gain, company=1e-15):
    found = {
        "accuracy_running 0.1": 0.9, "accuracy_running 0.01": 0.5, "accuracy_running 0.9": 0.8,
        "accuracy_minibatch": 0.9 + gain, "accuracy_pooled": 0.9 + gain,
        "company_running 0.1": company, "company_minibatch": 1e-15, "batch_company": 0.2,
    }  # fmt: skip
    return [({"batch_size": size}, found) for size in (4, 128)]


def test_statistics_are_judged_by_accuracy_and_by_company():
    assert word("bn-inference", inference(0.02)) == "holds"
    assert word("bn-inference", inference(-0.02)) == "fails"
    assert word("bn-inference", inference(0.0), noise=0.02) == "undecided"
    assert word("bn-inference", inference(0.02, company=1e-3)) == "fails"


def test_one_training_gives_the_running_averages_of_every_momentum():
    torch.manual_seed(0)
    batches = [3 * torch.randn(5, 4) + 1 for _ in range(7)]
    followed = torch.nn.BatchNorm1d(4)
    averages = normalization_use.Averages(followed, [0.1, 0.9])
    for batch in batches:
        followed(batch)
    for momentum in (0.9, 0.1):
        usual = torch.nn.BatchNorm1d(4, momentum=momentum)
        for batch in batches:
            usual(batch)
        averages.store(momentum)
        torch.testing.assert_close(followed.running_mean, usual.running_mean)
        torch.testing.assert_close(followed.running_var, usual.running_var)


def small_batches(batch_few, batch_alike, group_few, group_alike):
    accuracy = {
        ("batch", "16 mixed"): 0.95, ("batch", "2 mixed"): batch_few, ("batch", "16 of one class"): batch_alike,
        ("group", "16 mixed"): 0.95, ("group", "2 mixed"): group_few, ("group", "16 of one class"): group_alike,
    }  # fmt: skip
    return [({"norm": norm, "parts": parts}, {"test_accuracy": value}) for (norm, parts), value in accuracy.items()]


def test_small_batches_are_judged_by_what_each_normalization_loses():
    assert word("bn-small-batch", small_batches(0.85, 0.5, 0.95, 0.9)) == "holds"
    assert word("bn-small-batch", small_batches(0.95, 0.5, 0.85, 0.9)) == "fails"
    assert word("bn-small-batch", small_batches(0.85, 0.9, 0.95, 0.5)) == "fails"
    assert word("bn-small-batch", small_batches(0.93, 0.93, 0.95, 0.95), noise=0.1) == "undecided"


def test_small_batches_count_the_runs_that_collapsed():
    def says(cells):
        return CLAIMS["bn-small-batch"].judge(planted("bn-small-batch", cells, 0.001)).says

    assert "collapsed" not in says(small_batches(0.85, 0.5, 0.95, 0.9))
    assert "6 of 36 runs collapsed to guessing" in says(small_batches(0.1, 0.5, 0.95, 0.9))


def layernorm(none, layer):
    return [
        ({"norm": norm, "lr": lr}, {"train_loss": losses[place], "test_accuracy": 0.9})
        for norm, losses in (("none", none), ("layer", layer))
        for place, lr in enumerate((0.03, 0.1, 0.3, 1.0))
    ]


def test_each_net_is_judged_at_its_best_learning_rate():
    nan = float("nan")
    assert word("layernorm-fcn", layernorm([0.3, 0.1, 0.01, nan], [0.3, 0.2, 0.1, 0.1])) == "holds"
    assert word("layernorm-fcn", layernorm([0.3, 0.1, 0.01, nan], [0.3, 0.2, 0.1, 0.001])) == "fails"
    assert word("layernorm-fcn", layernorm([0.3, 0.1, 0.01, nan], [0.3, 0.1, 0.01, nan]), noise=0.2) == "undecided"
    assert word("layernorm-fcn", layernorm([nan] * 4, [0.1] * 4)) == "undecided"


def tent(statistics, entropy):
    return [
        (
            {"corruption": name},
            {
                "accuracy_trained": base,
                "accuracy_statistics": base + statistics * (name != "none"),
                "accuracy_tent": base + (statistics + entropy) * (name != "none"),
            },
        )
        for name, base in (("none", 0.95), ("contrast:5", 0.3), ("brightness:5", 0.5))
    ]


def test_adaptation_is_judged_against_the_network_as_trained():
    assert word("tent", tent(0.4, 0.0)) == "holds"
    assert word("tent", tent(-0.1, 0.0)) == "fails"
    assert word("tent", tent(0.0, 0.0), noise=0.1) == "undecided"
    same, more = (CLAIMS["tent"].judge(planted("tent", tent(0.4, entropy), 0.0005)).says for entropy in (0.0, 0.05))
    assert "adds nothing measurable" in same
    assert "adds more" in more


def sparse(**cells):
    return [
        ({"penalty": name.replace("_", " ").replace("proximal", "L1, proximal")},
         {"near_zero": share, "zero": 0.0, "norm": norm, "test_accuracy": 0.95})
        for name, (share, norm) in cells.items()
    ]  # fmt: skip


def test_sparse_and_small_are_judged_together():
    good = {"none": (0.03, 10), "L2": (0.04, 5), "L1": (0.7, 6), "elastic_net": (0.6, 4), "proximal": (0.7, 6)}
    assert word("l1-l2-elastic", sparse(**good), noise=0.01) == "holds"
    assert word("l1-l2-elastic", sparse(**{**good, "L1": (0.01, 6)}), noise=0.01) == "fails"
    assert word("l1-l2-elastic", sparse(**{**good, "elastic_net": (0.6, 8)}), noise=0.01) == "fails"
    assert word("l1-l2-elastic", sparse(**{**good, "L1": (0.04, 6)}), noise=0.5) == "undecided"


def shrinking(gain, error=1e-16):
    return [
        (
            {"weight_decay": decay, "biases": biases},
            {"step_error": error, "test_accuracy": 0.9 + gain * (biases == "exempt")},
        )
        for decay in (0.01, 0.03, 0.1)
        for biases in ("exempt", "decayed")
    ]  # fmt: skip


def test_shrinking_is_judged_by_the_step_and_by_the_biases():
    assert word("weight-decay-shrink", shrinking(0.02)) == "holds"
    assert word("weight-decay-shrink", shrinking(0.0)) == "fails"
    assert word("weight-decay-shrink", shrinking(0.02, error=1e-6)) == "fails"
    assert word("weight-decay-shrink", shrinking(0.0), noise=0.05) == "undecided"


def test_a_step_is_the_formula_and_another_update_is_not():
    settings = penalties.CLAIMS[1].quick.settings
    task = penalties.task_named("digits")
    recipe = penalties.Recipe().varied({**settings["recipe"], "weight_decay": 0.1})
    model = penalties.build_model(task, recipe, 0)
    for form in ("weight_decay", "l2"):
        assert penalties._step_error(model, task, recipe, form) < 1e-14
    assert penalties._step_error(model, task, recipe.varied({"optimizer": "adam"}), "l2") > 1e-3


def turning(growth=1.0, meeting=1.0, angle=1.0):
    return [
        (
            {"weight_decay": decay, "scale": scale},
            {
                "growth": growth, "end_norm": 2.0 * (meeting if scale == 3.0 else 1.0), "test_accuracy": 0.9,
                "angle": angle * (0.1 if decay else 0.02), "expected_angle": 0.1 if decay else 0.0,
            },
        )
        for decay in (0.0, 0.05, 0.2)
        for scale in (0.3, 3.0)
    ]  # fmt: skip


def test_the_equilibrium_is_judged_by_growth_meeting_and_angle():
    assert word("weight-decay-and-bn", turning()) == "holds"
    assert word("weight-decay-and-bn", turning(growth=-1.0)) == "fails"
    assert word("weight-decay-and-bn", turning(meeting=1.5)) == "fails"
    assert word("weight-decay-and-bn", turning(angle=0.5)) == "fails"
    apart = [(levels, {**metrics, "angle": metrics["angle"] * (2 if levels["weight_decay"] == 0.2 else 0.5)})
             for levels, metrics in turning()]  # fmt: skip
    assert word("weight-decay-and-bn", apart) == "fails"  # errors of opposite sign are not none
    assert word("weight-decay-and-bn", turning(), noise=0.3) == "undecided"


def test_turning_measures_norm_and_angle():
    weight = torch.tensor([3.0, 0.0])
    watched = penalties.Turning([weight])
    weight.copy_(torch.tensor([0.0, 6.0]))
    watched(0, {})
    assert watched.norms == [6.0]
    assert watched.angles[0] == pytest.approx(np.pi / 2)


def scaled(norm, change):
    return [
        ({"c": c}, {"norm": 10 * (norm if c == 8.0 else 1.0), "test_accuracy": 0.95 + change * (c == 8.0)})
        for c in (0.5, 1.0, 2.0, 4.0, 8.0)
    ]


def test_a_norm_is_a_bad_proxy_where_it_differs_and_the_error_does_not():
    assert word("l2-and-init", scaled(4.0, 0.0)) == "holds"
    assert word("l2-and-init", scaled(1.2, 0.0)) == "fails"
    assert word("l2-and-init", scaled(4.0, -0.05)) == "fails"
    assert word("l2-and-init", scaled(4.0, -0.01), noise=0.01) == "undecided"


def stopped(**losses):
    return [
        ({"rule": rule}, {"test_loss": loss, "train_loss": 0.1, "epochs_run": 100}) for rule, loss in losses.items()
    ]


def test_every_rule_has_to_lower_the_test_loss():
    better = {"none": 0.3, "patience": 0.2, "GL": 0.2, "PQ": 0.2, "UP": 0.2}
    assert word("early-stopping", stopped(**better), noise=0.02) == "holds"
    assert word("early-stopping", stopped(**{**better, "GL": 0.4}), noise=0.02) == "fails"
    assert word("early-stopping", stopped(**{**better, "UP": 0.3}), noise=0.1) == "undecided"


@pytest.mark.parametrize("mixed", [True, False])
def test_batches_have_each_class_alike_mixed_or_part_by_part(mixed):
    labels = torch.arange(5).repeat_interleave(torch.tensor([40, 41, 42, 43, 50]))
    order = torch.tensor(list(normalization_use.ClassBatches(labels, 20, mixed)))
    assert len(torch.unique(order)) == len(order) == 200
    for batch in order.split(100):
        assert torch.bincount(labels[batch]).tolist() == [20] * 5
        classes = [len(torch.unique(labels[part])) for part in batch.split(20)]
        assert min(classes) > 2 if mixed else classes == [1] * 5


def test_parts_have_statistics_of_their_own_in_training_alone():
    norm = torch.nn.BatchNorm1d(1, affine=False, eps=1e-9)
    net = normalization_use.InParts(norm, 2)
    given = torch.tensor([[1.0], [3.0], [10.0], [30.0]])
    assert net(given).flatten().tolist() == pytest.approx([-1, 1, -1, 1])
    torch.testing.assert_close(net.eval()(given), norm(given))


def test_runs_of_one_seed_or_with_holes_are_undecided():
    nan = float("nan")
    assert word("tent", tent(0.4, 0.0), seeds=1) == "undecided"
    assert word("l2-and-init", scaled(nan, 0.0)) == "undecided"
    assert word("weight-decay-and-bn", turning(growth=nan, meeting=nan, angle=nan)) == "undecided"
    assert word("early-stopping", stopped(none=0.3, patience=0.2), noise=0.02) == "undecided"
