"""Claims about the start of training: identities hold when run, small runs end in a verdict, judges tell planted data
apart."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from homeostat import claims
from homeostat.claims.claim import Runs
from homeostat.claims.themes import initialization, initialization_training, inputs, symmetry

THEMES = (symmetry, initialization, initialization_training, inputs)
CLAIMS = {claim.id: claim for theme in THEMES for claim in theme.CLAIMS}


def ran(id, tmp_path, seeds=2, factors=None, **settings):
    """A claim run with few seeds, and other levels and settings."""
    claim = CLAIMS[id]
    quick = claim.quick
    merged = {name: {**value, **settings.get(name, {})} if name == "recipe" else settings.get(name, value)
              for name, value in quick.settings.items()}  # fmt: skip
    quick = replace(quick, seeds=seeds, factors={**quick.factors, **(factors or {})}, settings=merged)
    return claims.run(replace(claim, quick=quick), workers=0, out=tmp_path, progress=False)


def verdict_of(id, rows, seeds=8, **settings):
    """The verdict on a table with the seeds 0, 1, ...: `rows` gives (levels, metrics of a seed) for each treatment."""
    claim = CLAIMS[id]
    table = pd.DataFrame(
        [{**levels, "seed": seed, **metrics(seed)} for levels, metrics in rows for seed in range(seeds)]
    )
    setup = replace(claim.quick, settings={**claim.quick.settings, **settings})
    return claim.judge(Runs(table, pd.DataFrame(), setup))


def judged(id, rows, **options):
    return verdict_of(id, rows, **options).word


def noise(seed, size, salt=0):
    return float(np.random.default_rng([seed, salt]).normal(0, size))


def whole(evidence):
    """A verdict with a number and a sentence, and a figure in both widths."""
    assert evidence.verdict.word in ("holds", "fails", "undecided")
    assert evidence.verdict.number
    assert len(evidence.verdict.says) > 20
    assert "<svg" in evidence.figure.wide
    assert "<svg" in evidence.figure.narrow
    return not evidence.failures


# -- the claims themselves --------------------------------------------------------------------------------------------


def test_units_that_start_equal_stay_equal(tmp_path):
    evidence = ran("constant-init-symmetry", tmp_path, recipe={"epochs": 3})
    frame = evidence.frame
    equal = frame["init"] != "he_normal"
    assert whole(evidence)
    assert (frame.loc[equal, ["gradients_apart", "weights_apart"]] < 1e-6).all(axis=None)
    assert (frame.loc[~equal, ["gradients_apart", "weights_apart"]] > 0.1).all(axis=None)
    # within a unit of the first layer, gradients differ with the pixels: it is not all weights that stay equal
    assert (frame.loc[frame["init"] == "constant", "gradients_within_unit"] > 0.1).all()


def test_gradients_of_numbers_are_powers_of_their_scale(tmp_path):
    evidence = ran("depth-scale", tmp_path, seeds=10)
    frame = evidence.frame[evidence.frame["width"] == 1]
    assert whole(evidence)
    assert evidence.verdict.word == "holds"
    assert np.allclose(frame["gradient"], (frame["scale"] ** (frame["depth"] - 1)).astype(float))


def test_fans_decide_which_variance_is_kept(tmp_path):
    evidence = ran("fan-in-fan-out", tmp_path, seeds=12, widths=[512, 362, 256, 181, 128])
    assert whole(evidence)
    assert evidence.verdict.word == "holds"


@pytest.mark.parametrize(
    ("id", "factors", "settings"),
    [
        ("uniform-vs-xavier", {}, {"recipe": {"epochs": 1}}),
        ("init-variance", {"lr": [0.01, 0.1]}, {"recipe": {"epochs": 1, "widths": [16] * 8}}),
        ("init-persists", {}, {"recipe": {"epochs": 2, "widths": [16] * 3}, "target": 0.2}),
        ("he-vs-xavier-relu", {"lr": [0.1]}, {"recipe": {"epochs": 1, "widths": [16] * 2}}),
        ("input-normalization", {"lr": [1e-4, 0.1]}, {"recipe": {"epochs": 1}}),
    ],
)
def test_small_runs_end_in_a_verdict(id, factors, settings, tmp_path):
    assert whole(ran(id, tmp_path, factors=factors, **settings))


def test_a_deep_net_from_large_weights_ends_in_nan(tmp_path):
    levels = {"c": [2.0, 3.0], "lr": [0.1]}
    frame = ran("init-variance", tmp_path, seeds=1, factors=levels, recipe={"epochs": 1}).frame
    assert frame.set_index("c")["diverged"].to_dict() == {2.0: 0.0, 3.0: 1.0}


def test_inputs_are_given_as_they_are_or_standardized():
    raw, standardized = (inputs._given("digits", name) for name in ("raw", "standardized"))
    assert raw.sample(1000)[0].max() == 255
    assert abs(float(standardized.prepare(standardized.train.head(2000)[0]).std()) - 1) < 1e-3
    table = inputs._given("breast-cancer", "raw")
    assert (len(table.train), table.input_shape, table.outputs) == (341, (30,), 2)


# -- the judges on planted data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "spread", "first", "trained", "word"),
    [
        (0.6, 0.01, 1e-16, 1e-16, "holds"),
        (0.6, 0.01, 0.5, 0.5, "fails"),
        (0.6, 0.01, 1e-16, 0.5, "fails"),
        (-0.1, 0.01, 0.0, 0.0, "fails"),
        (0.01, 0.2, 0.0, 0.0, "undecided"),
    ],
)
def test_symmetry_is_judged(lost, spread, first, trained, word):
    def treatment(init, dtype):
        random = init == "he_normal"
        accuracy = 0.9 if init == "he_normal" else 0.9 - lost
        return {"init": init, "dtype": dtype}, lambda seed: {
            "gradients_apart": 0.9 if random else first, "weights_apart": 0.9 if random else trained,
            "gradients_within_unit": 0.5,
            "test_accuracy": accuracy + noise(seed, spread, len(init)),
        }  # fmt: skip

    rows = [treatment(init, dtype) for init in ("he_normal", "constant", "zeros") for dtype in ("float64", "float32")]
    verdict = verdict_of("constant-init-symmetry", rows)
    assert verdict.word == word
    assert ("rounding" in verdict.says) == verdict.number.startswith("units") == (first < trained)


@pytest.mark.parametrize(
    ("base", "error", "spread", "word"),
    [(1.0, 0.0, 0.1, "holds"), (1.2, 0.0, 0.1, "fails"), (1.0, 1e-3, 0.1, "fails"), (1.0, 0.0, 3.0, "undecided")],
)
def test_depth_is_judged(base, error, spread, word):
    rows = [
        (
            {"width": width, "scale": scale, "depth": depth},
            lambda seed, width=width, scale=scale, depth=depth: {
                "gradient": (scale * base) ** (depth - 1) * np.exp(noise(seed, spread, depth)),
                "error": error if width == 1 else 0.5,
            },
        )
        for width in (1, 64)
        for scale in (0.5, 1.5)
        for depth in (2, 8, 32)
    ]
    assert judged("depth-scale", rows) == word


@pytest.mark.parametrize(
    ("right", "wrong", "spread", "word"),
    [(1.0, 1.4, 0.05, "holds"), (1.4, 1.4, 0.05, "fails"), (1.0, 1.0, 0.05, "fails"), (1.0, 1.4, 2.0, "undecided")],
)
def test_fans_are_judged(right, wrong, spread, word):
    def treatment(fan, shape):
        factors = {"fan_in": (right, wrong), "fan_avg": ((right * wrong) ** 0.5,) * 2, "fan_out": (wrong, right)}[fan]

        def metrics(seed):
            forward, backward = (
                factor**4 * np.exp(noise(seed, spread, place + 2 * len(shape + fan)))
                for place, factor in enumerate(factors)
            )
            off = {"forward_off": abs(np.log(forward)), "backward_off": abs(np.log(backward))}
            return {"forward": forward, "backward": backward, **off}

        return {"fan": fan, "shape": shape}, metrics

    rows = [treatment(fan, shape) for fan in ("fan_in", "fan_avg", "fan_out") for shape in ("narrowing", "widening")]
    assert judged("fan-in-fan-out", rows, widths=[64] * 6) == word


@pytest.mark.parametrize(
    ("uniform", "xavier", "spread", "word"),
    [(0.6, 0.98, 0.02, "holds"), (0.95, 0.98, 0.02, "fails"), (0.6, 0.8, 0.02, "fails"), (0.6, 0.91, 0.2, "undecided")],
)
def test_shrinking_is_judged(uniform, xavier, spread, word):
    rows = [
        (
            {"init": init},
            lambda seed, factor=factor: {
                "after_factor": factor + noise(seed, spread), "start_factor": factor, "gradient_factor": factor,
                "test_accuracy": 0.9,
            },
        )
        for init, factor in (("fan_in_uniform", uniform), ("xavier_uniform", xavier))
    ]  # fmt: skip
    assert judged("uniform-vs-xavier", rows) == word


NAN = float("nan")


@pytest.mark.parametrize(
    ("accuracies", "word"),
    [
        ({1.0: (0.1,), 2.0: (0.9,), 3.0: (NAN,)}, "holds"),
        ({1.0: (0.1,), 2.0: (0.1,), 3.0: (NAN,)}, "fails"),
        ({1.0: (0.9,), 2.0: (0.9,), 3.0: (NAN,)}, "fails"),
        ({1.0: (0.1,), 2.0: (0.9,), 3.0: (0.9,)}, "fails"),
        ({1.0: (0.1,), 2.0: (0.9,), 3.0: (0.1,)}, "fails"),
        ({1.0: (0.1,), 2.0: (NAN,), 3.0: (NAN,)}, "undecided"),
        ({1.0: (0.1, 0.1, 0.1, 0.9), 2.0: (0.9,), 3.0: (NAN,)}, "undecided"),
        ({1.0: (NAN,), 2.0: (0.9,), 3.0: (NAN,)}, "holds"),
    ],
)
def test_variances_are_judged(accuracies, word):
    rows = [
        (
            {"c": c, "lr": rate},
            lambda seed, own=own, rate=rate: {
                "test_accuracy": own[seed % len(own)],
                "valid_accuracy": own[seed % len(own)] - rate,
                "diverged": float(np.isnan(own[seed % len(own)])),
            },
        )
        for c, own in accuracies.items()
        for rate in (0.01, 0.1)
    ]
    verdict = verdict_of("init-variance", rows)
    assert verdict.word == word
    assert "More seeds" not in verdict.says  # with them, a run that speaks against it would still be there


@pytest.mark.parametrize(
    ("share", "spread", "reached", "word"),
    [(0.9, 0.05, 1, "holds"), (0.2, 0.05, 1, "fails"), (0.5, 0.3, 1, "undecided"), (0.9, 0.05, 0, "undecided")],
)
def test_persistence_is_judged(share, spread, reached, word):
    def metrics(seed, c):
        after = c ** (share + noise(seed, spread, int(c))) if reached else NAN
        return {
            "weights_before": c, "weights_after": after, "outputs_before": c**3, "outputs_after": after,
            "epochs_needed": 5.0 if reached else NAN,
        }  # fmt: skip

    rows = [
        ({"c": c, "optimizer": optimizer}, lambda seed, c=c: metrics(seed, c))
        for c in (1.0, 2.0, 3.0)
        for optimizer in ("sgd", "adam")
    ]
    assert judged("init-persists", rows) == word


@pytest.mark.parametrize(
    ("gains", "spread", "best", "word", "reason"),
    [
        ((0.1, 0.1, 0.1), 0.01, 0.1, "holds", ""),
        ((0.1, 0.1, -0.1), 0.01, 0.1, "fails", ""),
        ((0.1, 0.1, 0.0), 0.2, 0.1, "undecided", "More seeds"),
        ((NAN, 0.1, 0.1), 0.01, 0.1, "undecided", "For relu the best rate is an end of those tried"),
        ((0.1, 0.1, -0.1), 0.01, 0.5, "undecided", "For relu and tanh and sigmoid the best rate is an end"),
    ],
)
def test_suited_initializations_are_judged(gains, spread, best, word, reason):
    rows = []
    for name, suited, gain in zip(
        ("relu", "tanh", "sigmoid"), ("he_normal", "xavier_normal", "xavier_normal"), gains, strict=True
    ):
        for init in ("he_normal", "xavier_normal"):
            for rate in (0.02, 0.1, 0.5):
                own = 0.5 + (gain if init == suited else 0) - (0 if rate == best else 0.05)
                salt = len(name + init)
                rows.append(
                    (
                        {"activation": name, "init": init, "lr": rate},
                        lambda seed, own=own, salt=salt: {"mean_accuracy": own + noise(seed, spread, salt)},
                    )
                )
    verdict = verdict_of("he-vs-xavier-relu", rows)
    assert verdict.word == word
    assert reason in verdict.says


@pytest.mark.parametrize(
    ("raw_epochs", "raw_rates", "spread", "word"),
    [(8, 1, 0.5, "holds"), (2, 1, 0.5, "fails"), (8, 3, 0.5, "fails"), (4.2, 1, 6.0, "undecided")],
)
def test_inputs_are_judged(raw_epochs, raw_rates, spread, word):
    rows = []
    for data in ("digits", "breast-cancer"):
        for given, epochs, count in (("raw", raw_epochs, raw_rates), ("standardized", 4, 2)):
            for place, rate in enumerate((0.1, 0.01, 0.001)):
                salt = len(given) + place
                rows.append(
                    (
                        {"data": data, "inputs": given, "lr": rate},
                        lambda seed, epochs=epochs + 8 * place, trains=place < count, salt=salt: {
                            "epochs_needed": epochs + noise(seed, spread, salt), "trains": float(trains),
                        },
                    )
                )  # fmt: skip
    assert judged("input-normalization", rows) == word


@pytest.mark.parametrize(("never", "least"), [(21.0, True), (20.0, False)])
def test_epochs_saved_are_at_least_so_many_where_a_raw_run_never_arrives(never, least):
    rows = [
        (
            {"data": "digits", "inputs": given, "lr": 0.1},
            lambda seed, given=given: {
                "epochs_needed": 3.0 if given == "standardized" else never if seed == 2 else 9.0, "trains": 1.0,
            },
        )
        for given in ("raw", "standardized")
    ]  # fmt: skip
    assert ("at least" in verdict_of("input-normalization", rows).says) == least


@pytest.mark.parametrize("id", CLAIMS)
def test_a_claim_says_what_it_is(id):
    claim = CLAIMS[id]
    assert claim.criterion.startswith(("Holds if", "A run has learned", "By validation"))
    assert "fails if" in claim.criterion.lower()
    assert claim.source[:3].isdecimal()
