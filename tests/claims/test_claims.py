"""Claims as such: run, resumed, judged, kept, shown. What single claims say is tested beside, by theme."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import homeostat as hs
from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, all_of, decided, points, within
from homeostat.claims.gallery import render, summary
from homeostat.claims.registry import CLAIMS, THEMES
from homeostat.claims.run import run
from homeostat.cli import app
from homeostat.errors import HomeostatError, InvalidValue
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
    with pytest.raises(InvalidValue, match="seeds: 4 → 3"):
        run(claim, seeds=3, workers=0, out=tmp_path / "out", progress=False)
    assert run(claim, quick=False, workers=0, out=tmp_path / "out", progress=False).verdict.word == "fails"


@pytest.mark.parametrize("seeds", [0, -1, True, 2.0])
def test_seeds_that_cannot_be_are_refused(claim, tmp_path, seeds):
    with pytest.raises(InvalidValue, match="seeds must be an integer of at least 1"):
        run(claim, seeds=seeds, out=tmp_path, progress=False)


def test_trials_that_fail_are_told_and_where_all_do_nothing_is_said(claim, tmp_path):
    def half(config, seed, trial=None, **settings):
        if seed == 0:
            raise ValueError("no luck")
        return measured(config, seed, trial, **settings)

    evidence = run(replace(claim, experiment=half), workers=0, out=tmp_path / "a", progress=False)
    assert len(evidence.frame) == 6
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
    assert found.df == 1
    with pytest.raises(InvalidValue, match="levels must be those of trials with a finite y"):
        runs.values("y", part="c")


def test_words_of_verdicts():
    assert decided(Interval(1.0, np.nan, np.nan)) == "undecided"
    assert within(pd.Series([0.0, np.nan]), 1.0) == "fails"
    assert all_of(["undecided", "holds"]) == "undecided"
    assert points(Interval(-0.0123, -0.02, 0.001)) == "−1.2 points [−2.0, 0.1]"


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
    assert all(id in listed.output for id in CLAIMS)
    done = runner.invoke(
        app, ["claims", "run", "bn-parameters", "bn-backward", "--quick", "--workers", "0", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "holds 64 for 32 channels" in done.output
    assert (tmp_path / "quick" / "index.html").exists()
    assert "| bn-backward |" in (tmp_path / "quick" / "README.md").read_text(encoding="utf-8")
    for words, message in (
        (["claims", "run", "bn-backwards"], "Did you mean 'bn-backward'"),
        (["claims", "run"], "claims must be named, or all be run with --all"),
        (["claims", "run", "bn-backward", "--all"], "claims must be named, or all be run with --all"),
    ):
        refused = runner.invoke(app, words)
        assert refused.exit_code != 0
        assert message in str(refused.exception)


def test_from_python():
    assert set(hs.claims.CLAIMS) == set(CLAIMS)
