"""Random numbers begin where scikit-learn's begin."""

import pickle

import numpy as np
import pytest
from sklearn.utils import check_random_state as theirs

from fastmlp._sklearn import check_random_state as ours


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, np.int64(3)])
def test_same_numbers_and_state(seed):
    first, second = ours(seed), theirs(seed)
    np.testing.assert_array_equal(first.normal(size=7), second.normal(size=7))
    np.testing.assert_array_equal(first.permutation(1000), second.permutation(1000))
    for mine, other in zip(first.get_state(), second.get_state(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_instances_and_none():
    state = np.random.RandomState(0)
    assert ours(state) is state
    assert ours(None) is theirs(None)


@pytest.mark.parametrize("seed", [-1, 2**32, "0", 1.5])
def test_wrong_seeds(seed):
    for check in (ours, theirs):
        with pytest.raises(ValueError):  # noqa: PT011
            check(seed)


def test_pickles_hold_nothing_of_fastmlp():
    state = ours(3)
    state.random_sample(5)
    pickled = pickle.dumps(state)
    assert b"fastmlp" not in pickled
    np.testing.assert_array_equal(pickle.loads(pickled).random_sample(9), state.random_sample(9))
