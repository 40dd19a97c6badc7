"""Gradient descent, momentum, RMSProp and Adam side by side.

With g the gradient and r the learning rate, a step is (operations on vectors are elementwise)

    gradient descent   w <- w - r g
    momentum           v <- m v - r g;  w <- w + v
    RMSProp            s <- q s + (1 - q) g^2
                       w <- w - r g / (sqrt(s) + e)
    Adam               v <- m v + (1 - m) g;  s <- q s + (1 - q) g^2
                       w <- w - r c v / (sqrt(s) + e)       c makes up for the start at v = s = 0

On the left of the picture they walk down a narrow valley: linear regression on one feature of small
scale, so that the loss, over weight and bias, is a quadratic with very different curvatures.
Gradient descent has to take a rate that the steep direction allows, swings across the valley, and
creeps along it; momentum gathers speed there; RMSProp and Adam give each direction a step of about
the same size, whatever its curvature.  The middle has the losses.  The paths are compared with the
four rules above, written in NumPy.

On the right they train a network on digits, each with the best of six learning rates.  With a rate
of its own no rule is hopeless; which one wins depends on the problem and on how long one trains.

Needs ``pip install "fastmlp[examples]"``; writes optimizers.png.  Run it with ``--tiny`` for a
shortened version.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from fastmlp import MLPClassifier, MLPRegressor

TINY = "--tiny" in sys.argv
STEPS = 60
EPOCHS = 5 if TINY else 30
START, LOWEST = np.array([-4.0, 0.0]), np.array([1.0, 2.0])  # weight and bias
SOLVERS = {
    "gradient descent": {"solver": "sgd", "momentum": 0},
    "momentum": {"solver": "sgd", "momentum": 0.8, "nesterovs_momentum": False},
    "RMSProp": {"solver": "rmsprop"},
    "Adam": {"solver": "adam"},
}
VALLEY_RATES = {"gradient descent": 1.8, "momentum": 1.0, "RMSProp": 0.2, "Adam": 0.5}
RATES = [0.001, 0.003, 0.03, 0.1, 0.3, 1.0]
STYLES = dict(zip(SOLVERS, ("o-", "s-", "D-", "^-"), strict=True))


def rule(name, w, g, state, t, rate):
    """One step by the formulas; ``state`` has the two running means."""
    if name == "gradient descent":
        return w - rate * g
    if name == "momentum":
        state[0] = 0.8 * state[0] - rate * g
        return w + state[0]
    if name == "RMSProp":
        state[1] = 0.9 * state[1] + 0.1 * g**2
        return w - rate * g / (np.sqrt(state[1]) + 1e-8)
    state[0] = 0.9 * state[0] + 0.1 * g
    state[1] = 0.999 * state[1] + 0.001 * g**2
    correction = np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    return w - rate * correction * state[0] / (np.sqrt(state[1]) + 1e-8)


def path_by_hand(name, H):
    """The loss is ``(w - lowest)' H (w - lowest) / 2``; shape (STEPS + 1, 2)."""
    w, state = START, [np.zeros(2), np.zeros(2)]
    path = [w]
    for t in range(1, STEPS + 1):
        w = rule(name, w, H @ (w - LOWEST), state, t, VALLEY_RATES[name])
        path.append(w)
    return np.array(path)


def path_of_network(name, X, y):
    """A network of one unit, and a call of `partial_fit` for each step on all samples."""
    model = MLPRegressor(
        hidden_layer_sizes=(),
        alpha=0,
        learning_rate_init=VALLEY_RATES[name],
        weight_init=lambda fan_in, fan_out, random_state: START[:1, None],
        **SOLVERS[name],
    )
    path = [START]
    for _ in range(STEPS):
        model.partial_fit(X, y)
        path.append(np.array([model.coefs_[0][0, 0], model.intercepts_[0][0]]))
    return np.array(path)


def valley(left, middle):
    rng = np.random.RandomState(0)
    X = 0.03 + 0.12 * rng.normal(size=(200, 1))
    y = X[:, 0] * LOWEST[0] + LOWEST[1]
    ones = np.column_stack([X, np.ones(len(X))])
    H = ones.T @ ones / len(X)
    curvatures = np.linalg.eigvalsh(H)
    print(f"a valley, {curvatures[1] / curvatures[0]:.0f} times as steep as it is long")
    last = {}
    for name, style in STYLES.items():
        path = path_of_network(name, X, y)
        np.testing.assert_allclose(path, path_by_hand(name, H), atol=1e-8)
        losses = np.einsum("ij,jk,ik->i", path - LOWEST, H, path - LOWEST) / 2
        left.plot(*path.T, style, label=name, markersize=3, linewidth=1)
        middle.plot(losses, style, markersize=3, linewidth=1)
        print(f"  {name:<17} rate {VALLEY_RATES[name]}: loss after {STEPS} steps {losses[-1]:.1e}")
        last[name] = losses[-1]
    assert last["gradient descent"] == max(last.values())

    grid = np.dstack(np.meshgrid(np.linspace(-5, 3, 100), np.linspace(-1, 6, 100))) - LOWEST
    levels = np.geomspace(0.003, 5, 9)
    heights = np.einsum("abj,jk,abk->ab", grid, H, grid) / 2
    left.contour(
        heights, levels, extent=(-5, 3, -1, 6), colors="0.75", linewidths=0.7, zorder=0
    )  # fmt: skip
    left.plot(*LOWEST, "k+", markersize=12)
    left.set(xlabel="weight", ylabel="bias", title="down a valley")
    left.legend(fontsize=8, loc="upper left", framealpha=1)
    middle.set(xlabel="step", ylabel="loss", yscale="log", ylim=(1e-9, 10), title="its losses")


def train(name, rate, X, y):
    return MLPClassifier(
        learning_rate_init=rate,
        max_iter=EPOCHS,
        n_iter_no_change=np.inf,
        random_state=0,
        **SOLVERS[name],
    ).fit(X, y)


def digits(axes):
    X, y = load_digits(return_X_y=True)
    X = X / 16
    print(f"\ndigits: losses after {EPOCHS} epochs, by learning rate")
    print(" " * 18 + "".join(f"{rate:>9}" for rate in RATES))
    best = {}
    for name, style in STYLES.items():
        models = [train(name, rate, X, y) for rate in RATES]
        print(f"{name:<18}" + "".join(f"{model.loss_:9.4f}" for model in models))
        best[name] = min(models, key=lambda model: model.loss_)
        rate = best[name].learning_rate_init
        axes.plot(
            range(1, EPOCHS + 1), best[name].loss_curve_, style, label=f"{name}, {rate}",
            markersize=3, linewidth=1,
        )  # fmt: skip
    assert all(model.score(X, y) > 0.9 for model in best.values())
    assert best["momentum"].loss_ < best["gradient descent"].loss_
    axes.set(xlabel="epoch", yscale="log", title="digits, best rates")
    axes.legend(fontsize=8)


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)  # all get the same number of epochs
    plt.style.use("tableau-colorblind10")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 4), layout="constrained")
    valley(left, middle)
    digits(right)
    figure.savefig("optimizers.png", dpi=110)
    print("see optimizers.png")


if __name__ == "__main__":
    main()
