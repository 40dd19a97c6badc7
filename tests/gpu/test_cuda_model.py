"""The model of a training step's time (bench/cuda_model.py); needs the ``cuda-ci`` extra."""

import statistics
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from gate import find_tools

from fastmlp.engine.cuda import launcher

pytestmark = [
    pytest.mark.gate,
    pytest.mark.skipif(
        None in find_tools().values(),
        reason="the CUDA compile gate needs the cuda-ci extra: pip install -e '.[test,cuda-ci]'",
    ),
]


@pytest.fixture(scope="module")
def model():
    former = sys.path[:]
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    import cuda_model

    yield cuda_model
    sys.path[:] = former


def errors(model):
    """Of the steps that the model was not fitted to, of products as they are."""
    return [model.error(cell) for cell in model.measured() if cell.is_unseen]


def test_the_model_knows_what_steps_take(model):
    found = errors(model)
    assert len(found) > 20
    assert statistics.median(found) < 1.2
    assert max(found) < 1.6


def test_steps_of_former_code_are_not_compared(model):
    """Those in bfloat16 of the reports, and on the resident path; others, and today's, count."""
    found = {(cell.code, cell.is_comparable) for cell in model.measured()}
    former = {("medium", False), ("resident", False)}
    assert found == {("highest", True), ("high", True), *former}
    for code, _ in former:
        cell = next(cell for cell in model.measured() if cell.code == code)
        assert cell._replace(generation=model.GENERATIONS[code]).is_comparable


def test_wide_networks_in_bfloat16(model):
    """By the mark for an H100, and no faster than its tensor cores are with mma.sync."""
    name, batch, precision = model.WIDE
    widths, machine = model.GPU.networks[name], model.measured()[0].machine
    us = model.step_us(widths, batch, precision, machine, model.CALIBRATED)
    n_products = 3 * len(widths) - 4
    tflops = 2e-6 * n_products * batch * widths[0] * widths[1] / us
    assert us <= 14000
    peak = 4096e-6 * model.MULTIPROCESSORS * model.CYCLES_PER_US
    assert tflops < 0.63 * peak


def test_row_tiles_are_better_than_the_tiled_path(model):
    """For what takes them, in batches of many rows."""
    machine, tiled = model.measured()[0].machine, model.SIZES._replace(rows=())
    for network, batch in product(model.NARROW, model.GPU.batches[2:]):
        widths = model.GPU.networks[network]
        template = model.launches_of_step(widths, batch, "highest")[0].kernel[0]
        assert template is model.resident.resident_epoch
        ours, theirs = (
            model.step_us(widths, batch, "highest", machine, model.CALIBRATED, sizes)
            for sizes in (model.SIZES, tiled)
        )
        assert ours < 0.6 * theirs


def test_slower_code_makes_slower_steps(model, monkeypatch):
    """Each instruction of a loop twice: the model is off as far as no code here is."""
    errors(model)  # compiles
    slower = {
        key: code._replace(n=2 * code.n, loops=[twice(body) for body in code.loops])
        for key, code in model._codes.items()
    }
    monkeypatch.setattr(model, "_codes", slower)
    assert statistics.median(errors(model)) > 1.4


def twice(body):
    """The same arithmetic, loads and stores among twice as many instructions."""
    return body + Counter({"NOP": sum(body.values())})


def test_no_launch_is_too_small(model):
    for precision in model.PRECISIONS:
        assert not model.too_small(precision)


@pytest.mark.parametrize("share", [0, 0.2])
def test_launches_that_are_too_small_are_found(model, share, monkeypatch):
    """Where large tiles are taken although they make few blocks."""
    monkeypatch.setattr(launcher, "_BUSY_SHARE", share)
    model.launches_of_step.cache_clear()
    found = model.too_small("highest")
    model.launches_of_step.cache_clear()
    assert found


def test_the_constants_are_those_that_fit_best(model):
    fitted = model.calibrate(model.measured())
    np.testing.assert_allclose(fitted, model.CALIBRATED, rtol=0.1)
