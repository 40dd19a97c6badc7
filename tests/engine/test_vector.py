"""Elementary functions against mpmath, and their behaviour at the ends of the range."""

import mpmath
import numpy as np
import pytest
from numba import njit

from fastmlp.engine.cpu.kernels.vector import PRIMITIVES, square_root

ULP = {"float32": 2, "float64": 4}
rng = np.random.default_rng(0)
POINTS = {
    "exp": np.concatenate(
        [rng.uniform(-110, 92, 1000), rng.uniform(-750, 712, 1000), rng.normal(size=500) * 1e-3]
    ),
    "log": np.concatenate([np.exp(rng.uniform(-100, 88, 1000)), 1 + rng.normal(size=500) * 1e-3]),
    "log1p": np.concatenate(
        [rng.uniform(0, 1, 1000), 10 ** rng.uniform(-20, 10, 500), -rng.uniform(0, 0.999, 500)]
    ),
    "tanh": np.concatenate([3 * rng.normal(size=1000), 1e-4 * rng.normal(size=500)]),
}


def compiled(name):
    function = PRIMITIVES.get(name, square_root)

    @njit(error_model="numpy")
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    def apply(x):
        out = np.empty_like(x)
        loop(x, out)
        return out

    return apply


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_accuracy(name, dtype):
    """Every length of the loop's tail is visited, so vector and scalar code are both checked."""
    with np.errstate(over="ignore"):
        x = POINTS[name].astype(dtype)
    largest = float(np.finfo(dtype).max)
    worst = 0.0
    with mpmath.workprec(160):
        for value, got in zip(x, compiled(name)(x), strict=True):
            exact = getattr(mpmath, name)(mpmath.mpf(float(value)))
            if abs(exact) > largest:
                assert got == np.inf
                continue
            with np.errstate(over="ignore"):
                spacing = np.spacing(np.abs(np.dtype(dtype).type(float(exact))))
            worst = max(worst, float(abs(mpmath.mpf(float(got)) - exact) / float(spacing)))
    assert worst <= ULP[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_limits_are_numpys(name, dtype):
    smallest = np.finfo(dtype).smallest_subnormal
    x = np.array([0, np.inf, -np.inf, np.nan, smallest, -smallest, 1, -1, -2, 1e30, -1e30], dtype)
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(x)
    np.testing.assert_allclose(compiled(name)(x), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_underflows_gradually(dtype):
    """Results below the smallest normal number are rounded once, not flushed to zero."""
    tiny = np.finfo(dtype)
    x = np.log(np.float64(tiny.smallest_subnormal)) + np.linspace(-1, 12, 200)
    x = x.astype(dtype)
    got = compiled("exp")(x)
    expected = np.array([float(mpmath.exp(mpmath.mpf(float(v)))) for v in x]).astype(dtype)
    assert np.abs(got - expected).max() <= tiny.smallest_subnormal * 2
    assert 0 < got[60] < tiny.tiny


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_square_root(dtype):
    limits = np.finfo(dtype)
    decades = rng.uniform(np.log10(limits.tiny), np.log10(limits.max), 5000)
    x = np.concatenate([10.0**decades, rng.uniform(1, 4, 5000), [limits.tiny, limits.max]])
    x = np.append(x, np.arange(1, 200) ** 2).astype(dtype)
    got = compiled("sqrt")(x)
    with mpmath.workprec(160):
        for value, root in zip(x, got, strict=True):
            exact = mpmath.sqrt(mpmath.mpf(float(value)))
            assert abs(mpmath.mpf(float(root)) - exact) <= float(np.spacing(root))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_limits_of_the_square_root(dtype):
    x = np.array([0, np.inf, np.nan, np.finfo(dtype).smallest_subnormal], dtype)
    *roots, small = compiled("sqrt")(x)
    np.testing.assert_array_equal(roots, [0, np.inf, np.nan])
    assert 0 <= small < np.sqrt(np.finfo(dtype).tiny)
