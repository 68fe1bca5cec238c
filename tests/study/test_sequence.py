"""Seeds added one by one: the study ends when enough is known, with the same trials however it was run."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from tiny import FACTORS, measured

from homeostat.errors import InvalidType, InvalidValue
from homeostat.study.design import full_factorial
from homeostat.study.running.interim import strongest
from homeostat.study.running.status import read_status
from homeostat.study.sequence import FIRST, MOST, Schedule
from homeostat.study.state.lease import Holder
from homeostat.study.state.ledger import Ledger
from homeostat.study.stopping import look
from homeostat.study.study import Study

ME = Holder.current("me")


def study(directory, *, seeds=20, until=0.01, workers=0, margin=0.0):
    return Study(measured, FACTORS, seeds, directory=directory, until=until, workers=workers, margin=margin)


def run(trials):
    """The trials that were run, as (treatment, seed)."""
    ended = trials[trials["status"] == "done"]
    return sorted(zip(ended["treatment"], ended["seed"], strict=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return study(tmp_path_factory.mktemp("sequence") / "study").run(progress=False)


def test_a_study_ends_when_every_effect_is_known_well_enough(undisturbed):
    effects = undisturbed.analysis.effects
    assert ((effects["high"] - effects["low"] <= 0.02) | (effects["p_holm"] < 0.05)).all()
    assert effects["verdict"].tolist() == ["helps", "no clear effect", "no clear effect"]
    seeds = len(undisturbed.analysis.design.seeds)
    assert FIRST < seeds < 20
    assert run(undisturbed.trials) == [(treatment, seed) for treatment in range(4) for seed in range(seeds)]
    assert undisturbed.saved == 80 - 4 * seeds
    assert (undisturbed.analysis.planned, undisturbed.analysis.missing) == (4 * seeds, 0)
    assert undisturbed.analysis.warnings == []


def test_it_ends_at_the_first_look_that_suffices(undisturbed):
    seeds = len(undisturbed.analysis.design.seeds)
    schedule = Schedule(undisturbed.design, 0.01, "maximize", 0.0)
    for so_far in range(FIRST, seeds + 1):
        trials = undisturbed.trials.copy()
        trials.loc[trials["seed"] >= so_far, "status"] = "waiting"
        assert schedule.look(trials, "valid_accuracy")[1].settled == (so_far == seeds)


def test_what_is_reported_holds_at_every_look_and_says_what_was_saved(undisturbed):
    seeds, analysis = len(undisturbed.analysis.design.seeds), undisturbed.analysis
    found = look(analysis, target=0.01)
    for name in ("estimate", "low", "high", "p_holm"):
        np.testing.assert_allclose(analysis.effects[name], found.effects[name])
    saved = f"{seeds} of at most 20. {4 * seeds} trials of at most 80 were run, {80 - 4 * seeds} were saved."
    assert saved in analysis.summary
    page = undisturbed.report.read_text()
    assert 'id="sequence"' in page
    assert saved in page
    table = pd.read_csv(undisturbed.directory / "trials.csv")
    assert (table["status"] == "waiting").sum() == undisturbed.saved


def test_who_looks_sees_what_the_study_will_say(undisturbed):
    seen, analysis = read_status(undisturbed.directory).strongest, undisturbed.analysis
    assert seen.seeds == len(analysis.design.seeds)
    assert len(seen.effects) == 3
    rows = analysis.effects.set_index("label")
    for effect in seen.effects:
        row = rows.loc[effect.label]
        assert (effect.amount, effect.verdict) == (analysis.unit.gain(row.estimate, row.low, row.high), row.verdict)


def test_who_looks_at_one_seed_sees_nothing_clear(undisturbed):
    trials = undisturbed.trials.copy()
    trials.loc[trials["seed"] > 0, "status"] = "waiting"
    judged = {"response": "valid_accuracy", "goal": "maximize", "margin": 0.0}
    seen = strongest(trials, undisturbed.design, judged, sequential=True)
    assert seen.seeds == 1
    assert {effect.verdict for effect in seen.effects} == {"no clear effect"}


@pytest.mark.parametrize("workers", [1, 3])
def test_however_many_workers_there_are_the_trials_are_the_same(tmp_path, undisturbed, workers):
    found = study(tmp_path / "study", workers=workers).run(progress=False)
    assert run(found.trials) == run(undisturbed.trials)
    assert found.analysis.effects.equals(undisturbed.analysis.effects)


def test_treatments_that_are_clearly_worse_are_given_up(tmp_path):
    found = study(tmp_path / "study", until="best", seeds=12).run(progress=False)
    seeds = found.trials[found.trials["status"] == "done"].groupby("treatment")["seed"].max() + 1
    assert seeds[0] < 12
    assert seeds[1] < 12
    assert (seeds[[2, 3]] == 12).all()  # dropout does nothing
    assert found.saved == 48 - seeds.sum()
    assert "treatment 2 and treatment 3 may be the best" in found.report.read_text()
    assert (found.analysis.missing, found.analysis.warnings) == (0, [])
    assert "have finished" not in found.analysis.summary


def test_treatments_of_which_every_run_is_lost_are_given_up_too(tmp_path):
    def objective(config, seed):
        return {"valid_accuracy": float("nan")} if config["dropout"] else measured(config, seed)

    found = Study(objective, FACTORS, 12, until="best", directory=tmp_path, workers=0).run(progress=False)
    seeds = found.trials[found.trials["status"] == "done"].groupby("treatment")["seed"].max() + 1
    assert seeds[[1, 3]].tolist() == [FIRST, FIRST]
    assert seeds[0] == seeds[2] < 12
    assert "treatment 2 is the best" in found.report.read_text()


def test_a_study_of_treatments_ends_when_one_is_left(tmp_path):
    alone = Study(measured, {"norm": ["none", "batch"], "dropout": [0, 0.5]}, 12, workers=0, directory=tmp_path)
    assert alone.until is None
    pair = Study(lambda c, s: measured({"dropout": 0, **c}, s), {"norm": ["none", "batch"]}, until="best", workers=0)
    pair.directory = tmp_path / "pair"
    found = pair.run(progress=False)
    assert len(found.design.seeds) == MOST
    assert found.analysis.planned == found.analysis.finished < 24
    assert "treatment 1 is the best" in found.report.read_text()


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_sequence import study
study({directory!r}).run(progress=False)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals are POSIX")
@pytest.mark.parametrize(
    "place",
    ["create.stored", "hold.written", "hold.stored", "finish.stored=kill:11", "admit.written", "admit.stored=kill:3"],
)
def test_killed_anywhere_it_goes_on_to_the_same_end(tmp_path, undisturbed, place):
    script = SCRIPT.format(here=os.path.dirname(__file__), directory=str(tmp_path / "study"))
    kill = place if "=" in place else f"{place}=kill"
    environment = {**os.environ, "HOMEOSTAT_FAILPOINTS": kill}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    found = study(tmp_path / "study").run(progress=False)
    assert run(found.trials) == run(undisturbed.trials)
    assert found.analysis.effects.equals(undisturbed.analysis.effects)


def test_two_drivers_run_the_same_trials_as_one(tmp_path, undisturbed):
    script = SCRIPT.format(here=os.path.dirname(__file__), directory=str(tmp_path / "study"))
    drivers = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(2)]
    for driver in drivers:
        said = driver.communicate(timeout=100)[1]
        assert driver.returncode == 0, said
    found = study(tmp_path / "study").run(progress=False)
    assert run(found.trials) == run(undisturbed.trials)
    assert (found.trials["attempt"] <= 1).all()


def test_a_resumed_study_may_have_another_aim(tmp_path, undisturbed):
    seeds = len(undisturbed.analysis.design.seeds)
    wide = study(tmp_path / "study", until=0.05).run(progress=False)
    assert len(wide.analysis.design.seeds) < seeds
    again = study(tmp_path / "study", until=0.01).run(progress=False)
    assert run(again.trials) == run(undisturbed.trials)
    wider = study(tmp_path / "study", until=0.05).run(progress=False)  # what was run stays
    assert run(wider.trials) == run(undisturbed.trials)
    whole = study(tmp_path / "study", until=None).run(progress=False)
    assert (whole.saved, len(run(whole.trials))) == (0, 80)
    assert "All were run." in whole.analysis.summary  # it was looked at, so the intervals stay those of looks
    assert whole.analysis.effects["p"].equals(look(whole.analysis).effects["p"])


def test_seeds_with_gaps_are_filled_before_others_are_begun(tmp_path):
    best = study(tmp_path / "study", until="best", seeds=9).run(progress=False)
    assert best.saved
    found = study(tmp_path / "study", until=0.0, seeds=9).run(progress=False)
    assert found.saved == 0


def test_a_plain_study_that_was_stopped_may_go_on_with_an_aim(tmp_path, undisturbed):
    calls = []

    def objective(config, seed):
        calls.append(seed)
        if len(calls) == 22:
            raise KeyboardInterrupt
        return measured(config, seed)

    def plain(until):
        return Study(objective, FACTORS, 20, directory=tmp_path / "study", workers=0, until=until)

    with pytest.raises(KeyboardInterrupt):
        plain(None).run(progress=False)
    found = plain(0.01).run(progress=False)
    assert run(found.trials) == run(undisturbed.trials)


def test_drivers_on_one_study_do_not_get_in_each_others_way(tmp_path):
    design = full_factorial(FACTORS, 6)
    rows = [(treatment, seed, design.config(treatment)) for treatment, seed in design.run_order()]
    one, two = (Ledger.create_or_open(tmp_path, {}, rows) for _ in range(2))
    schedule = Schedule(design, 0.0, "maximize", 0.5)

    def finish(ledger, count):
        for _ in range(count):
            claim = ledger.claim(ME, 30)
            ledger.finish(claim, measured(claim.config, claim.seed), 0.1)

    schedule.hold(one)
    assert (one.counts().pending, one.counts().waiting, one.counts().planned) == (8, 16, 24)
    finish(one, 7)
    assert schedule.advance(two, "valid_accuracy")
    assert two.counts().waiting == 16  # a seed is not complete: nobody looks
    finish(two, 1)
    assert schedule.advance(one, None)
    assert one.counts().pending == 4
    schedule.hold(two)  # a driver that comes now, before anything of the third seed was begun
    assert two.counts().pending == 0
    assert schedule.advance(one, None)
    finish(one, 1)
    schedule.hold(two)
    assert (two.counts().pending, two.counts().waiting) == (3, 12)
    one.close(), two.close()


def test_nothing_is_looked_at_where_nothing_works(tmp_path):
    def broken(config, seed):
        raise ValueError("no")

    broken_study = Study(broken, FACTORS, 10, directory=tmp_path, workers=0, until=0.1, retries=0)
    with pytest.raises(Exception, match="no trial ended well"):
        broken_study.run(progress=False)
    assert Ledger.open(tmp_path).counts().quarantined == 8


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"until": -0.1}, InvalidValue, "until must be 'best', or finite and at least 0, but got -0.1"),
        ({"until": float("nan")}, InvalidValue, "until must be"),
        ({"until": "worst"}, InvalidValue, "until must be 'best'"),
        ({"until": True}, InvalidType, "until must be a number or 'best'"),
        ({"until": 0.1, "seeds": 2}, InvalidValue, "seeds must be at least 3 with until"),
        ({"until": 0.1, "tune": {"lr": [0.1, 1.0]}}, InvalidValue, "until must not be given together with tune"),
    ],
)
def test_aims_that_cannot_be_are_refused(changes, kind, message):
    with pytest.raises(kind, match=message):
        Study(measured, FACTORS, **changes)


def test_the_aim_is_no_part_of_the_configuration():
    plain = Study(measured, FACTORS, MOST)
    assert Study(measured, FACTORS, until=0.1).directory == plain.directory
    assert Study(measured, FACTORS, until="best").directory == plain.directory
