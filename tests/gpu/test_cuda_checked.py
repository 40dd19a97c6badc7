"""The CUDA kernels in emulators that look closer, and what these must find (see `checked`)."""

import numpy as np
import pytest
from checked import CachedDevice
from simt import Fault
from test_cuda import SCHEDULES, emulated, largest, path, plant, train  # noqa: F401

from fastmlp.engine.cuda import paths, resident

# --- what blocks see of each other's writes ----------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_see_each_others_writes(path, schedule):  # noqa: F811
    expected = train(emulated(path), "log_loss", "adam")
    got = train(emulated(path, schedule, kind=CachedDevice), "log_loss", "adam")
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


UNORDERED = {
    "nothing is released": ("add_release(barrier", "add_relaxed(barrier"),
    "nothing is acquired": ("load_acquire(barrier", "load_relaxed(barrier"),
}


@pytest.mark.parametrize("bug", UNORDERED)
def test_a_barrier_that_does_not_order_memory_is_found(bug, monkeypatch):
    """Not where all see the same memory."""
    expected = train(emulated("resident"), "log_loss", "adam")[1]
    mutant = plant(resident, *UNORDERED[bug])
    monkeypatch.setattr(paths, "resident", mutant)
    np.testing.assert_array_equal(train(emulated("resident"), "log_loss", "adam")[1], expected)
    for schedule in SCHEDULES:
        try:
            got = train(emulated("resident", schedule, kind=CachedDevice), "log_loss", "adam")[1]
        except Fault:
            continue
        assert largest(got - expected) > 1e-6
