"""An objective of microseconds, in a module that workers import in no time."""

import numpy as np

FACTORS = {"norm": ["none", "batch"], "dropout": [0, 0.5]}


def measured(config, seed):
    """Batch normalization helps by 0.05, dropout by nothing; a trial varies by 0.005."""
    code = [seed + 100, int(config["norm"] == "batch"), int(10 * config["dropout"])]
    noise = np.random.default_rng(code).normal(0, 0.005)
    block = np.random.default_rng(seed).normal(0, 0.02)
    score = 0.8 + 0.05 * (config["norm"] == "batch") + block + noise
    return {"valid_accuracy": score, "test_accuracy": score - 0.01}
