"""Learning rate: too small, right, too large.

Gradient descent steps ``w <- w - rate * gradient``.  For linear regression with n samples,

    loss(w) = |X w - y|^2 / (2 n)      with Hessian  H = X'X / n

what happens is known exactly.  In the directions of H's eigenvectors, with eigenvalues h_i, the
distance to the minimum is multiplied by ``1 - rate h_i`` in every step.  So a small rate takes
long, a rate above ``1 / max(h)`` swings from one side of the valley to the other, and one above
``2 / max(h)`` swings ever wider: training diverges, and fastmlp says so by a ValueError.  No rate
is right for all directions: the largest h_i limits it, and the smallest then takes longest.

The picture's first panel shows the loss above its minimum for four rates, as lines, and what the
formula says, as markers.  The second has the same regression in steps of 20 samples each, whose
gradients scatter: a constant rate goes down fast and then stays at a height that grows with the
rate, while a schedule, which starts high and ends at zero, goes on to the minimum.  In the third, a
network with a hidden layer on digits, there is no formula, but too small, right and too large are
as before.

Needs ``pip install "fastmlp[examples]"``; writes learning_rates.png.  Run it with ``--tiny`` for a
shortened version.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import scale

from fastmlp import MLPClassifier, MLPRegressor

TINY = "--tiny" in sys.argv
STEPS = 40
EPOCHS = 10 if TINY else 40
FACTORS = {"too small": 0.05, "right": 1.0, "nearly too large": 1.95, "too large": 2.05}
MARKERS = "osD^"


def linear_regression(rate, epochs, batch_size, schedule="constant"):
    """Gradient descent from zero weights."""
    return MLPRegressor(
        hidden_layer_sizes=(),
        solver="sgd",
        momentum=0,
        alpha=0,
        learning_rate_init=rate,
        learning_rate=schedule,
        batch_size=batch_size,
        max_iter=epochs,
        n_iter_no_change=np.inf,
        weight_init="zeros",
        random_state=0,
    )


def losses_after_epochs(model, X, y):
    """Losses of all samples; `loss_curve_` would have those of batches while weights change."""
    return np.array(model.fit(X, y, X_val=X, y_val=y).validation_loss_curve_)


def exact_losses(X, y, rate, steps):
    """The lowest loss, and that after each full-batch step, by the eigenvalues of the Hessian."""
    h, directions = np.linalg.eigh(X.T @ X / len(X))
    w, residual, *_ = np.linalg.lstsq(X, y)
    distance = (directions.T @ w) * (1 - rate * h) ** np.arange(1, steps + 1)[:, None]
    lowest = residual[0] / (2 * len(X))
    return lowest, lowest + (h * distance**2).sum(axis=1) / 2


def all_samples(axes, X, y, largest):
    """Four rates on a quadratic loss, against the formula; divergence."""
    print(f"linear regression: steps diverge above a rate of 2 / max(h) = {2 / largest:.3f}")
    steps = np.arange(1, STEPS + 1)
    for (name, factor), marker in zip(FACTORS.items(), MARKERS, strict=True):
        rate = factor / largest
        losses = losses_after_epochs(linear_regression(rate, STEPS, len(X)), X, y)
        lowest, exact = exact_losses(X, y, rate, STEPS)
        np.testing.assert_allclose(losses, exact, rtol=1e-8)
        (line,) = axes.plot(steps, losses - lowest, label=f"{factor} / max(h): {name}")
        axes.plot(steps[::4], (exact - lowest)[::4], marker, color=line.get_color(), markersize=4)
        print(f"  {name:<17} rate {rate:.3f}, loss after {STEPS} steps {losses[-1]:.4f}")
        assert (losses[-1] > losses[0]) == (factor > 2)
    try:
        linear_regression(3 / largest, 2000, len(X)).fit(X, y)
        raise AssertionError("it should have diverged")
    except ValueError as error:
        print(f"  3 / max(h), on and on: ValueError: {error}")
    axes.set(xlabel="step", ylabel="loss above its minimum", yscale="log", ylim=(1e-3, 300))
    axes.set_title("linear regression, all samples", fontsize=10)


def few_samples(axes, X, y, largest):
    """Constant rates and a schedule with gradients that scatter."""
    print("\nthe same in steps of 20 samples: loss above its minimum, at last")
    lowest, _ = exact_losses(X, y, 0, 1)
    last = {}
    for factor, schedule in ((0.4, "constant"), (0.1, "constant"), (0.4, "cosine")):
        model = linear_regression(factor / largest, 4 * EPOCHS, 20, schedule)
        above = losses_after_epochs(model, X, y) - lowest
        last[factor, schedule] = above[-EPOCHS // 4 :].mean()
        print(f"  {factor} / max(h), {schedule:<8} {last[factor, schedule]:.1e}")
        label, color = f"{factor} / max(h), {schedule}", {"cosine": "black"}.get(schedule)
        axes.plot(range(1, 4 * EPOCHS + 1), above, color=color, linewidth=1, label=label)
    assert last[0.4, "cosine"] < last[0.1, "constant"] < last[0.4, "constant"]
    axes.set(xlabel="epoch", yscale="log", ylim=(5e-5, 5))
    axes.set_title("steps of 20 samples", fontsize=10)


def network(axes):
    """Three rates on digits."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    print("\none hidden layer on digits, stochastic gradient descent:")
    last = {}
    for name, rate in (("too small", 0.003), ("right", 1.0), ("too large", 6.0)):
        model = MLPClassifier(
            solver="sgd",
            momentum=0,
            learning_rate_init=rate,
            batch_size=50,
            max_iter=EPOCHS,
            n_iter_no_change=np.inf,
            random_state=0,
        ).fit(X, y)
        axes.plot(range(1, EPOCHS + 1), model.loss_curve_, label=f"{rate}: {name}")
        print(f"  {name:<17} rate {rate:.3f}, loss after {EPOCHS} epochs {model.loss_:.4f}")
        last[name] = model.loss_
    assert last["right"] < min(last["too small"], last["too large"])
    axes.set(xlabel="epoch", ylabel="loss", yscale="log", ylim=(1e-3, 60))
    axes.set_title("a hidden layer, digits", fontsize=10)


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)  # not converging is the point here
    plt.style.use("tableau-colorblind10")
    figure, panels = plt.subplots(1, 3, figsize=(10, 4), layout="constrained")
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X), scale(y)  # means are 0, so the biases stay at 0
    largest = np.linalg.eigvalsh(X.T @ X / len(X)).max()
    all_samples(panels[0], X, y, largest)
    few_samples(panels[1], X, y, largest)
    network(panels[2])
    for axes in panels:
        axes.legend(fontsize=8, loc="upper right")
    figure.savefig("learning_rates.png", dpi=110)
    print("see learning_rates.png")


if __name__ == "__main__":
    main()
