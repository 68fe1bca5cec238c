"""What may be relied on when a study's trials run on a Ray cluster, and when parts of it die."""

import functools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
from objectives import (
    Told,
    Unloadable,
    double,
    eventually,
    gated,
    import_nothing,
    make_ledger,
    note,
    notes,
    run,
)

from homeostat.errors import HomeostatError, InvalidType, InvalidValue
from homeostat.study.remote import cluster
from homeostat.study.remote.cluster import Cluster
from homeostat.study.remote.node import versions
from homeostat.study.running.local import StudyInterrupted
from homeostat.study.running.runner import Rules
from homeostat.study.state.lease import Process
from homeostat.study.state.ledger import Ledger
from homeostat.study.study import Study

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an extra")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning"
)
STORE = 80_000_000  # bytes of each node's object store


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Three nodes of two CPUs each on this machine, which want a token, and a connection to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "a-token-for-the-tests-of-studies-on-a-cluster")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("HOMEOSTAT_CACHE", str(tmp_path_factory.mktemp("nodes")))
        import ray  # which reads the environment as it is now
        from ray.cluster_utils import Cluster as Local

        local = Local(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE})
        for _ in range(2):
            local.add_node(num_cpus=2, object_store_memory=STORE)
        ray.init(local.address, log_to_driver=False, logging_level=logging.ERROR)
        yield local
        ray.shutdown()
        local.shutdown()


def run_there(ledger, objective, *, retries=2, lease=30.0, cpus=1, timeout=None, memory=None):
    told = Told()
    rules = Rules(retries, lease, None, timeout, memory)
    with cluster.connected("ray") as ray:
        cluster.run_cluster(ray, ledger, objective, rules, told, on=Cluster(cpus=cpus))
    return told.events


def noisy(config, seed, trial):
    """Draws a curve and a result out of its seed alone."""
    import numpy as np

    generator = np.random.default_rng([config["x"], seed])
    for epoch in range(3):
        trial.report(epoch, loss=float(generator.normal()), odd=float("nan"))
    return {"y": float(generator.normal()), "threads": float(os.environ["OMP_NUM_THREADS"])}


def test_results_equal_those_of_local_workers_bit_for_bit(tmp_path, nodes):
    here, there = make_ledger(tmp_path / "here", 8), make_ledger(tmp_path / "there", 8)
    run(here, noisy)
    events = run_there(there, noisy)
    same = ["trial", "treatment", "seed", "x", "status", "attempt", "y", "threads"]
    assert there.trials()[same].equals(here.trials()[same])
    assert there.curves().equals(here.curves())
    assert len(there.curves()) == 24
    assert sorted(event[:2] for event in events) == [("done", number) for number in range(8)]


def test_a_node_runs_as_many_trials_as_it_has_cpus(tmp_path, nodes):
    def crowd(config, seed, trial):
        import ray

        node = ray.get_runtime_context().get_node_id()
        start = time.time()
        time.sleep(0.3)
        note(tmp_path / "log", f"{node}/{start}/{time.time()}")
        return {"y": 1.0}

    ledger = make_ledger(tmp_path / "study", 12)
    run_there(ledger, crowd)
    spans = [
        (node, float(start), float(end)) for node, start, end in (line.split("/") for line in notes(tmp_path / "log"))
    ]
    assert len(spans) == 12
    at_once = [sum(node == other and a <= start < b for other, a, b in spans) for node, start, _ in spans]
    assert max(at_once) <= 2
    assert len({node for node, _, _ in spans}) > 1


def dies_once(config, seed, trial, how):
    if trial.number == 1 and trial.attempt == 1:
        trial.report(0, loss=1.0)
        time.sleep(0.5)
        os.kill(os.getpid(), how)
        time.sleep(60)
    return double(config, seed)


def test_a_process_that_is_killed_costs_its_trial_an_attempt(tmp_path, nodes):
    ledger = make_ledger(tmp_path / "study", 4)
    events = run_there(ledger, functools.partial(dies_once, how=signal.SIGKILL))
    assert ledger.trials()["status"].tolist() == ["done"] * 4
    assert ledger.trials()["attempt"].tolist() == [1, 2, 1, 1]
    assert [event[:2] for event in events if event[0] != "done"] == [("failed", 1)]


def test_a_trial_that_always_kills_its_process_at_once_is_quarantined(tmp_path, nodes):
    ledger = make_ledger(tmp_path / "study", 4)
    before = set(Path(tempfile.gettempdir()).glob("homeostat-study-*"))
    events = run_there(ledger, lambda config, seed: os._exit(3) if seed else {"y": 1.0}, retries=1)
    assert ledger.trials()["status"].tolist() == ["done", "quarantined"] * 2
    assert not set(Path(tempfile.gettempdir()).glob("homeostat-study-*")) - before
    assert sorted(event[:2] for event in events if event[1] == 1) == [("failed", 1), ("quarantined", 1)]


def test_a_frozen_process_loses_its_trial_and_is_ended(tmp_path, nodes):
    def freezes(config, seed, trial):
        note(tmp_path / "pids", f"{trial.number}/{os.getpid()}")
        return dies_once(config, seed, trial, signal.SIGSTOP)

    ledger = make_ledger(tmp_path / "study", 4)
    events = run_there(ledger, freezes, lease=3.0)
    trials = ledger.trials()
    assert trials["status"].tolist() == ["done"] * 4
    assert trials["attempt"].tolist() == [1, 2, 1, 1]
    assert [event[:2] for event in events if event[0] == "failed"] == [("failed", 1)]
    assert "no sign of life from process" in next(event[2] for event in events if event[0] == "failed")
    frozen = next(int(line.split("/")[1]) for line in notes(tmp_path / "pids") if line.startswith("1/"))
    eventually(lambda: not Process.of(frozen).alive())


def test_a_node_that_is_lost_costs_the_attempts_that_ran_on_it_and_nothing_else(tmp_path, nodes):
    node = nodes.add_node(num_cpus=1, object_store_memory=STORE)
    doomed = node.node_id

    gate, log = tmp_path / "gate", tmp_path / "log"

    def waits(config, seed, trial):
        import ray

        here = ray.get_runtime_context().get_node_id()
        note(log, f"{trial.number}/{trial.attempt}/{here}")
        trial.report(trial.attempt, loss=1.0)
        while here == doomed or not gate.exists():
            time.sleep(0.05)
        return double(config, seed)

    class Axe(Told):
        def tick(self, counts):
            if any(line.endswith(doomed) for line in notes(log)) and not gate.exists():
                nodes.remove_node(node, allow_graceful=False)
                gate.touch()

    ledger, told = make_ledger(tmp_path / "study", 12), Axe()
    with cluster.connected("ray") as ray:
        cluster.run_cluster(ray, ledger, waits, Rules(retries=0), told, on=Cluster())
    (unlucky,) = [int(line.split("/")[0]) for line in notes(log) if line.endswith(doomed)]
    trials = ledger.trials()
    assert trials["status"].tolist() == ["done"] * 12
    assert trials["attempt"].tolist() == [2 if number == unlucky else 1 for number in range(12)]
    assert trials["y"].tolist() == [double({"x": number // 2}, number % 2)["y"] for number in range(12)]
    assert [event[:2] for event in told.events if event[0] != "done"] == [("lost", unlucky)]


def test_a_late_result_under_a_stale_token_is_refused(tmp_path, nodes):
    """The trial is taken away under the hands of the first attempt, as a frozen node's is."""
    directory = tmp_path / "study"

    def late(config, seed, trial):
        if trial.number == 0 and trial.attempt == 1:
            ledger = Ledger.open(directory)
            ledger.recover(0)
            (mine,) = [each for each in ledger.running() if each.trial == 0]
            ledger.release_worker(mine.holder.worker)
            ledger.close()
            return {"y": -1.0}
        return double(config, seed)

    ledger = make_ledger(directory, 2)
    events = run_there(ledger, late)
    assert ledger.trials()["y"].tolist() == [0.0, 1.0]
    assert ledger.trials()["attempt"].tolist() == [2, 1]
    assert [event[:2] for event in events if event[0] == "lost"] == [("lost", 0)]


def test_an_attempt_that_lost_its_trial_is_told_to_stop(tmp_path, nodes):
    directory = tmp_path / "study"

    def goes_on(config, seed, trial):
        if trial.attempt == 1:
            ledger = Ledger.open(directory)
            ledger.release_worker(ledger.running()[0].holder.worker)
            ledger.close()
            note(tmp_path / "log", str(os.getpid()))
            for epoch in range(10_000):
                trial.report(epoch, loss=-1.0)
                time.sleep(0.01)
        return double(config, seed)

    ledger = make_ledger(directory, 1)
    run_there(ledger, goes_on)
    assert ledger.trials()["y"].tolist() == [0.0]
    assert ledger.curves().empty
    eventually(lambda: not Process.of(int(notes(tmp_path / "log")[0])).alive())


def test_ctrl_c_ends_tasks_gives_trials_back_and_the_same_call_resumes(tmp_path, nodes):
    gate, log = tmp_path / "gate", tmp_path / "log"

    class Impatient(Told):
        def tick(self, counts):
            if counts.done == 2 and len(notes(log)) > 2:
                os.kill(os.getpid(), signal.SIGINT)

    ledger = make_ledger(tmp_path / "study", 6)
    objective = functools.partial(gated, gate=gate, log=log, free=2)
    with pytest.raises(StudyInterrupted, match="2 of 6 trials are done"), cluster.connected("ray") as ray:
        cluster.run_cluster(ray, ledger, objective, Rules(retries=0), Impatient(), on=Cluster(at_once=3))
    assert (ledger.counts().done, ledger.counts().pending) == (2, 4)
    gate.touch()
    run_there(ledger, objective, retries=0)
    assert ledger.trials()["status"].tolist() == ["done"] * 6
    assert sorted(map(int, notes(log)))[:2] == [0, 1]
    assert ledger.curves()["epoch"].tolist() == [0, 1] * 6


def test_a_failing_trial_is_retried_and_given_up(tmp_path, nodes):
    def fails(config, seed):
        warnings.warn("hot", stacklevel=1)
        if seed:
            raise ValueError(f"no {seed}")
        return {"y": 1.0}

    ledger = make_ledger(tmp_path / "study", 2)
    events = run_there(ledger, fails, retries=1)
    trials = ledger.trials()
    assert trials["status"].tolist() == ["done", "quarantined"]
    assert trials["attempt"].tolist() == [1, 2]
    assert trials["failure"][1].startswith("ValueError: no 1")
    assert trials["warnings"].tolist() == [["UserWarning: hot"]] * 2
    assert sorted(event[0] for event in events) == ["done", "failed", "quarantined"]


def test_a_trial_that_passes_its_time_is_ended(tmp_path, nodes):
    ledger = make_ledger(tmp_path / "study", 1)
    run_there(ledger, lambda config, seed: time.sleep(60), retries=0, timeout=1.0)
    assert ledger.trials()["failure"][0].startswith("The trial passed its time limit of 1 s and was ended. ")


def test_a_trial_that_takes_too_much_memory_is_ended(tmp_path, nodes):
    def greedy(config, seed):
        hoard = bytearray(b"x") * 800_000_000
        time.sleep(60)
        return {"y": float(len(hoard))}

    ledger = make_ledger(tmp_path / "study", 1)
    run_there(ledger, greedy, retries=0, memory=700_000_000)
    assert "of memory, its limit is" in ledger.trials()["failure"][0]


def test_a_result_that_cannot_be_used_reaches_the_caller(tmp_path, nodes):
    ledger = make_ledger(tmp_path / "study")
    with pytest.raises(InvalidType, match="its result must be a dict of metrics"):
        run_there(ledger, lambda config, seed: 0.5)
    assert ledger.counts().pending == 4


def test_an_objective_that_nodes_cannot_load_is_told_at_once(tmp_path, nodes):
    ledger = make_ledger(tmp_path / "study")
    with pytest.raises(HomeostatError, match=r"(?s)cannot run the objective.*a_module.*importable on every node"):
        run_there(ledger, Unloadable(import_nothing))
    assert ledger.counts().pending == 4


def test_an_objective_that_cannot_be_sent_is_refused(tmp_path, nodes):
    with open(tmp_path / "file", "w") as file, pytest.raises(InvalidType, match="be something that can be sent"):
        run_there(make_ledger(tmp_path / "study"), lambda config, seed: {"y": file.fileno()})


def test_a_trial_that_fits_on_no_node_is_refused(tmp_path, nodes):
    ledger = make_ledger(tmp_path / "study")
    with pytest.raises(InvalidValue, match=r"fit on one node, but got \(3, 0\).*2 CPUs, 0 GPUs"):
        run_there(ledger, double, cpus=3)
    assert ledger.counts().pending == 4


def test_nodes_with_other_versions_run_nothing(tmp_path, nodes, monkeypatch):
    monkeypatch.setattr("homeostat.study.remote.node.versions", lambda: {**versions(), "torch": "1.0"})
    with pytest.raises(HomeostatError, match=r"has torch .*, the driver 1\.0\. Results of other versions"):
        run_there(make_ledger(tmp_path / "study"), double)


def test_a_task_s_data_travel_to_nodes_that_have_another_cache(tmp_path, nodes, monkeypatch):
    """The same fits on a node that got the data through Ray's object store as here."""
    from homeostat.training.cache import cache_folder
    from homeostat.training.datasets import load_task
    from homeostat.training.objective import Objective
    from homeostat.training.recipe import Recipe

    theirs = cache_folder() / "tasks"
    monkeypatch.setenv("HOMEOSTAT_CACHE", str(tmp_path / "driver"))
    objective = Objective(load_task("spirals"), Recipe(model="mlp", epochs=2))
    rows = [(0, seed, {"dropout": 0.2}) for seed in range(2)]
    here = Ledger.create_or_open(tmp_path / "here", {}, rows)
    there = Ledger.create_or_open(tmp_path / "there", {}, rows)
    run(here, objective)
    assert not theirs.exists()
    run_there(there, objective)
    assert [path.name for path in theirs.iterdir()] == [objective.task.fingerprint]
    timing = ["seconds", "seconds_per_epoch"]
    assert there.trials().drop(columns=timing).equals(here.trials().drop(columns=timing))
    here.close()
    there.close()


def test_a_study_runs_on_a_cluster_and_tells_its_trackers(tmp_path, nodes):
    class Tracker:
        def __init__(self):
            self.calls = []

        def trial_started(self, run):
            self.calls.append("started")

        def epoch_reported(self, run, epoch, values):
            self.calls.append("epoch")

        def trial_ended(self, run, ending, metrics):
            self.calls.append(ending)

        def study_concluded(self, summary, report):
            self.calls.append(report.name)

    tracker = Tracker()
    there = Study(noisy, {"x": [0, 1]}, seeds=3, directory=tmp_path / "there", on="ray", track=[tracker])
    here = Study(noisy, {"x": [0, 1]}, seeds=3, directory=tmp_path / "here")
    assert there.run(progress=False).analysis.effects.equals(here.run(progress=False).analysis.effects)
    assert sorted(tracker.calls) == ["done"] * 6 + ["epoch"] * 18 + ["report.html"] + ["started"] * 6


def test_who_has_no_token_is_not_let_in(nodes):
    script = "from homeostat.study.remote.cluster import connected\nwith connected('ray'): print('in')"
    environment = {**os.environ, "RAY_ADDRESS": nodes.address, "RAY_AUTH_TOKEN": "a-guess-of-somebody-else-entirely"}
    environment["RAY_NUM_REDIS_GET_RETRIES"] = "1"  # how often Ray tries again
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, env=environment)
    assert "in" not in done.stdout.split()
    assert "HomeostatError: Ray: no connection" in done.stderr


def test_where_a_study_can_run():
    assert cluster.as_cluster("ray") == Cluster()
    assert cluster.as_cluster(None, 3) is None
    assert cluster.as_cluster(Cluster(gpus=0.5), 3) == Cluster(gpus=0.5, at_once=3)
    with pytest.raises(InvalidValue, match=r"workers .* must be at least 1, but got 0"):
        cluster.as_cluster("ray", 0)
    with pytest.raises(InvalidValue, match="address must be 'ray' or begin with 'ray://', but got 'head:10001'"):
        cluster.as_cluster("head:10001")
    with pytest.raises(InvalidValue, match="not both be 0"):
        Cluster(cpus=0)
    with pytest.raises(InvalidType, match="gpus must be a number"):
        Cluster(gpus="all")


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(HomeostatError, match=r"needs Ray.*pip install 'homeostat\[ray\]'"),
        cluster.connected("ray://head:10001"),
    ):
        raise AssertionError("never reached")
