"""`watch`: vitals and findings of anybody's own training loop, for two lines more.

    with hs.watch(model, optimizer) as w:
        ...the loop as it was...
    print(w)

What is measured is in `recorder`, when in `cadence`, what is found in `lapses` and `alarms`. Training computes the same
bits as without. Not random.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from homeostat.doctor.finding import Finding, Severity
from homeostat.doctor.watching.alarms import DeadUnits, NonFinite, gradient_findings
from homeostat.doctor.watching.anatomy import Anatomy
from homeostat.doctor.watching.cadence import Cadence
from homeostat.doctor.watching.lapses import Coverage, Modes, StaleGradients
from homeostat.doctor.watching.recorder import Recorder
from homeostat.doctor.watching.vitals import WHOLE, Vitals
from homeostat.errors import HomeostatError, invalid, invalid_type

_SHOWN = ("mean", "std", "dead", "saturated", "gradient", "update", "weight", "rotation")
_MARKS: dict[Severity, str] = {"error": "✖", "warning": "▲", "info": "○"}


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    cost: float = 0.03,
    every: int | None = None,
    loss_fn: nn.Module | None = None,
) -> Watch:
    """Watch a training loop: a context manager that measures the network on some steps and says what is wrong.

    Hooks on the optimizer count steps; hooks on layers and parameters are attached for watched steps only. The first
    three steps are watched, then as many as the cost allows. Everything is taken off again on exit.

    Args:
        model: what is trained; its weights, buffers and results are not touched.
        optimizer: the one that steps, or several in the order in which they step.
        cost: the largest share of the training's time that watching may take.
        every: watch every so many steps instead, whatever it costs; which steps that are does not depend on a clock.
        loss_fn: a module whose output is the loss, to have it among the vitals; `loss` tells it otherwise.
    Returns: a `Watch` with `vitals`, `findings` and `report()`.
    Raises: InvalidType or InvalidValue for arguments that cannot be watched.
    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> with watch(model, optimizer) as w:
        ...     for _ in range(4):
        ...         model(torch.ones(16, 4)).square().mean().backward()
        ...         optimizer.step()
        >>> [finding.slug for finding in w.findings]
        ['missing-zero-grad']
    """
    return Watch(model, optimizer, cadence=Cadence(cost, every), loss_fn=loss_fn)


class Watch:
    """What `watch` returns: enter it around a loop. It may be entered again afterwards, and then goes on."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        cadence: Cadence | None = None,
        loss_fn: nn.Module | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise invalid_type("watch", "model", "be a torch.nn.Module", model)
        if loss_fn is not None and not isinstance(loss_fn, nn.Module):
            cure = "A function has no hooks: leave it out, and call w.loss(loss) in the loop if you want it recorded."
            raise invalid_type("watch", "loss_fn", "be a torch.nn.Module or None", loss_fn, cure)
        if any(is_lazy(parameter) for parameter in model.parameters()):
            cure = "Run one batch through it first, and make the optimizer after that."
            raise invalid("watch", "model", "hold no lazy layer", type(model).__name__, cure)
        optimizers = _optimizers(optimizer)
        self._stale, self._coverage, self._modes = StaleGradients(optimizers), Coverage(), Modes()
        self._finite, self._dead = NonFinite(), DeadUnits()
        listeners = (self._stale, self._coverage, self._modes, self._finite, self._dead)
        self._recorder = Recorder(Anatomy(model), optimizers, cadence or Cadence(), loss_fn, listeners)
        self._inside = False

    def __enter__(self) -> Watch:
        if self._inside:
            raise HomeostatError("watch: this watch is already on. Make another one: two may watch the same model.")
        self._recorder.start()
        self._inside = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside = False
        self._recorder.stop()

    @property
    def vitals(self) -> Vitals:
        """What was measured so far."""
        return self._recorder.vitals

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, errors first; empty for a healthy training."""
        found = [
            *self._finite.findings(),
            *self._stale.findings(),
            *self._coverage.findings(),
            *self._modes.findings(self.steps),
            *self._dead.findings(),
            *gradient_findings(self.vitals),
        ]
        return sorted(found, key=lambda finding: finding.rank)

    @property
    def steps(self) -> int:
        """Steps of the training so far."""
        return self._recorder.step

    @property
    def cost(self) -> float:
        """The share of the time that watching took."""
        return self._recorder.cadence.share

    @property
    def seconds(self) -> float:
        """The time that watching took."""
        return self._recorder.cadence.spent

    def loss(self, loss: Tensor | float) -> None:
        """Record the loss of the step under way, if it is watched; call it as often as you like."""
        self._recorder.note_loss(loss)

    def report(self) -> str:
        """The findings, and the latest vitals of each layer, as text."""
        return "\n".join([self._headline(), *self._said(), "", *_table(self.vitals)])

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        return f"Watch({self._headline()})"

    def _headline(self) -> str:
        found = self.findings
        counts = [
            f"{n} {word if n == 1 else plural}"
            for severity, word, plural in (
                ("error", "error", "errors"),
                ("warning", "warning", "warnings"),
                ("info", "remark", "remarks"),
            )
            if (n := sum(finding.severity == severity for finding in found))
        ]
        watched = f"{len(self.vitals)} of {self.steps:,} steps watched at {self.cost:.1%} of the time"
        return f"{watched}: {', '.join(counts) or 'nothing found'}"

    def _said(self) -> list[str]:
        lines = []
        for finding in self.findings:
            where = f" in {finding.layer}" if finding.layer else ""
            lines.append(f"{_MARKS[finding.severity]} {finding.code} {finding.slug}{where}: {finding.message}")
            lines.append(f"  {finding.remedy}")
        return lines


def _table(vitals: Vitals) -> list[str]:
    """The latest values, a line per layer."""
    if not len(vitals):
        return []
    width = max(len("layer"), *(len(name) for name in vitals.layers))
    head = f"{'layer':<{width}}" + "".join(f"{name:>11}" for name in _SHOWN)
    lines = [head]
    for name in vitals.layers:
        values = [vitals.last(name, statistic) for statistic in _SHOWN]
        lines.append(f"{name:<{width}}" + "".join(f"{'' if v != v else format(v, '.3g'):>11}" for v in values))
    ratio, loss = vitals.last(WHOLE, "gradient_ratio"), vitals.last(WHOLE, "loss")
    if ratio == ratio:
        lines.append(f"gradient of the first layers over that of the last: {ratio:.3g}")
    if loss == loss:
        lines.append(f"loss at step {vitals.of(WHOLE, 'loss')[0][-1]}: {loss:.4g}")
    return lines


def _optimizers(optimizer: Any) -> tuple[Optimizer, ...]:
    """The optimizers as a tuple, each the one whose step is really called."""
    given = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    if not isinstance(given, Sequence) or not given:
        raise invalid_type("watch", "optimizer", "be a torch.optim.Optimizer or a list of some", optimizer)
    found: list[Optimizer] = []
    for one in given:
        while not hasattr(one, "_optimizer_step_pre_hooks") and isinstance(
            inner := getattr(one, "optimizer", None), Optimizer
        ):
            one = inner  # wrapped by a library that steps it
        if not isinstance(one, Optimizer):
            raise invalid_type("watch", "optimizer", "be a torch.optim.Optimizer or a list of some", one)
        found.append(one)
    if len({id(one) for one in found}) < len(found):
        raise invalid("watch", "optimizer", "hold each optimizer once", len(found))
    return tuple(found)
