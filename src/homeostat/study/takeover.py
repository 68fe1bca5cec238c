"""Trials that an earlier study has done, taken over by one that needs them too: a follow-up, or more seeds.

A trial is the same where objective and base are, and the treatment and the seed. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeostat.errors import InvalidValue, invalid
from homeostat.study.configuration import differences
from homeostat.study.design import Design
from homeostat.study.factors import Level
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.records import Finished, trial_key

_SAME = ("objective", "base")  # of a configuration


@dataclass(frozen=True, eq=False)
class Earlier:
    """A study that went before.

    Attributes:
        directory: of it.
        design: what it was to run.
        sequential: whether somebody has looked at its results before deciding how many seeds it has.
    """

    directory: Path
    design: Design
    sequential: bool
    _configurations: Sequence[Mapping[str, Any]]  # under which its trials were run

    @classmethod
    def read(cls, directory: Path | str) -> Earlier:
        """The study of that directory, finished or not.

        Raises: StorageError where there is none.
        """
        ledger = Ledger.open(directory, read_only=True)
        try:
            configurations, sequential = [ledger.configuration, *ledger.accepted], ledger.sequential
        finally:
            ledger.close()
        design = Design.from_dict(configurations[0]["design"])
        return cls(Path(directory).absolute(), design, sequential, configurations)

    def check(self, configuration: Mapping[str, Any], directory: Path) -> None:
        """See that a study of this configuration may take trials over.

        Args:
            configuration, directory: of the study that would.
        Raises: InvalidValue, with the difference, where their trials are not the same, or not all of the earlier one's
            are, because it was resumed with other settings; or if it is this very study.
        """
        if directory.absolute() == self.directory:
            raise invalid("Study", "after", "be another study than this one", str(directory), "Give another directory.")
        here, *there = ({name: each.get(name) for name in _SAME} for each in (configuration, *self._configurations))
        lines = dict.fromkeys(line for each in there for line in differences(each, here))
        if lines:
            cure = "Its trials cannot be taken over. Ask for the same task and settings, or leave --after (after=) out."
            raise InvalidValue(
                f"{self.directory}: that study was made, or resumed anyway, with other settings (there → here):\n"
                + "\n".join(f"  {line}" for line in lines)
                + f"\n{cure}"
            )

    def finished(self) -> list[Finished]:
        """Its trials that ended well."""
        ledger = Ledger.open(self.directory, read_only=True)
        try:
            return list(ledger.finished())
        finally:
            ledger.close()

    def overlap(self, trials: Iterable[tuple[Mapping[str, Level], int]]) -> int:
        """How many of these trials, (config, seed), it has done."""
        known = {each.key for each in self.finished()}
        return sum(trial_key(config, seed) in known for config, seed in trials)

    def goes_on(self, design: Design) -> bool:
        """Whether results were looked at before it was clear which seeds a study of that design has.

        They were where this one was sequential, and are where that design adds seeds to it.
        """
        return self.sequential or not set(design.seeds) <= set(self.design.seeds)
