"""The driver's side of a study on a Ray cluster: it claims trials, hands them to Ray, and writes down what comes back.

The driver claims a trial for each task, and renews the lease while the task waits in Ray's queue; once it runs, only
its own signs of life do, so that what is frozen loses its trial. All writes are the driver's, under the attempt's
token. Ray retries nothing; we do. A node that is lost costs the attempts that ran on it. Nothing here is random.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from homeostat.errors import HomeostatError, invalid
from homeostat.study.remote import node
from homeostat.study.running import launch, limits
from homeostat.study.running.local import Stop, StudyInterrupted, Watch
from homeostat.study.running.runner import Objective, Rules
from homeostat.study.state.lease import Holder, new_token
from homeostat.study.state.ledger import Claim, Counts, Ledger, StaleClaim
from homeostat.study.state.storage import StorageError

_TICK = 0.25  # seconds between two looks at the ledger
_CENSUS = 2.0  # seconds between two looks at the nodes
_PARTING = 5.0  # seconds that nodes have to tidy up
_STILLBORN = 3  # tasks in a row that die before their first sign of life
_LOST_NODES = 10  # attempts after which a lost node counts against its trial, which may be what ends nodes


@dataclass
class _Task:
    """One attempt that Ray carries."""

    claim: Claim
    reference: Any
    renewed: float
    place: node.Place | None = None  # since its first sign of life
    started: float = 0.0


@dataclass
class Dispatch:
    """The driver's view of its tasks.

    Attributes:
        ray: the module, connected.
        cpus, gpus: what a trial takes.
        at_once: trials given to Ray at once; None: as many as the nodes have room for.
    """

    ray: Any
    ledger: Ledger
    objective: Objective
    rules: Rules
    watch: Watch
    cpus: float
    gpus: float
    at_once: int | None
    tasks: dict[str, _Task] = field(default_factory=dict)  # by token
    stale: list[str] = field(default_factory=list)  # tokens that the desk has not been told of
    used: set[str] = field(default_factory=set)  # nodes that trials have run on
    stillborn: int = 0
    room: int = 0
    last_census: float = -_CENSUS
    last_look: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        ray, here = self.ray, self.ray.get_runtime_context().get_node_id()
        beside = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        self.packed = _packed(ray, self.objective)
        self.desk = ray.remote(node.Desk).options(num_cpus=0, scheduling_strategy=beside).remote()
        environment = {"env_vars": dict.fromkeys(launch.THREADS, str(max(1, int(self.cpus))))}
        self.function = ray.remote(node.run)
        self.options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0, "runtime_env": environment}
        self.study, self.versions = _study_folder(self.ledger), node.versions()
        self.path = [os.path.abspath(folder) for folder in sys.path]

    def run(self, stop: Stop) -> None:
        """Keep trials at work until every one has ended."""
        from ray import exceptions

        try:
            while True:
                self._listen()
                self._recover()
                counts = self.ledger.counts()
                self.watch.tick(counts)
                if counts.ended:
                    self._tidy()
                    return
                self._assign(counts)
                if stop.asked:
                    raise StudyInterrupted(self.ledger.directory, self.ledger.counts())
        except (exceptions.RayError, ConnectionError) as error:
            cure = "Nothing that was stored is lost; the same command resumes."
            raise HomeostatError(f"Ray cannot go on ({type(error).__name__}: {error}). {cure}") from error
        finally:
            self._dismiss()

    def _assign(self, counts: Counts) -> None:
        """Give pending trials to Ray, as many as there is room for."""
        room = self.at_once or self._room()
        for _ in range(min(room - len(self.tasks), counts.pending)):
            claim = self.ledger.claim(Holder.current(new_token()), self.rules.lease)
            if claim is None:  # another driver was faster
                return
            assignment = node.Assignment(claim, self.rules, self.study, self.versions, self.path)
            task = self.function.options(name=f"trial {claim.trial}", **self.options)
            reference = task.remote(self.desk, assignment, self.packed)
            self.tasks[claim.token] = _Task(claim, reference, time.monotonic())

    def _room(self) -> int:
        """How many trials the living nodes can run at once; at the first look, at least one."""
        if time.monotonic() - self.last_census < _CENSUS:
            return self.room
        first, self.last_census = self.last_census < 0, time.monotonic()
        asked = {"CPU": self.cpus, "GPU": self.gpus}
        living = [each["Resources"] for each in self.ray.nodes() if each["Alive"]]
        self.room = sum(
            min(int(resources.get(kind, 0.0) // need) for kind, need in asked.items() if need) for resources in living
        )
        if first and not self.room:
            found = "; ".join(f"{each.get('CPU', 0):g} CPUs, {each.get('GPU', 0):g} GPUs" for each in living)
            cure = f"The nodes have: {found}. Ask for less, or give workers=, and trials wait for others."
            raise invalid("Cluster", "cpus and gpus", "fit on one node", (self.cpus, self.gpus), cure)
        return self.room

    def _listen(self) -> None:
        """Wait a moment for what ends; then write down all that was said, and after that what came of it."""
        if not self.tasks:
            time.sleep(_TICK)
        references = {task.reference: task for task in self.tasks.values()}
        ended: list[Any] = []
        if references:
            self.ray.wait(list(references), num_returns=1, timeout=_TICK)
            ended, _ = self.ray.wait(list(references), num_returns=len(references), timeout=0)
        stale, self.stale = self.stale, []
        for sign in self.ray.get(self.desk.take.remote(stale)):
            self._hear(sign)
        for reference in ended:
            if references[reference].claim.token in self.tasks:
                self._end(references[reference])

    def _hear(self, sign: node.Sign) -> None:
        task = self.tasks.get(sign.token)
        if task is None:  # of an attempt that has lost its trial
            return
        if task.place is None:
            task.place, task.started, self.stillborn = sign.place, time.monotonic(), 0
            self.used.add(sign.place.node)
        self._renew(task)
        self._write(task.claim, sign.rows)
        if sign.held:
            self._give_up(task, limits.memory_passed(sign.held, self.rules.memory or 0))

    def _write(self, claim: Claim, rows: Any) -> None:
        for epoch, values, steps in rows:
            with contextlib.suppress(StaleClaim):  # `_renew` has seen to it
                self.ledger.report(claim, epoch, values, self.rules.lease, steps)

    def _renew(self, task: _Task) -> None:
        try:
            self.ledger.renew(task.claim, self.rules.lease)
            task.renewed = time.monotonic()
        except StaleClaim as error:
            self._drop(task)
            self.watch.event(("lost", task.claim.trial, str(error)))

    def _recover(self) -> None:
        """Renew what waits in Ray's queue, give up what no longer answers or takes too long, free what others lost."""
        now = time.monotonic()
        slept = now - self.last_look > self.rules.lease / 3 + 1  # this process itself was frozen: all may speak again
        self.last_look = now
        for task in list(self.tasks.values()):
            if slept or (task.place is None and now - task.renewed > self.rules.lease / 3):
                self._renew(task)
            elif now - task.renewed > self.rules.lease:
                self._give_up(task, f"There was no sign of life from {_where(task)} for {self.rules.lease:g} s.")
            elif task.place and self.rules.timeout is not None and now - task.started > self.rules.timeout:
                self._give_up(task, limits.time_passed(self.rules.timeout))
        self.ledger.recover(self.rules.retries)

    def _end(self, task: _Task) -> None:
        """A task has returned, or cannot any more."""
        from ray import exceptions

        try:
            outcome: node.Outcome = self.ray.get(task.reference)
        except (exceptions.RayTaskError, exceptions.RuntimeEnvSetupError) as error:
            self._drop(task, release=True)
            raise HomeostatError(f"The nodes cannot run trials: {error}") from error
        except exceptions.RayError as error:
            self._mourn(task, error)
            return
        self._write(task.claim, outcome.rows)
        del self.tasks[task.claim.token]
        try:
            self._settle(task, outcome)
        except StaleClaim as error:
            self.watch.event(("lost", task.claim.trial, str(error)))

    def _settle(self, task: _Task, outcome: node.Outcome) -> None:
        """Write down what a node says of an attempt, under its token."""
        claim = task.claim
        if outcome.kind == "done":
            self.ledger.finish(claim, outcome.metrics or {}, outcome.seconds or 0.0, outcome.warnings)
            self.watch.event(("done", claim.trial, ""))
        elif outcome.kind == "failed" or (outcome.kind == "unusable" and self.ledger.counts().done):
            known = {"seconds": outcome.seconds, "warnings": outcome.warnings}
            self._fail(claim, outcome.text, final=outcome.final or outcome.kind == "unusable", **known)
        elif outcome.kind == "lost":
            self.ledger.release(claim)
            self.watch.event(("lost", claim.trial, outcome.text))
        else:
            self.ledger.release(claim)
            cure = "What it needs must be importable on every node." if outcome.kind == "broken" else ""
            said = f"The nodes cannot run the objective:\n{outcome.text}\n{cure}" if cure else outcome.text
            raise outcome.error(said)

    def _mourn(self, task: _Task, error: Exception) -> None:
        """The process of a task, or its node, has died."""
        text = f"{_where(task)}: {' '.join(str(error).split())}"
        if self._is_lost(task, error) and task.claim.attempt < _LOST_NODES:
            self._drop(task, release=True)
            self.watch.event(("lost", task.claim.trial, f"The node was lost. {text}"))
        elif task.place is not None:
            self._drop(task)
            self._fail(task.claim, text)
        else:
            self._drop(task, release=True)
            self.stillborn += 1
            if self.stillborn >= _STILLBORN:
                raise HomeostatError(f"Tasks die before they begin a trial, {self.stillborn} in a row. {text}")

    def _is_lost(self, task: _Task, error: Exception) -> bool:
        """Whether a task ended with its node, or with the store that held its result, and not by itself."""
        from ray import exceptions

        if isinstance(error, (exceptions.NodeDiedError, exceptions.ObjectLostError, exceptions.TaskCancelledError)):
            return True
        return task.place is not None and task.place.node not in {
            each["NodeID"] for each in self.ray.nodes() if each["Alive"]
        }

    def _give_up(self, task: _Task, why: str) -> None:
        """Take a trial away from an attempt, which is held against it, and end the process."""
        self._drop(task)
        self._fail(task.claim, why)
        if task.place is not None:  # a process that is frozen does not hear Ray
            self._on(task.place.node, node.kill, task.place.process)

    def _tidy(self) -> None:
        """Have the nodes remove the study's folder, with what attempts that died have left in it."""
        asked = [self._on(each, node.tidy, self.study) for each in self.used]
        if asked:
            self.ray.wait(asked, num_returns=len(asked), timeout=_PARTING)

    def _on(self, place: str, function: Callable[..., None], argument: object) -> Any:
        """Call a function on a node, beside the trials."""
        there = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place, soft=False)
        options = {**self.options, "num_cpus": 0, "num_gpus": 0, "scheduling_strategy": there}
        return self.ray.remote(function).options(**options).remote(argument)

    def _fail(self, claim: Claim, text: str, *, final: bool = False, **known: Any) -> None:
        try:
            status = self.ledger.fail(claim, text, self.rules.retries, final=final, **known)
        except StaleClaim as error:
            self.watch.event(("lost", claim.trial, str(error)))
        else:
            self.watch.event(("quarantined" if status == "quarantined" else "failed", claim.trial, text))

    def _drop(self, task: _Task, *, release: bool = False) -> None:
        """Have nothing more to do with a task, and tell it to stop."""
        self.tasks.pop(task.claim.token, None)
        self.stale.append(task.claim.token)
        with contextlib.suppress(Exception):  # it may have ended, or Ray be gone
            self.ray.cancel(task.reference, force=True)
        if release:
            self.ledger.release(task.claim)

    def _dismiss(self) -> None:
        """End all tasks and give back what they held."""
        for task in list(self.tasks.values()):
            with contextlib.suppress(StorageError):  # then whoever resumes sees that nobody holds it
                self._drop(task, release=True)
        with contextlib.suppress(Exception):
            self.ray.kill(self.desk)


def _where(task: _Task) -> str:
    return "a node" if task.place is None else f"process {task.place.process.pid} on {task.place.name}"


def _packed(ray: Any, objective: Objective) -> list[Any]:
    """References to the objective's bytes and to its files; each travels to a node once."""
    carried = getattr(objective, "carried", None)
    given = carried() if callable(carried) else None
    if given is None:
        return [ray.put(launch.packed(objective)), None]
    receive, files = given
    return [ray.put(launch.packed(receive)), ray.put(files)]


def _study_folder(ledger: Ledger) -> str:
    """The name of a study's folder on the nodes: the same when it is resumed, another one for any other study."""
    told = f"{platform.node()}\n{ledger.directory}\n{ledger.created}"
    return f"homeostat-study-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
