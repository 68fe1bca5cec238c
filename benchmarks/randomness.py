"""Whether the draws behind dropout behave like random numbers: the stream as layers and steps use it, under tests.

Every part of the stream is the mask of one call for a batch 64×64×32×32: the words of its places, in their order,
under a seed drawn by `draw_seed`; a new call, like a new layer or a new step, has a new seed.

1. Equal frequencies, and independence of neighbors: examples, positions, stream numbers, keys, calls (chi-square).
2. The tests of SP 800-22 that nistrng computes soundly, on masks at p = 1/2; numpy's PCG64 beside them.
3. dieharder, where it is installed, on the words as they come, as many as each test asks for.

python benchmarks/randomness.py (about three minutes on two cores)
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import IO

import nistrng
import numpy as np
import torch
from numba import njit
from scipy import stats

from homeostat import environment
from homeostat.kernels.dropout import draw_seed, dropout
from homeostat.kernels.philox_cpu import HALF, LOW, philox
from homeostat.kernels.philox_reference import words

SEED = 0
EXAMPLES, POSITIONS = 64, 64 * 32 * 32

BITS = 1 << 17
SEQUENCES = 40
TESTS = (  # the others of nistrng 1.2.3 fail, or pass with p near 1, whatever the generator
    "monobit", "frequency_within_block", "runs", "longest_run_ones_in_a_block", "binary_matrix_rank", "dft", "serial",
    "approximate_entropy", "cumulative sums",
)  # fmt: skip
FEW = {"serial": 15, "approximate_entropy": 15}  # sequences for tests that take seconds each

DIEHARDER = (0, 2, 3, 8, 10, 11, 12, 13, 15, 16, 100, 101, 205, 206, 207, 208, 209)  # what fits into a few minutes
FIELDS = ("test_name", "ntuple", "tsamples", "psamples", "pvalues", "assessment")


def main() -> None:
    started = time.perf_counter()
    print(", ".join(f"{name} {value}" for name, value in environment.describe().items()))
    print(f"nistrng {version('nistrng')}, torch.manual_seed({SEED})")
    torch.manual_seed(SEED)
    torch.testing.assert_close(  # the fast loop below draws what dropout draws
        torch.from_numpy(call_words(torch.tensor([3, 4]), 8, 16).astype(np.int64)), words(torch.tensor([3, 4]), 8, 16)
    )
    print("\n| equal frequencies and independence | words | p-value |\n|---|---|---|")
    for name, count, p in frequencies():
        print(f"| {name} | {count:,} | {p:.3f} |")
    print(
        f"\n| SP 800-22 test, {BITS:,} bits a sequence | passed | uniform p-values | PCG64 passed |\n|---|---|---|---|"
    )
    for row in sp800_22():
        print("| " + " | ".join(row) + " |")
    if shutil.which("dieharder"):
        print("\n| dieharder test | ntuple | samples | p-values | p-value of these | |\n|---|---|---|---|---|---|")
        for row in dieharder():
            print("| " + " | ".join(row) + " |")
    else:
        print("\ndieharder is not installed.")
    print(f"\n{time.perf_counter() - started:.0f} s")


@njit
def _fill(out, key, stream, example, position):
    """The words of places (example + n, position + e), examples in fours."""
    k0, k1 = key & LOW, key >> HALF
    for quad in range(out.shape[0] // 4):
        w0, w1, w2, w3 = out[4 * quad], out[4 * quad + 1], out[4 * quad + 2], out[4 * quad + 3]
        for i in range(out.shape[1]):
            e = np.uint64(position + i)
            r0, r1, r2, r3 = philox(e, e >> HALF, np.uint64(example // 4 + quad), stream, k0, k1)
            w0[i], w1[i], w2[i], w3[i] = np.uint32(r0), np.uint32(r1), np.uint32(r2), np.uint32(r3)


def call_words(seed: torch.Tensor, examples: int = EXAMPLES, positions: int = POSITIONS) -> np.ndarray:
    """The words of one call, shape (examples, positions)."""
    out = np.empty((examples, positions), np.uint32)
    _fill(out, np.uint64(int(seed[0])), np.uint64(int(seed[1])) & LOW, 0, 0)
    return out


def frequencies() -> Iterator[tuple[str, int, float]]:
    """Name, number of words and p-value of each check of counts."""
    seed = draw_seed()
    first = call_words(seed)
    for name, part in (("upper", first >> 16), ("lower", first & 0xFFFF)):
        counts = np.bincount(part.ravel(), minlength=1 << 16)
        yield f"{name} 16 bits are uniform", first.size, stats.chisquare(counts).pvalue
    neighbors = {
        "next example (another word of the counter)": (first[:-1], first[1:]),
        "fourth next example (next counter)": (first[:-4], first[4:]),
        "next position": (first[:, :-1], first[:, 1:]),
        "position 32 further (next row of the map)": (first[:, :-32], first[:, 32:]),
        "position 1,024 further (next channel)": (first[:, :-1024], first[:, 1024:]),
        "next number of the stream": (first, call_words(seed + torch.tensor([0, 1]))),
        "next key": (first, call_words(seed + torch.tensor([1, 0]))),
        "next call (another layer or step)": (first, call_words(draw_seed())),
    }
    for name, (one, other) in neighbors.items():
        pairs = (one >> 24).ravel().astype(np.int64) << 8 | (other >> 24).ravel()
        counts = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
        yield f"independent of the {name}", one.size, stats.chi2_contingency(counts, correction=False).pvalue


def sp800_22() -> Iterator[tuple[str, str, str, str]]:
    """Per test: how many sequences passed at the 1 % level, the p-value of uniform p-values, and PCG64's passes."""
    control = np.random.default_rng(SEED)
    masks = [
        (dropout(torch.ones(4, BITS), draw_seed(), 0.5, 2, 0, 0, None) != 0).flatten() for _ in range(SEQUENCES // 4)
    ]
    ours = torch.cat(masks).reshape(SEQUENCES, BITS).numpy().astype(np.int64)
    theirs = control.integers(0, 2, (SEQUENCES, BITS))
    for name in TESTS:
        count = FEW.get(name, SEQUENCES)
        mine, others = ([_p_value(name, bits) for bits in sequences[:count]] for sequences in (ours, theirs[:10]))
        uniform = stats.kstest(mine, "uniform").pvalue
        yield name, _passed(mine), f"{uniform:.3f}", _passed(others)


def _p_value(name: str, bits: np.ndarray) -> float:
    # a copy: some tests write to their input
    result, _ = nistrng.run_by_name_battery(name, bits.copy(), nistrng.SP800_22R1A_BATTERY)
    return float(result.score)


def _passed(values: list[float]) -> str:
    return f"{sum(value >= 0.01 for value in values)} of {len(values)}"


def dieharder() -> Iterator[list[str]]:
    """The fields of dieharder's results, test after test; each test has a generator of seeds of its own.

    -g 200 reads binary words from a pipe; with -Y 1 a weak result is followed by more p-values until it is clear.
    """
    for test in DIEHARDER:
        shown = [word for name in FIELDS for word in ("-D", name)]
        command = ["dieharder", "-d", str(test), "-g", "200", "-Y", "1", "-c", "|", *shown]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        feed(process.stdin, torch.Generator().manual_seed(test))
        lines = process.communicate()[0].decode().splitlines()
        yield from ([field.strip() for field in line.split("|")] for line in lines if line.strip())


def feed(pipe: IO[bytes], generator: torch.Generator) -> None:
    """Words to a process, call after call, until it has had enough."""
    with contextlib.suppress(BrokenPipeError):
        while True:
            left = memoryview(call_words(draw_seed(generator))).cast("B")
            while left:
                left = left[pipe.write(left) :]


if __name__ == "__main__":
    main()
