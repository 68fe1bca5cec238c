"""Nested factors: there where their parent has its level, and left out elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pytest

from homeostat.errors import InvalidValue
from homeostat.study.design import Design, full_factorial, make_design, optimal_design
from homeostat.study.factors import as_factors

FACTORS = [
    "dropout=off,on",
    "rate=0.1,0.3,0.5 @ dropout=on",
    "norm=none,batch,layer",
    "eps=1,2 @ norm=batch",
    "clip=0,1",
]


@pytest.fixture(scope="module", params=["full", "optimal"])
def design(request: pytest.FixtureRequest) -> Design:
    found = make_design(FACTORS, 2, request.param)
    assert found.kind == request.param
    return found


def test_a_nested_factor_is_in_a_treatment_where_its_parent_has_its_level(design: Design) -> None:
    for treatment in design.treatments.index:
        config = design.config(treatment)
        assert ("rate" in config) == (config["dropout"] == "on")
        assert ("eps" in config) == (config["norm"] == "batch")
        assert design.find(config) == treatment
        assert design.find({"rate": 0.1, "eps": 2} | config) == treatment  # what is absent does not matter
    assert design.config(0) == design.base == {"dropout": "off", "norm": "none", "clip": 0}


def test_combinations_count_what_differs(design: Design) -> None:
    assert design.combinations == (1 + 3) * (1 + 2 + 1) * 2
    assert len(full_factorial(FACTORS).treatments) == design.combinations
    assert len({tuple(row) for row in design.treatments.to_numpy().tolist()}) == len(design.treatments)


def test_no_effect_is_of_a_nested_factor_with_its_parent(design: Design) -> None:
    assert ("dropout", "rate") not in design.effects
    assert ("norm", "eps") not in design.effects
    assert {("rate", "norm"), ("rate", "eps"), ("dropout", "norm"), ("eps", "clip")} <= set(design.effects)
    assert design.d_efficiency > 0


def test_factors_nested_in_different_levels_of_one_never_meet() -> None:
    factors = ["opt=sgd,adam", "momentum=0,0.9 @ opt=sgd", "beta=0.9,0.99 @ opt=adam", "decay=0,1 @ opt=adam"]
    design = full_factorial(factors)
    assert ("momentum", "beta") not in design.effects
    assert ("beta", "decay") in design.effects
    assert design.base == {"opt": "sgd", "momentum": 0}
    assert design.combinations == 2 + 2 * 2
    with pytest.raises(InvalidValue, match="varied together"):
        optimal_design([*factors, "x=0,1", "y=0,1"], interactions=["momentum:beta"])


def test_effects_are_what_they_are_called() -> None:
    """A nested step counts within its parent's level, and the parent against the average of what is nested."""
    design = full_factorial(["dropout=off,on", "rate=0.1,0.3,0.5 @ dropout=on", "clip=0,1"], 1)
    value = {0.1: 1.0, 0.3: 2.0, 0.5: 6.0, None: 0.0}
    y = np.array(
        [value[design.config(t).get("rate")] + 10.0 * design.config(t)["clip"] for t in design.treatments.index]
    )
    blocks = [np.ones((len(y), 1)), *(design.columns((factor.name,)) for factor in design.factors)]
    found = np.linalg.lstsq(np.hstack(blocks), y, rcond=None)[0]
    assert 2 * found[1] == pytest.approx((1.0 + 2.0 + 6.0) / 3)
    assert found[2:4] - design.factors[1].coding[0] @ found[2:4] == pytest.approx([1.0, 5.0])
    assert 2 * found[4] == pytest.approx(10.0)


def test_a_nested_design_survives_json_and_says_what_is_nested(design: Design) -> None:
    back = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    assert back.to_dict() == design.to_dict()
    assert back.factors == design.factors
    assert back.describe() == design.describe()
    assert "rate (0.1, 0.3, 0.5 where dropout is on)" in design.describe()
    assert [back.config(t) for t in back.treatments.index] == [design.config(t) for t in design.treatments.index]


def test_data_that_has_a_level_where_the_factor_is_absent_is_refused(design: Design) -> None:
    data = design.to_dict()
    for wrong in (["off", 0.1, "none", None, 0], ["on", None, "none", None, 0]):
        with pytest.raises(InvalidValue, match="each treatment"):
            Design.from_dict(data | {"treatments": [wrong]})


def test_a_nested_factor_is_planned_by_the_command_line_text() -> None:
    assert as_factors(FACTORS)[1].within == ("dropout", "on")
