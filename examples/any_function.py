"""A study of any function of (config, seed): nothing here is a neural network.

python examples/any_function.py
"""

from typing import Any

import homeostat as hs
from homeostat import seeds


def objective(config: dict[str, Any], seed: int) -> dict[str, float]:
    """How well a robust mean finds the center of 50 values of which some are wild."""
    generator = seeds.numpy_generator(seed, "values")  # the same values for every treatment: paired comparisons
    values = generator.normal(0.0, 1.0, 50)
    values[: config["wild"]] += 20.0
    center = sorted(values)[25] if config["center"] == "median" else values.mean()
    return {"error": abs(float(center))}


if __name__ == "__main__":
    study = hs.Study(
        objective,
        factors={"center": ["mean", "median"], "wild": [0, 5]},
        seeds=20,
        response="error",
        goal="minimize",
        directory="studies/any-function",
    )
    result = study.run()
    print(result.analysis.summary)
    print(result.analysis.effects[["label", "estimate", "low", "high", "verdict"]])
    print("Report:", result.report)
