"""Lapses of a training loop that a watched run gives away: gradients not reset, parameters left out, evaluation mode.

Each is a listener to a `Recorder`. Modes are seen at every step, the others at watched steps and those behind them. Not
random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from homeostat.doctor.finding import Finding
from homeostat.doctor.watching.anatomy import Held, is_plain
from homeostat.doctor.watching.notices import listed, named, notice
from homeostat.doctor.watching.recorder import Listener, Recorder
from homeostat.kernels.operator import is_eager

FEWEST = 3
"""Steps that must show a lapse. One may be meant so; a lapse is in every step."""

_CUT = "nothing before them gets one either, so something between them and the loss cuts the gradient off"
_ASIDE = "layers before them do, so their output does not reach the loss"
_UNUSED = "their layers were not called"
_UNSEEN = "whether they are used is not seen"

_PROBES = 3  # parameters per optimizer whose gradients are followed
_SELDOM = 8  # where the first comparisons found nothing, one watched step in so many is compared
_VALUES = 512  # of each that are compared
_PARALLEL = 1e-4  # squared sine between old and new gradient below which they cannot be told apart


class StaleGradients(Listener):
    """Whether the gradient of a step contains that of the step before it.

    Behind a watched step the gradients of a few parameters are noted. A hook on these parameters then sees each new
    gradient before it is added to `.grad`: if `.grad` was None or zero at any time before the next step, it was reset.
    If not, and the gradient at the next step is a * old + b * new with a share of old in it, then it was not reset.
    Gradients that are assigned have a = 0. Accumulation over several batches resets `.grad` once per step, and passes.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self._probes: dict[int, list[_Probe]] = {}
        self.judged = [0] * len(self._optimizers)
        """Pairs of steps that were compared, for each optimizer."""
        self.stale = [0] * len(self._optimizers)
        """How many of them had no reset in between."""
        self.wiped = [0] * len(self._optimizers)
        """How many of them lost the gradient between backward and step."""

    def armed(self, optimizer: int) -> bool:
        return optimizer in self._probes

    def after(self, recorder: Recorder, optimizer: int) -> None:
        if not recorder.watching or optimizer in self._probes:
            return
        quiet = self.judged[optimizer] >= FEWEST and not self.stale[optimizer] and not self.wiped[optimizer]
        if quiet and len(recorder.vitals) % _SELDOM:
            return
        groups = self._optimizers[optimizer].param_groups
        all_parameters = [p for group in groups for p in group["params"] if is_plain(p.grad) and p.requires_grad]
        chosen = dict.fromkeys(all_parameters[place] for place in _spread(len(all_parameters), _PROBES))
        probes = [_Probe(parameter) for parameter in chosen]
        if probes:
            self._probes[optimizer] = probes

    def before(self, recorder: Recorder, optimizer: int) -> None:
        probes = self._probes.pop(optimizer, None)
        if probes is None:
            return
        verdicts = {probe.close() for probe in probes} - {"unknown"}
        if verdicts:
            self.judged[optimizer] += 1
            self.stale[optimizer] += verdicts == {"stale"}
            self.wiped[optimizer] += verdicts == {"wiped"}

    def stopped(self, recorder: Recorder) -> None:
        for probes in self._probes.values():
            for probe in probes:
                probe.close()
        self._probes.clear()

    def findings(self) -> Iterator[Finding]:
        for place, (judged, stale, wiped) in enumerate(zip(self.judged, self.stale, self.wiped, strict=True)):
            which = "" if len(self.judged) == 1 else f" of optimizer {place}"
            evidence = {"steps_compared": judged, "steps_with_old_gradient": stale, "optimizer": place}
            if stale >= FEWEST and stale > judged / 2:
                message = f"The gradients{which} are not reset: at {stale} of {judged} steps they were the sum of the "
                yield notice("OPT009", message + "step's own and all before.", evidence=evidence)
            if wiped >= FEWEST and wiped > judged / 2:
                message = f"The gradients{which} are cleared between backward() and step(), at {wiped} of {judged} "
                yield notice(
                    "GRD003",
                    message + "steps: nothing is learned.",
                    severity="error",
                    remedy="Call optimizer.zero_grad() before backward() or after step(), not between them.",
                    evidence={"steps_compared": judged, "steps_without_gradient": wiped, "optimizer": place},
                )


class _Probe:
    """One parameter between two steps: the hook on it, and what it saw."""

    __torch_unserializable__ = True

    def __init__(self, parameter: Tensor) -> None:
        self.parameter: Tensor | None = parameter
        self.old = _few(parameter.grad)
        self.address = 0 if parameter.grad is None else parameter.grad.data_ptr()
        self.new = np.zeros_like(self.old)
        self.calls = 0
        self.cleared = False
        self.handle: RemovableHandle = parameter.register_hook(self)

    def __call__(self, gradient: Tensor) -> None:
        """A gradient came for the parameter and will be added to its `.grad`."""
        if self.parameter is None or not is_eager(gradient) or not is_plain(gradient):
            return
        self.calls += 1
        self.new = self.new + _few(gradient)
        self.cleared = self.cleared or not np.any(_few(self.parameter.grad))

    def close(self) -> str:
        """Take the hook off and say what happened: "reset", "stale", "wiped" or "unknown"."""
        self.handle.remove()
        parameter, self.parameter = self.parameter, None
        if parameter is None or not self.calls:
            return "unknown"
        now = _few(parameter.grad)
        if not all(np.all(np.isfinite(values)) for values in (now, self.old, self.new)) or not np.any(self.new):
            return "unknown"
        if not np.any(now):
            return "wiped"
        if self.cleared or not np.any(self.old):
            return "reset" if self.cleared else "unknown"
        same = parameter.grad is not None and parameter.grad.data_ptr() == self.address
        return "stale" if _is_sum(now, self.old, self.new, same) else "unknown"


def _is_sum(now: NDArray[np.float64], old: NDArray[np.float64], new: NDArray[np.float64], unsure: bool) -> bool:
    """Whether `now` has a share of `old` beside that of `new`; `unsure` is the answer where these are parallel.

    The shares are equal unless gradients were clipped by value, which keeps more of the old.
    """
    if not now.shape == old.shape == new.shape:
        return False
    old_old, new_new, old_new = old @ old, new @ new, old @ new
    determinant = old_old * new_new - old_new**2
    if determinant <= _PARALLEL * old_old * new_new:
        return unsure
    of_old = (new_new * (now @ old) - old_new * (now @ new)) / determinant
    of_new = (old_old * (now @ new) - old_new * (now @ old)) / determinant
    return bool(of_old > abs(of_new) / 2)


class Coverage(Listener):
    """Which parameters of the model get gradients, and which an optimizer holds."""

    def __init__(self) -> None:
        self.steps = 0
        self._everything: tuple[Held, ...] = ()
        self._with_gradient: set[int] = set()
        self._pushed: dict[int, int] = {}  # in how many steps its gradient was not 0
        self._first: dict[int, NDArray[np.float64]] = {}
        self._changed: set[int] = set()
        self._order: list[int] = []
        self._seen: set[int] = set()

    def finished(self, recorder: Recorder, step: int) -> None:
        self.steps += 1
        self._everything = tuple(recorder.anatomy.parameters)
        self._order = recorder.outputs.order
        self._seen = {recorder.anatomy.index[module] for module in recorder.anatomy.hooked}
        norms = recorder.steps.gradient_norms
        for place, held in enumerate(self._everything):
            if not np.isnan(norms[place]):
                self._with_gradient.add(place)
            if norms[place] > 0:
                self._pushed[place] = self._pushed.get(place, 0) + 1
            if (held.optimizer < 0 or place not in self._with_gradient) and place not in self._changed:
                values = _few(held.parameter)
                if not np.array_equal(self._first.setdefault(place, values), values):
                    self._changed.add(place)
                    del self._first[place]

    def findings(self) -> Iterator[Finding]:
        """Parameters without an optimizer, and those that an optimizer holds in vain."""
        if self.steps < FEWEST:
            return
        held_at_all = any(held.optimizer >= 0 for held in self._everything)
        left_out = [
            held
            for place, held in enumerate(self._everything)
            if held.optimizer < 0
            and held.parameter.requires_grad
            and place not in self._changed
            and self._pushed.get(place, 0) >= FEWEST
        ]
        if left_out:
            names = [held.name for held in left_out]
            share = _size(left_out) / max(1, _size(self._everything))
            message = f"{len(names)} parameters get gradients and no optimizer holds them, so they never change: "
            if not held_at_all:
                message = f"The optimizer holds none of the model's parameters, and {len(names)} get gradients: "
            evidence = {"parameters": listed(names), "count": len(names), "share_of_values": share}
            severity = "warning" if held_at_all else "error"
            yield notice("OPT008", message + named(names) + ".", evidence=evidence, severity=severity)  # type: ignore[arg-type]
        yield from self._disconnected()

    def _disconnected(self) -> Iterator[Finding]:
        without = [
            (place, held)
            for place, held in enumerate(self._everything)
            if held.optimizer >= 0
            and held.parameter.requires_grad
            and place not in self._with_gradient
            and place not in self._changed
        ]
        alive = {self._everything[place].layer for place in self._with_gradient}
        groups: dict[str, list[Held]] = {}
        for _, held in without:
            groups.setdefault(self._fate(held.layer, alive), []).append(held)
        for fate, members in groups.items():
            names = [held.name for held in members]
            message = f"{len(names)} parameters in the optimizer never got a gradient in {self.steps} watched steps; "
            evidence = {"parameters": listed(names), "count": len(names), "watched_steps": self.steps}
            severity = "warning" if fate == _CUT else "info"
            yield notice("GRD003", f"{message}{fate}: {named(names)}.", evidence=evidence, severity=severity)  # type: ignore[arg-type]

    def _fate(self, layer: int, alive: set[int]) -> str:
        """Why a layer has no gradient, as far as the order of calls tells."""
        if layer not in self._seen:
            return _UNSEEN
        if layer not in self._order:
            return _UNUSED
        earlier = self._order[: self._order.index(layer)]
        return _ASIDE if alive & set(earlier) else _CUT


class Modes(Listener):
    """Whether steps are taken while the model is in evaluation mode."""

    def __init__(self) -> None:
        self.trained = False
        """Whether a watched step saw a layer in training mode."""
        self._since: int | None = None
        self._longest = (0, 0)
        self._moody: tuple[list[str], list[str]] = ([], [])
        self._doubtful = False

    def mode_changed(self, recorder: Recorder, training: bool) -> None:
        self._end(recorder.step)
        moody = recorder.anatomy.moody
        if not training and moody and not any(module.training for module in moody):
            self._since = recorder.step
            self._moody = _kinds(moody)

    def finished(self, recorder: Recorder, step: int) -> None:
        in_training = max(recorder.outputs.modes, default=0) == 2
        self.trained = self.trained or in_training
        if self._since is not None and in_training:
            self._doubtful = True  # the mode was changed between forward and step: not forgotten, but meant

    def findings(self, steps: int) -> Iterator[Finding]:
        """What was found up to so many steps."""
        first, last = self._longest if self._since is None else max(self._longest, (self._since, steps), key=_length)
        if last - first < FEWEST or self._doubtful:
            return
        drops, norms = self._moody
        effects = [f"dropout drops nothing ({named(drops)})"] if drops else []
        effects += [f"batch normalization uses and keeps old statistics ({named(norms)})"] if norms else []
        message = f"The model is in evaluation mode while it is trained, at {last - first} steps from step {first} on"
        evidence = {"first_step": first, "last_step": last - 1, "steps": last - first, "trained_before": self.trained}
        causes = ("eval_mode_while_training", *(("batchnorm_running_stats_not_updated",) if norms else ()))
        yield notice("NRM010", f"{message}: {'; '.join(effects)}.", evidence=evidence, causes=causes)

    def _end(self, step: int) -> None:
        if self._since is not None:
            self._longest = max(self._longest, (self._since, step), key=_length)
            self._since = None


def _length(run: tuple[int, int]) -> int:
    return run[1] - run[0]


def _kinds(modules: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Classes of modules that drop, and of those with running statistics."""
    norms = [m for m in modules if isinstance(getattr(m, "running_mean", None), Tensor)]
    drops = [m for m in modules if m not in norms]
    return sorted({type(m).__name__ for m in drops}), sorted({type(m).__name__ for m in norms})


def _spread(count: int, wanted: int) -> list[int]:
    """Evenly spread places among `count`, first and last included."""
    return [round(place * (count - 1) / (wanted - 1)) for place in range(wanted)] if count else []


@torch.no_grad()
def _few(tensor: Tensor | None) -> NDArray[np.float64]:
    """Evenly spaced values as a copy; one 0 for None and for what cannot be read."""
    if tensor is None or not is_plain(tensor) or not tensor.numel():
        return np.zeros(1)
    step = -(-tensor.numel() // _VALUES)
    return tensor.detach().reshape(-1)[::step].cpu().double().numpy().copy()


def _size(parameters: Sequence[Held]) -> int:
    return sum(held.parameter.numel() for held in parameters)
