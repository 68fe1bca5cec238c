"""A design in words: what is run, what it estimates, and what it cannot tell apart. Nothing here is random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from homeostat.study.design.model import Effect, effect_name
from homeostat.study.results.wording import counted, listed

if TYPE_CHECKING:
    from homeostat.study.design.design import Design

ROMAN = {3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII", 9: "IX", 10: "X"}
_EXPLAINED = (
    "A generator is how one factor follows from others in every run; the resolution is what that mixes up: III main "
    "effects with two-factor interactions, IV such interactions with each other, V neither."
)
_KINDS = {
    "full": "the full factorial of",
    "plackett-burman": "a Plackett-Burman design of",
    "screening": "a definitive screening design of",
    "orthogonal": "an orthogonal array of",
    "optimal": "a D-optimal choice from the {combinations:,} combinations of",
    "augmented": "a design in stages from the {combinations:,} combinations of",
}
_MOST_SETS = 16  # of aliases that are written out


def described(design: Design) -> str:
    """See `Design.describe`."""
    count = f"{counted(len(design.treatments), 'treatment')} × {counted(len(design.seeds), 'seed')}"
    lines = [f"{count} = {counted(design.trials, 'trial')}: {_what(design)}."]
    if design.generators:
        lines.append(f"Generators: {'; '.join(design.generators)}.")
    if design.kind == "fractional":
        lines.append(_EXPLAINED)
    elif design.kind != "full" or design.model != design.effects:
        efficiency = f"D-efficiency {design.d_efficiency:.2f}, where the full factorial has 1"
        lines.append(f"Estimates {model_text(design, design.model)}; {efficiency}.")
    if design.alias_sets:
        lines.append(f"Cannot be told apart: {alias_text(design)}.")
    elif design.kind == "fractional":
        lines.append("Every main effect and two-factor interaction can be told apart from the others.")
    return "\n".join([*lines, *_bias(design)])


def model_text(design: Design, model: Sequence[Effect]) -> str:
    """The effects of a model in few words: "the main effects and a × b"."""
    pairs = [effect_name(effect) for effect in model if len(effect) > 1]
    if not pairs:
        return "the main effects" if len(design.factors) > 1 else "the main effect"
    if len(model) == len(design.effects):
        return "every main effect and two-factor interaction"
    if len(pairs) > _MOST_SETS:
        return f"the main effects and {len(pairs)} two-factor interactions"
    return f"the main effects, {listed(pairs)}" if len(pairs) > 1 else f"the main effects and {pairs[0]}"


def alias_text(design: Design) -> str:
    """The sets of effects that cannot be told apart, as equations."""
    shown = "; ".join(_equation(group) for group in design.alias_sets[:_MOST_SETS])
    more = len(design.alias_sets) - _MOST_SETS
    return f"{shown}; and {counted(more, 'set')} more" if more > 0 else shown


def _what(design: Design) -> str:
    factors = ", ".join(str(factor) for factor in design.factors)
    if design.kind == "fractional":
        share = f"1/{design.combinations // len(design.treatments)}"
        resolution = ROMAN.get(design.resolution or 0, design.resolution)
        return f"{share} of the full factorial of {factors}, resolution {resolution}"
    return f"{_KINDS.get(design.kind, 'a design of').format(combinations=design.combinations)} {factors}"


def _bias(design: Design) -> list[str]:
    """What interactions outside the model do to the estimates, beyond the aliases that are named already."""
    told = {effect for group in design.alias_sets for effect, _ in group}.union(design.estimated)
    left = [effect_name(effect) for effect in design.effects if effect not in told]
    if not left:
        return []
    table = design.alias_matrix[left]
    what = counted(table.shape[1], "two-factor interaction")
    sizes = np.abs(table.to_numpy()).round(9)  # so that rounding does not choose among equals
    if not sizes.any():
        return [f"Not estimated, and no matter to what is: {what}."]
    row, column = divmod(int(sizes.argmax()), sizes.shape[1])
    worst = f"{table.columns[column]} that of {table.index[row]}"
    moves = f"One that is not moves an estimate by up to {sizes.max():.2f} of its size ({worst})."
    lines = [f"Taken to be zero: {what}. {moves}"]
    if design.kind == "screening":
        lines.append("A step from one end to the other is free of them; steps to and from the middle are not.")
    return lines


def _equation(group: tuple[tuple[Effect, int], ...]) -> str:
    return " = ".join(("" if sign > 0 else "−") + effect_name(effect) for effect, sign in group)
