"""`repair`: what the findings propose, tried together, thinned to the smallest set that keeps the gain, and proved.

The result is new objects; the user's stay as they are. What counts is the paired comparison at the end: the same seeds
without and with the changes. Random by the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from homeostat.doctor.arms import Arm
from homeostat.doctor.budget import Budget, Stopwatch
from homeostat.doctor.changes.change import Change, Safety
from homeostat.doctor.examine import Examination, examine
from homeostat.doctor.guard import interrupted
from homeostat.doctor.judge import Charge, Say
from homeostat.doctor.proof import PairedProof, confirmed, prove
from homeostat.doctor.rules.generalization import BelowBaseline
from homeostat.doctor.search import Search
from homeostat.doctor.training import Training
from homeostat.errors import invalid_type

_EXAMINATION = 0.35  # of the time
_SEARCH = 0.7  # of what is left; the rest is for the proof


@dataclass(frozen=True)
class Applied:
    """One change that was made."""

    what: str
    where: tuple[str, ...]
    """Layer names; () for the training as a whole."""
    why: str
    """The message of the finding behind it, or that it was tried and helped."""
    diff: str
    """The same in the user's own code: lines that begin with "-" or "+"."""
    safety: Safety
    code: str = ""
    """The rule that proposed it."""

    def __str__(self) -> str:
        where = f" ({', '.join(self.where)})" if self.where else ""
        return f"{self.what}{where}: {self.why}"


@dataclass(eq=False)
class Repair:
    """What a repair did; true if it changed anything.

    Attributes:
        training: new objects with the changes made, not trained yet; a plain copy if nothing helped.
        changes: what was changed, in the order in which it was applied.
        proof: the paired comparison; None where there was nothing to compare.
        before: the examination of the training as given.
        original: the user's training, as it was: taking it back is all there is to an undo.
        advice: what was found and cannot be repaired without changing code or data.
    """

    training: Training
    changes: tuple[Applied, ...]
    proof: PairedProof | None
    before: Examination
    original: Training
    advice: tuple[str, ...] = ()
    seconds: float = 0.0
    arm: Arm | None = field(default=None, repr=False)

    @property
    def diff(self) -> str:
        """All changes as lines of code for the user's own program."""
        return "\n".join(change.diff for change in self.changes if change.diff)

    @property
    def ill(self) -> str:
        """Why the training is ill with the changes too, though better; empty if it is not, or nothing was changed."""
        return self.proof.ill if self.changes and self.proof is not None else ""

    @property
    def verdict(self) -> str:
        """In one sentence."""
        if self.changes:
            names = "; ".join(change.what for change in self.changes)
            count = f"{len(self.changes)} change{'s' * (len(self.changes) > 1)}"
            if self.ill:
                return f"Better by {count}, and still ill: {names}. {self.proof}. {self.ill}"
            return f"Repaired by {count}: {names}. {self.proof}."
        if not self.before:
            return "Nothing to repair: the examination found no warning."
        return "No repair was found that the paired comparison confirms."

    def undo(self) -> Training:
        """The training as it was given."""
        return self.original

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        lines = [self.verdict, *(f"  {change}" for change in self.changes)]
        return "\n".join([*lines, *(f"  advice: {text}" for text in self.advice)])


def repair(
    training: Training,
    budget: str | float | Budget = "2m",
    *,
    unsafe: bool = True,
    seed: int = 0,
    examination: Examination | None = None,
    progress: Say | None = None,
) -> Repair:
    """Repair a training, and prove by paired runs that the repair helps.

    Args:
        training: never changed; the repair is made of new objects.
        budget: time in all, such as "2m"; or a number of steps for every training.
        unsafe: False leaves out changes after which the model computes another function of the same weights (other
            activations, normalization, new initial weights, standardized inputs).
        seed: of the examination and the first pair; the others derive from it.
        examination: one made before of the same training; None makes one.
        progress: called with the name of the stage and the share of it that is done.
    Returns: the repaired training with what was changed and the proof; unchanged where nothing helps.
    Raises: as `examine`.
    Example:
        >>> import torch
        >>> from torch import nn, optim
        >>> import homeostat as hs
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> model, data = nn.Linear(4, 1), (x, x[:, :1])
        >>> training = hs.Training(
        ...     model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1, maximize=True), data, data,
        ...     batch_size=20, epochs=5,
        ... )
        >>> [change.what for change in hs.repair(training, budget=50).changes]
        ['minimize the loss instead of maximizing it']
    """
    if not isinstance(training, Training):
        raise invalid_type("repair", "training", "be a homeostat.Training", training, "Make one of your objects.")
    limit = Budget.parse(budget, "repair")
    with interrupted(limit, "repair"):
        return _repaired(training, limit, unsafe, seed, examination, progress or (lambda stage, share: None))


def _repaired(
    training: Training, limit: Budget, unsafe: bool, seed: int, examination: Examination | None, say: Say
) -> Repair:
    """Examined, searched, proved."""
    clock, deadline = Stopwatch(), limit.deadline()
    if examination is None:
        share = limit if limit.seconds is None else Budget(seconds=limit.seconds * _EXAMINATION)
        examination = examine(training, share, seed=seed, progress=say)
    if not examination or examination.arms is None:
        return Repair(training.copy(), (), None, examination, training, _advice(examination, ()))
    search = Search(examination, unsafe, deadline.share(_SEARCH), say)
    arm = examination.arms.arm(search.run())
    chosen = arm.changes
    chart, proof = search.chart, None
    if chosen:
        same_data = chart.data is not None and chart.data.same_splits
        proof = prove(examination.arms, chart.baselines, chosen, seed, deadline, say, same_data=same_data)
    seconds = clock.passed_seconds
    if proof is None or not confirmed(proof):
        return Repair(training.copy(), (), proof, examination, training, _advice(examination, ()), seconds=seconds)
    repaired = training.copy()
    for change in chosen:
        change.apply(repaired)
    changes = tuple(_applied(change, search.reasons) for change in chosen)
    advice = _advice(examination, changes, proof.ill)
    return Repair(repaired, changes, proof, examination, training, advice, seconds, arm)


def _applied(change: Change, reasons: dict[Change, Charge]) -> Applied:
    charge = reasons.get(change)
    why = "tried as a customary remedy, and it helped" if charge is None else charge.suspect.message
    code = "" if charge is None else charge.rule.code
    return Applied(change.what, change.where, why, change.diff, change.safety, code)


def _advice(examination: Examination, changes: Sequence[Applied], ill: str = "") -> tuple[str, ...]:
    """The remedies of findings that no change took care of; that it was ill is no advice once it is well."""
    done = {change.code for change in changes} | ({BelowBaseline.code} if changes and not ill else set())
    found = [f for f in examination.findings if f.severity != "info" and f.code not in done and f.remedy]
    return tuple(dict.fromkeys(f"{finding.code}: {finding.remedy}" for finding in found))
