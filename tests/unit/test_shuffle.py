"""The compiled shuffle is NumPy's: same numbers, same state afterwards."""

import numpy as np
import pytest

from fastmlp.training.shuffle import Shuffler


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 1000, 70_000])
@pytest.mark.parametrize("seed", [0, 12345])
def test_shuffle_is_numpys(n, seed):
    ours, theirs = np.random.RandomState(seed), np.random.RandomState(seed)
    theirs.normal()  # leaves a cached Gaussian behind
    ours.normal()
    mine, expected = np.arange(n), np.arange(n)
    shuffle = Shuffler(mine, ours)
    for _ in range(3):
        shuffle()
        theirs.shuffle(expected)
        np.testing.assert_array_equal(mine, expected)
    assert ours.normal() == theirs.normal()
    assert ours.randint(1 << 30) == theirs.randint(1 << 30)


def test_other_bit_generators():
    ours = np.random.RandomState(np.random.PCG64(3))
    theirs = np.random.RandomState(np.random.PCG64(3))
    mine, expected = np.arange(999), np.arange(999)
    Shuffler(mine, ours)()
    theirs.shuffle(expected)
    np.testing.assert_array_equal(mine, expected)
