"""Claims as such: run, resumed, judged, kept, shown. What single claims say is tested beside, by theme."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import homeostat as hs
from homeostat.claims import draw
from homeostat.claims.claim import (
    Claim,
    Runs,
    Setup,
    Verdict,
    all_of,
    decided,
    more,
    points,
    seed_mean,
    settled,
    within,
)
from homeostat.claims.gallery import render, summary
from homeostat.claims.registry import CLAIMS, THEMES
from homeostat.claims.run import run, stored
from homeostat.cli import app
from homeostat.errors import HomeostatError, InvalidType, InvalidValue
from homeostat.inference import Interval

NASTY = "</script><b>&\"'"


def measured(config, seed, trial=None, *, effect, log=None):
    if log is not None:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{config['part']} {seed}\n")
    if trial is not None:
        for epoch in range(3):
            trial.report(epoch, loss=1 / (epoch + 1) + seed / 100)
    return {"score": effect * (config["part"] == "with") + seed / 10 + 0.001 * (config["part"] == "with") * seed}


def judge(runs):
    found = runs.difference("score", {"part": "with"}, {"part": "without"})
    return Verdict(decided(found, 0.05), points(found), f"Measured with care. {NASTY}")


def picture(runs):
    return draw.levels(runs.trials, "part", "score", across="score", alt="Score by part.")


@pytest.fixture
def claim(tmp_path):
    setup = Setup(
        "nothing but numbers", {"part": ["without", "with"]}, 4, {"effect": 0.5, "log": str(tmp_path / "log")}
    )
    return Claim(
        "part-helps", f"The part helps. {NASTY}", "000, a slide", "It helps by more than 0.05.", "Beyond 0.05.",
        measured, judge, picture, setup, replace(setup, settings={"effect": 0.0}),
    )  # fmt: skip


def calls(tmp_path):
    return (tmp_path / "log").read_text(encoding="utf-8").split("\n")[:-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_claim_is_run_judged_and_kept(claim, tmp_path, workers):
    evidence = run(claim, workers=workers, out=tmp_path / "out", progress=False)
    assert evidence.verdict.word == "holds"
    assert len(evidence.frame) == 8
    assert list(evidence.frame.columns) == ["part", "seed", "score"]
    folder = tmp_path / "out" / "quick" / "part-helps"
    kept = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert (kept["verdict"], kept["trials"], kept["seeds"]) == ("holds", 8, 4)
    assert kept["command"] == "homeostat claims run part-helps --quick --seeds 4"
    assert pd.read_csv(folder / "trials.csv")["score"].tolist() == evidence.frame["score"].tolist()
    assert (folder / "figure.svg").read_text(encoding="utf-8").startswith("<svg xmlns=")
    assert "holds" in evidence._repr_html_()


def test_a_claim_that_is_run_again_runs_nothing(claim, tmp_path):
    first = run(claim, workers=0, out=tmp_path / "out", progress=False)
    again = run(claim, workers=0, out=tmp_path / "out", progress=False)
    assert len(calls(tmp_path)) == 8
    pd.testing.assert_frame_equal(first.frame, again.frame)
    assert first.figure == again.figure


def test_what_was_interrupted_goes_on_where_it_was(claim, tmp_path):
    def stops(config, seed, trial=None, **settings):
        if seed == 2 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        return measured(config, seed, trial, **settings)

    stopping = replace(claim, experiment=stops)
    with pytest.raises(KeyboardInterrupt):
        run(stopping, workers=0, out=tmp_path / "out", progress=False)
    (tmp_path / "again").touch()
    assert run(stopping, workers=0, out=tmp_path / "out", progress=False).verdict.word == "holds"
    assert sorted(calls(tmp_path)) == sorted(f"{part} {seed}" for seed in range(4) for part in ("without", "with"))


def test_other_settings_are_another_run(claim, tmp_path):
    run(claim, workers=0, out=tmp_path / "out", progress=False)
    other = replace(claim, quick=replace(claim.quick, factors={"part": ["with", "without"]}))
    with pytest.raises(
        InvalidValue,
        match=r"factors.part: \['without', 'with'\] → \['with', 'without'\]\nGive another directory, .* resume it.$",
    ):
        run(other, workers=0, out=tmp_path / "out", progress=False)
    assert run(claim, quick=False, workers=0, out=tmp_path / "out", progress=False).verdict.word == "fails"


@pytest.mark.parametrize("workers", [0, 2])
def test_more_seeds_are_added_and_of_fewer_the_first_are_judged(claim, tmp_path, workers):
    def judged(seeds):
        return run(claim, seeds=seeds, workers=workers, out=tmp_path / "out", progress=False)

    four, six, two = judged(4), judged(6), judged(2)
    assert len(calls(tmp_path)) == 12
    assert [sorted(each.frame["seed"].unique()) for each in (two, four, six)] == [[*range(n)] for n in (2, 4, 6)]
    pd.testing.assert_frame_equal(six.frame[six.frame["seed"] < 4], four.frame)
    assert "--seeds 6" in six.command
    found = stored(claim, quick=True, out=tmp_path / "out")
    pd.testing.assert_frame_equal(found.frame, six.frame)
    assert found.verdict == six.verdict


def test_what_is_stored_is_found_where_it_is_whole_and_of_this_set_up(claim, tmp_path):
    def stops(config, seed, trial=None, **settings):
        raise KeyboardInterrupt

    assert stored(claim, quick=True, out=tmp_path) is None
    with pytest.raises(KeyboardInterrupt):
        run(replace(claim, experiment=stops), workers=0, out=tmp_path, progress=False)
    assert stored(claim, quick=True, out=tmp_path) is None
    run(claim, quick=False, workers=0, out=tmp_path, progress=False)
    assert stored(claim, quick=False, out=tmp_path) is not None
    other = replace(claim, full=replace(claim.full, settings={"effect": 9.0}))
    assert stored(other, quick=False, out=tmp_path) is None


@pytest.mark.parametrize("seeds", [0, -1, True, 2.0])
def test_seeds_that_cannot_be_are_refused(claim, tmp_path, seeds):
    with pytest.raises(InvalidValue, match="seeds must be an integer of at least 1"):
        run(claim, seeds=seeds, out=tmp_path, progress=False)


def test_what_cannot_be_run_is_refused(claim, tmp_path):
    with pytest.raises(InvalidValue, match="workers must be an integer of at least 0, but got -1"):
        run(claim, workers=-1, out=tmp_path, progress=False)
    with pytest.raises(InvalidType, match="claim must be the id of a claim, or a Claim"):
        run(3, out=tmp_path, progress=False)
    for id in ("../outside", "", "a b", 'x" onload="', "Part"):
        with pytest.raises(InvalidValue, match="id must be words of small letters and digits"):
            replace(claim, id=id)
    assert not list(tmp_path.iterdir())


def test_trials_that_fail_are_told_and_where_all_do_nothing_is_said(claim, tmp_path):
    def half(config, seed, trial=None, **settings):
        if seed == 0:
            raise ValueError("no luck")
        return measured(config, seed, trial, **settings)

    evidence = run(replace(claim, experiment=half), workers=0, out=tmp_path / "a", progress=False)
    assert len(evidence.frame) == 6
    assert evidence.verdict.word == "undecided"
    assert evidence.verdict.says.endswith("2 of 8 trials failed; what the others say decides nothing.")
    assert "ValueError: no luck" in evidence.failures[0]
    assert "no luck" in render([evidence])

    def none(config, seed, trial=None, **settings):
        raise ValueError("never")

    with pytest.raises(HomeostatError, match=r"part-helps: no trial ended well. ValueError: never"):
        run(replace(claim, experiment=none), workers=0, out=tmp_path / "b", progress=False)


def test_the_gallery_escapes_everything_and_stands_alone(claim, tmp_path):
    evidence = [
        run(replace(claim, id=name), workers=0, out=tmp_path / "out", progress=False) for name in ("first", "second")
    ]
    page = render(evidence)
    assert "</script>" not in page
    assert "&lt;/script&gt;" in page
    assert 'id="first"' in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    identities = [part.partition('"')[0] for part in page.split(' id="')[1:]]
    assert len(identities) == len(set(identities))
    assert summary(evidence).startswith("# Verdicts: 2 hold\n")
    assert summary(evidence).count("\n| ") == 3  # the head and a row for each
    assert "[figure](second/figure.svg)" in summary(evidence)


def test_runs_pair_by_seed():
    frame = pd.DataFrame({"part": ["a", "b"] * 3, "seed": [0, 0, 1, 1, 2, 2], "y": [1.0, 2.0, 5.0, 6.5, np.nan, 9.0]})
    runs = Runs(frame, pd.DataFrame(), Setup("", {"part": ["a", "b"]}, 3))
    found = runs.difference("y", {"part": "b"}, {"part": "a"})
    assert found.estimate == pytest.approx(1.25)
    assert np.isnan(found.low)  # over those that survive there is no interval
    whole = Runs(frame[frame["seed"] < 2], pd.DataFrame(), runs.setup)
    assert whole.difference("y", {"part": "b"}, {"part": "a"}).low < 1.25
    with pytest.raises(InvalidValue, match="levels must be those of trials with a finite y"):
        runs.values("y", part="c")


def test_words_of_verdicts():
    assert decided(Interval(1.0, np.nan, np.nan)) == "undecided"
    assert within(pd.Series([0.0, np.nan]), 1.0) == "fails"
    assert within(pd.Series([], dtype=float), 1.0) == "undecided"
    assert settled(("undecided", "a"), ("holds", "b")) == ("undecided", "a")
    assert "diverged" in more("undecided", seed_mean(pd.Series([1.0, 2.0, np.nan])))
    assert more("undecided", seed_mean(pd.Series([1.0]))) == " More seeds would decide it."
    assert all_of(["undecided", "holds"]) == "undecided"
    assert points(Interval(-0.0123, -0.02, 0.001)) == "−1.2 points [−2.0, 0.1]"


def test_a_seed_has_a_value_where_all_of_its_trials_have_one():
    frame = pd.DataFrame({"part": ["a", "b"] * 3, "seed": [0, 0, 1, 1, 2, 2], "y": [1.0, 2.0, 3.0, np.inf, 5.0, 6.0]})
    runs = Runs(frame.iloc[:-1], pd.DataFrame(), Setup("", {"part": ["a", "b"]}, 3))
    assert runs.by_seed("y")[0] == 1.5
    assert runs.by_seed("y")[[1, 2]].isna().all()


def test_runs_that_diverged_are_counted(claim, tmp_path):
    def diverges(config, seed, trial=None, **settings):
        return {**measured(config, seed, trial, **settings), "diverged": float(seed == 1)}

    evidence = run(replace(claim, experiment=diverges), workers=0, out=tmp_path, progress=False)
    assert evidence.verdict.says.endswith("2 of 8 runs diverged.")


def test_negative_numbers_have_minus_signs(claim, tmp_path):
    told = Verdict("holds", "-1.5 points [-2, -1]", "From -3 to 1e-07, in 784-1000 nets (-4).")
    verdict = run(replace(claim, judge=lambda runs: told), workers=0, out=tmp_path, progress=False).verdict
    assert verdict.number == "−1.5 points [−2, −1]"
    assert verdict.says == "From −3 to 1e-07, in 784-1000 nets (−4)."


def test_the_mean_on_a_logarithmic_axis_is_geometric():
    values = np.array([1.0, 100.0])
    assert draw._mean(values, geometric=True).estimate == pytest.approx(10)
    assert draw._mean(values, geometric=False).estimate == pytest.approx(50.5)
    frame = pd.DataFrame({"at": [1, 1, 1], "y": [1.0, 100.0, np.nan]})
    at, mean, low, _, missing = draw._summary(frame, "at", "y", positive=True)
    assert (at.tolist(), mean[0], missing) == ([1.0], pytest.approx(10), 1)
    assert 0 < low[0] < 10


@pytest.mark.parametrize("log", [False, True])
def test_the_wide_interval_of_two_values_does_not_flatten_the_others(log):
    frame = pd.DataFrame({"at": [1, 1, 1, 2, 2], "y": [0.1, 0.11, 0.12, 0.2, 0.9]})  # at 2 it is 0.55 ± 4.4
    pictures = (
        draw.courses(frame, "at", "y", across="at", up="y", alt="y", log="y" if log else ""),
        draw.levels(frame, "at", "y", across="y", alt="y", log=log),
    )
    for picture in pictures:
        ticks = [float(text.replace("−", "-")) for text in re.findall(r">(−?[\d.]+)</text>", picture.wide)]
        assert min(ticks) > -0.2
        assert max(ticks) <= 2  # which is the last of the other axis


@pytest.mark.parametrize("log", [False, True])
def test_a_reference_line_far_from_the_values_is_in_the_figure(log):
    frame = pd.DataFrame({"at": [1, 1, 2, 2], "y": [30.0, 31.0, 32.0, 33.0]})
    pictures = (
        draw.courses(frame, "at", "y", across="at", up="y", alt="y", log="y" if log else "", line=1.0),
        draw.levels(frame, "at", "y", across="y", alt="y", log=log, line=1.0),
    )
    for picture in pictures:
        ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", picture.wide)]
        assert sum(tick <= 10 for tick in ticks) > 2  # two of them are the other axis's


@pytest.mark.parametrize("count", [1, 3, 4, 5, 6, 7, 8])
def test_legends_are_read_line_by_line(count):
    frame = pd.DataFrame([{"at": n, "y": n, "part": f"part {n}"} for n in range(count)])
    figure = draw.scatter(frame, "at", "y", "part", across="at", up="y", alt="y")
    for markup in (figure.wide, figure.narrow):
        found = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>part (\d)</text>', markup)
        assert [int(part) for _, _, part in sorted(found, key=lambda it: (float(it[1]), float(it[0])))] == [
            *range(count)
        ]


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_figures_without_a_single_value_are_empty(log):
    frame = pd.DataFrame([{"at": at, "y": np.nan, "part": part} for at in (0.1, 1.0) for part in "ab"])
    for figure in (
        draw.courses(frame, "at", "y", "part", across="at", up="height", alt="y", log=log),
        draw.scatter(frame, "at", "y", "part", across="at", up="height", alt="y", log=log),
        draw.levels(frame, "part", "y", across="height", alt="y", log="y" in log),
    ):
        assert ">height</text>" in figure.wide


@pytest.mark.parametrize("kind", ["courses", "scatter"])
def test_more_groups_than_can_be_told_apart_are_refused(kind):
    frame = pd.DataFrame([{"at": n, "y": n, "part": n} for n in range(9)])
    with pytest.raises(InvalidValue, match=f"draw.{kind}: group must be a column of at most 8 values, but got 9"):
        getattr(draw, kind)(frame, "at", "y", "part", across="at", up="y", alt="y")


def test_figures_draw_what_is_not_finite_as_missing():
    frame = pd.DataFrame({"part": ["a", "a", "b", "b"], "at": [0, 1, 0, 1], "y": [1.0, np.inf, np.nan, 2.0]})
    for figure in (
        draw.levels(frame, "part", "y", across="y", alt="y"),
        draw.courses(frame, "at", "y", "part", across="at", up="y", alt="y", log="y"),
        draw.scatter(frame, "at", "y", "part", across="at", up="y", alt="y"),
    ):
        assert "nan" not in figure.wide.lower().replace("finance", "")
        assert figure.wide != figure.narrow
    assert "1 of 2 not finite" in draw.levels(frame, "part", "y", across="y", alt="y").wide


def test_every_claim_says_what_it_needs_to():
    assert len(CLAIMS) == sum(map(len, THEMES.values()))  # no id twice
    for claim in CLAIMS.values():
        assert claim.id == claim.id.lower().replace("_", "-")
        assert claim.source[:3] in {"000", "001", "002", "003", "004"}, claim.id
        assert all((claim.sentence, claim.hypothesis, claim.criterion, claim.quick.data, claim.full.data)), claim.id
        assert min(claim.quick.seeds, claim.full.seeds) >= 1, claim.id


@pytest.mark.parametrize("id", [claim.id for claim in THEMES["Normalization, exactly"] if claim.id != "bn-folding"])
def test_what_is_exact_holds(id, tmp_path):
    assert run(id, workers=0, out=tmp_path, progress=False).verdict.word == "holds"


def test_folding_changes_no_output(tmp_path):
    evidence = run("bn-folding", workers=0, out=tmp_path, progress=False, seeds=2)
    assert (evidence.frame["error"] <= 1e-5).all()


def test_the_command_line_lists_runs_and_refuses(tmp_path):
    runner = CliRunner()
    listed = runner.invoke(app, ["claims", "list"])
    assert listed.exit_code == 0
    lines = listed.output.splitlines()
    assert all(
        sum(line.startswith(f"{id} ") and claim.source in line for line in lines) == 1 for id, claim in CLAIMS.items()
    )
    done = runner.invoke(
        app, ["claims", "run", "bn-parameters", "bn-backward", "--quick", "--workers", "0", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "holds 64 for 32 channels" in done.output
    assert (tmp_path / "quick" / "index.html").exists()
    assert "| bn-backward |" in (tmp_path / "quick" / "README.md").read_text(encoding="utf-8")
    done = runner.invoke(app, ["claims", "run", "bn-invariance", "--quick", "--workers", "0", "--out", str(tmp_path)])
    table = (tmp_path / "quick" / "README.md").read_text(encoding="utf-8")
    assert table.startswith("# Verdicts: 3 hold\n")  # what was run earlier stays
    (tmp_path / "file").touch()
    for words, message in (
        (["claims", "run", "bn-backwards"], "Did you mean 'bn-backward'"),
        (["claims", "run"], "claims must be named, or all be run with --all"),
        (["claims", "run", "bn-backward", "--all"], "claims must be named, or all be run with --all"),
        (["claims", "run", "bn-backward", "--seeds", "0"], "seeds must be an integer of at least 1"),
        (["claims", "run", "bn-backward", "--workers", "-1"], "workers must be an integer of at least 0"),
        (["claims", "run", "bn-backward", "--out", str(tmp_path / "file")], "out must be a folder"),
        (["claims", "run", "bn-backward", "--out", ""], "out must be a folder"),
    ):
        refused = runner.invoke(app, words)
        assert refused.exit_code != 0
        assert message in str(refused.exception)


def test_from_python():
    assert set(hs.claims.CLAIMS) == set(CLAIMS)
