"""Philox4x32-10: known answers, and that every place has a counter of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homeostat.kernels import philox_cpu, philox_reference
from homeostat.kernels.philox_reference import words

KNOWN = [  # Random123's kat_vectors: counter, key, output
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def integers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_reference_gives_the_known_answers(counter, key, output):
    assert list(philox_reference.philox(*integers(counter), *integers(key))) == integers(output)
    tensors = [torch.tensor([word, 0]) for word in integers(counter)]
    assert [int(word[0]) for word in philox_reference.philox(*tensors, *integers(key))] == integers(output)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_compiled_function_gives_the_known_answers(counter, key, output):
    given = [np.uint64(word) for word in integers(counter) + integers(key)]
    assert list(philox_cpu.philox(*given)) == integers(output)


def by_definition(seed: list[int], n: int, e: int) -> int:
    """The word of one place, from the definition in philox_reference's docstring, in Python's own integers."""
    key, stream = (value % 2**64 for value in seed)
    c = [e % 2**32, e // 2**32, n // 4, stream % 2**32]
    k0, k1 = key % 2**32, key // 2**32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 // 2**32 ^ c[1] ^ k0, p1 % 2**32, p0 // 2**32 ^ c[3] ^ k1, p0 % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c[n % 4]


@pytest.mark.parametrize("example", [0, 1, 6, 2**33 + 3, 2**34 - 5])
@pytest.mark.parametrize("position", [0, 5, 2**32 - 2, 2**40 + 1, 2**62])
@pytest.mark.parametrize("seed", [[0, 0], [2**63 - 1, 2**32 - 1], [-1, -7]])
def test_words_stand_at_their_places_in_both_halves_of_the_counter(example, position, seed):
    block = words(torch.tensor(seed), 5, 4, example, position)
    assert block.tolist() == [[by_definition(seed, example + n, position + e) for e in range(4)] for n in range(5)]


@pytest.mark.parametrize(("examples", "positions"), [(0, 3), (3, 0), (1, 1), (9, 2)])
def test_words_of_any_size(examples, positions):
    assert words(torch.tensor([1, 2]), examples, positions, 3).shape == (examples, positions)


def test_neighboring_places_streams_and_keys_share_no_words():
    seeds = [[0, 0], [1, 0], [2**32, 0], [0, 1]]
    blocks = [words(torch.tensor(seed), 64, 64) for seed in seeds]
    assert len(torch.stack(blocks).unique()) > 4 * 64 * 64 - 10  # 16384 words of 2**32: 0.03 pairs are equal by chance
