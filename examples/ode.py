"""A fitted network inside compiled code: the right-hand side of an ODE.

A damped pendulum moves by

    d angle / dt = speed,      d speed / dt = -sin(angle) - 0.2 speed.

A network learns this right-hand side from random states and their derivatives, and then takes its
place in an integrator (Runge-Kutta of order 4) that Numba compiles.  The integrator calls it tens
of thousands of times with one state each.  `predict` would do, but is made for many rows: each call
checks its input, and returns to Python.  `jit_predictor` turns the network into a function that
compiled code can call.

The picture shows, on the left, where the states go in time, by SciPy's solution of the true
equations and by the network's; on the right, how far the two are apart.

Needs ``pip install "fastmlp[examples]"``; writes ode.png.  Run it with ``--tiny`` for a shortened
version.
"""

import sys
import time
import warnings

import matplotlib.pyplot as plt
import numba
import numpy as np
from scipy.integrate import solve_ivp
from sklearn.exceptions import ConvergenceWarning

from fastmlp import MLPRegressor, jit_predictor

TINY = "--tiny" in sys.argv
DAMPING = 0.2
STEP, END = 0.02, 20.0
STARTS = np.array([[2.5, 0.0], [-2.0, 1.0], [-1.0, 1.2]])


def pendulum(t, state):
    angle, speed = state
    return [speed, -np.sin(angle) - DAMPING * speed]


def learn(n_samples, n_iter):
    """A network from states in ``[-3.2, 3.2]^2`` to their derivatives."""
    rng = np.random.default_rng(0)
    states = rng.uniform(-3.2, 3.2, (n_samples, 2))
    derivatives = np.array(pendulum(0, states.T)).T
    return MLPRegressor(
        hidden_layer_sizes=(32, 32),
        activation="tanh",
        learning_rate="cosine",
        learning_rate_init=0.01,
        alpha=0,
        max_iter=n_iter,
        n_iter_no_change=np.inf,
        random_state=0,
    ).fit(states, derivatives)


def make_integrator(rhs):
    @numba.njit
    def integrate(state, step, n_steps):
        """States at all times, shape (n_steps + 1, 2)."""
        states = np.empty((n_steps + 1, 2))
        states[0] = state
        for i in range(n_steps):
            k1 = rhs(states[i])
            k2 = rhs(states[i] + step / 2 * k1)
            k3 = rhs(states[i] + step / 2 * k2)
            k4 = rhs(states[i] + step * k3)
            states[i + 1] = states[i] + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return states

    return integrate


def truth(start, times):
    """The pendulum itself, to ten digits."""
    return solve_ivp(
        pendulum, (0, times[-1]), start, "DOP853", t_eval=times, rtol=1e-10, atol=1e-12
    ).y.T  # fmt: skip


def compare_times(model, integrate):
    """Time of one call within compiled code, and of `predict`."""
    n_steps = 2_000 if TINY else 20_000
    start = time.perf_counter()
    integrate(STARTS[0], STEP, n_steps)
    inside = (time.perf_counter() - start) / (4 * n_steps)
    state = STARTS[:1]
    start = time.perf_counter()
    for _ in range(n_steps // 20):
        model.predict(state)
    outside = (time.perf_counter() - start) / (n_steps // 20)
    print(f"one call: {inside * 1e6:.2f} microseconds in compiled code, integration included, "
          f"{outside * 1e6:.1f} by predict")  # fmt: skip
    assert inside < outside


def draw(times, true, found):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    for i, (expected, states) in enumerate(zip(true, found, strict=True)):
        left.plot(*expected.T, color=f"C{i}", linewidth=5, alpha=0.35)
        left.plot(*states.T, color=f"C{i}", linewidth=1)
        left.plot(*expected[0], "o", color=f"C{i}")
        distance = np.linalg.norm(states - expected, axis=1)[1:]
        right.plot(times[1:], distance, color=f"C{i}", label=f"from {STARTS[i].tolist()}")
    left.set(xlabel="angle", ylabel="speed", title="pale: pendulum, thin: network")
    right.set(xlabel="time", ylabel="distance of the two", yscale="log")
    right.legend()
    figure.savefig("ode.png", dpi=110)


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)  # the schedule says when to end
    plt.style.use("tableau-colorblind10")
    model = learn(n_samples=2_000 if TINY else 10_000, n_iter=50 if TINY else 300)
    rhs = jit_predictor(model)
    np.testing.assert_allclose(rhs(STARTS[0]), model.predict(STARTS[:1])[0], rtol=1e-12)
    integrate = make_integrator(rhs)

    n_steps = round(END / STEP)
    times = STEP * np.arange(n_steps + 1)
    true = [truth(start, times) for start in STARTS]
    in_python = make_integrator(lambda state: np.array(pendulum(0, state))).py_func
    error = np.abs(in_python(STARTS[0], STEP, n_steps) - true[0]).max()
    print(f"the integrator with the true equations: off by {error:.0e}")
    assert error < 1e-5

    found = [integrate(start, STEP, n_steps) for start in STARTS]
    apart = max(np.abs(a - b).max() for a, b in zip(true, found, strict=True))
    print(f"with the network: off by at most {apart:.3f} up to time {END:.0f}")
    assert apart < (1 if TINY else 0.05)
    compare_times(model, integrate)
    draw(times, true, found)
    print("see ode.png")


if __name__ == "__main__":
    main()
