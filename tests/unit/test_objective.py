"""What training minimises: constants, soft targets, and targets that a loss refuses."""

import numpy as np
import pytest

from fastmlp.functions import LOSSES, Loss
from fastmlp.objective import Objective


def test_constants_and_divisor():
    assert Objective("huber", 2, (1.5, 2.0)).constant_per_output == (1.5, 2.0)
    assert Objective("log_loss", 3).constant_per_output == (0.0, 0.0, 0.0)
    assert Objective("absolute_error", 3).divisor == 1
    mean = LOSSES["absolute_error"]._replace(mean_over_outputs=True)
    assert Objective(mean, 3).divisor == 3


def test_soft_targets():
    classes = np.array([2, 0])
    hard = Objective("brier", 3).soft_targets(classes)
    np.testing.assert_array_equal(hard, [[0, 0, 1], [1, 0, 0]])
    soft = Objective("cross_entropy", 3, label_smoothing=0.3).soft_targets(classes)
    np.testing.assert_allclose(soft, [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    labels = np.array([[0.0, 1.0]])
    assert Objective("binary_log_loss", 2).soft_targets(labels) is labels
    soft = Objective("binary_log_loss", 2, label_smoothing=0.3).soft_targets(labels)
    np.testing.assert_allclose(soft, [[0.15, 0.85]])


def far_off(z, y):
    return z - y


@pytest.mark.parametrize(
    ("limits", "good", "bad", "condition"),
    [({"least": 2}, [2, 5], [1.9, 5], ">= 2"), ({"above": -1}, [-0.9, 5], [-1, 5], "> -1")],
)
def test_targets_out_of_range(limits, good, bad, condition):
    objective = Objective(Loss(far_off, far_off, "identity", by_user=True, **limits), 1)
    objective.check_range(np.array(good))
    with pytest.raises(ValueError, match=rf"of the loss 'far_off': y must be {condition}\.$"):
        objective.check_range(np.array(bad))


def test_ranges_of_the_table():
    assert {name: (row.least, row.above) for name, row in LOSSES.items()
            if (row.least, row.above) != (None, None)} == {
        "poisson": (0, None), "gamma": (None, 0)
    }  # fmt: skip
