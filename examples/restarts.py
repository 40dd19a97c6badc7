"""Many restarts on a non-convex loss: which start a network gets decides where it ends.

The loss of a network with a hidden layer has many minima.  Here the lowest is known: the data are
made by a network ("teacher") of three tanh units, a staircase of three steps without noise, and a
network of the same shape ("student") learns from them, so a loss of 0 is possible.  But from most
starts L-BFGS ends elsewhere: one unit makes a step of its own, say, while the others draw a slope
through the rest, and nothing nearby is better.  The remedy is to start more than once and keep the
best: ``n_restarts``.

If a start is good with probability q, at least one of k is with probability ``1 - (1 - q)^k``.

Without a hidden layer the loss is convex, and all starts end in the same minimum.

The picture shows how the final losses are distributed, the teacher with the best and a bad student,
and the probability of success with the number of restarts.

Needs ``pip install "fastmlp[examples]"``; writes restarts.png.  Run it with ``--tiny`` for a
shortened version.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from threadpoolctl import threadpool_limits

from fastmlp import MLPRegressor

TINY = "--tiny" in sys.argv
N_RESTARTS = 20 if TINY else 150
GOOD = 1e-3
X = np.linspace(-3, 3, 100)[:, None]


def teacher(X):
    """Three tanh units: a staircase from -1.5 to 1.5."""
    return (np.tanh(6 * X + 12) + np.tanh(6 * X) + np.tanh(6 * X - 12)) / 2


def student(random_state=0, **settings):
    settings = {"hidden_layer_sizes": (3,), "random_state": random_state} | settings
    return MLPRegressor(
        activation="tanh", solver="lbfgs", alpha=0, tol=1e-9, max_iter=300, **settings
    )  # fmt: skip


def one_minimum(y):
    """Without hidden layer: every start ends where scikit-learn's linear regression does."""
    model = student(hidden_layer_sizes=(), n_restarts=10).fit(X, y)
    residual = y - LinearRegression().fit(X, y).predict(X)
    lowest = (residual**2).mean() / 2
    print(f"no hidden layer: losses of 10 starts from {-model.restart_scores_.max():.6f} to "
          f"{-model.restart_scores_.min():.6f}; linear regression has {lowest:.6f}")  # fmt: skip
    np.testing.assert_allclose(-model.restart_scores_, lowest, rtol=1e-6)


def many_minima(y):
    model = student(n_restarts=N_RESTARTS).fit(X, y)
    losses = -model.restart_scores_
    assert model.loss_ == losses.min() < GOOD
    kept = ((model.predict(X) - y) ** 2).mean() / 2
    np.testing.assert_allclose(kept, model.loss_, rtol=1e-6)
    q = (losses < GOOD).mean()
    print(f"three units: of {N_RESTARTS} starts {q:.0%} end below {GOOD}, the best at "
          f"{losses.min():.1e}, the median at {np.median(losses):.1e}")  # fmt: skip
    assert 0 < q < 1
    return model, losses, q


def a_bad_student(y):
    """The worst of a few single runs."""
    students = [student(seed).fit(X, y) for seed in range(5 if TINY else 10)]
    return max(students, key=lambda model: model.loss_)


def success(losses, k, rng):
    """Share of draws of k runs, with replacement, in which one is good."""
    return (rng.choice(losses, size=(4000, k)).min(axis=1) < GOOD).mean()


def draw(y, best, bad, losses, q):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    left.hist(np.log10(losses + 1e-12), bins=40)
    left.axvline(np.log10(GOOD), color="black", linestyle="--")
    left.set(xlabel="log10 of the final loss", ylabel="number of starts")
    middle.plot(X, y, color="0.7", linewidth=5, label="teacher")
    middle.plot(X, best.predict(X), label=f"best student, {best.loss_:.0e}")
    middle.plot(X, bad.predict(X), "--", label=f"a bad one, {bad.loss_:.0e}")
    middle.set(xlabel="x", ylabel="y", ylim=(-1.8, 2.4))
    middle.legend(fontsize=8, loc="upper left")
    ks = np.arange(1, 21)
    rng = np.random.default_rng(0)
    drawn = np.array([success(losses, k, rng) for k in ks])
    np.testing.assert_allclose(drawn, 1 - (1 - q) ** ks, atol=0.04)
    right.plot(ks, 1 - (1 - q) ** ks, label="$1 - (1 - q)^k$")
    right.plot(ks, drawn, "o", markersize=4, label="draws from the runs")
    right.set(xlabel="restarts k", ylabel="probability of a good one", ylim=(0, 1.05))
    right.legend(fontsize=8)
    figure.savefig("restarts.png", dpi=110)
    enough = int(np.ceil(np.log(0.01) / np.log(1 - q)))
    print(f"{enough} starts are enough for a good one with probability 0.99; see restarts.png")


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)  # runs that creep along are cut off
    plt.style.use("tableau-colorblind10")
    y = teacher(X[:, 0])
    with threadpool_limits(1):  # SciPy's L-BFGS has BLAS wake threads for a handful of numbers
        one_minimum(y)
        best, losses, q = many_minima(y)
        bad = a_bad_student(y)
    draw(y, best, bad, losses, q)


if __name__ == "__main__":
    main()
