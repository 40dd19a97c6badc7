"""Why cross-entropy and not squared error for classes.

A logistic unit says ``p = 1 / (1 + exp(-z))`` for its score z.  For a sample of class 1,

    cross-entropy   loss  -log p     gradient  dl/dz = p - 1
    squared error   loss  (1 - p)^2  gradient  dl/dz = -2 p (1 - p)^2

Let the unit be certain and wrong: ``z << 0``, so p is nearly 0.  The gradient of the cross-entropy
is nearly -1, a firm push upwards; that of the squared error is nearly 0, because the unit is
saturated and its slope ``p (1 - p)`` is a factor.  The squared error does not even notice that
something is very wrong.  Nor is it convex in z, whereas cross-entropy is.

The upper half of the picture shows the two losses and gradients.  The lower half shows two networks
of one unit that start certain and wrong, with the same weight of the wrong sign, and take the same
steps of gradient descent: with cross-entropy the weight moves at once, and with squared error it
sits on a plateau for long.

Needs ``pip install "fastmlp[examples]"``; writes cross_entropy.png.  Run it with ``--tiny`` for a
shortened version.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit, log_expit
from sklearn.exceptions import ConvergenceWarning

from fastmlp import MLPClassifier

TINY = "--tiny" in sys.argv
EPOCHS = 50 if TINY else 300
START, RATE = -5.0, 0.5
LOSSES = ("log_loss", "squared_error")
NAMES = {"log_loss": "cross-entropy", "squared_error": "squared error"}
STYLES = {"log_loss": "-", "squared_error": "--"}


def loss_and_gradient(name, z):
    """Of a sample of class 1, by the formulas above."""
    p = expit(z)
    if name == "log_loss":
        return -log_expit(z), p - 1
    return (1 - p) ** 2, -2 * p * (1 - p) ** 2


def check_formulas(z):
    """The gradients are derivatives of the losses; only one of the two is convex."""
    for name in LOSSES:
        loss, gradient = loss_and_gradient(name, z)
        np.testing.assert_allclose(np.gradient(loss, z)[1:-1], gradient[1:-1], atol=1e-3)
        wrong, right = gradient[0], gradient[-1]
        print(f"{NAMES[name]}: gradient {wrong:.5f} at z = {z[0]:.0f}, {right:.5f} at {z[-1]:.0f}")
        convex = bool((np.diff(gradient) >= 0).all())
        assert convex == (name == "log_loss")
    assert abs(loss_and_gradient("log_loss", -10.0)[1]) > 0.99
    assert abs(loss_and_gradient("squared_error", -10.0)[1]) < 1e-4


def by_hand(name, X, y, epochs):
    """Weights after each step of gradient descent, by the formulas: class 0 is class 1 mirrored."""
    w, b, weights = START, 0.0, []
    sign = 2 * y - 1
    for _ in range(epochs):
        slope = sign * loss_and_gradient(name, sign * (X[:, 0] * w + b))[1]
        w, b = w - RATE * (slope * X[:, 0]).mean(), b - RATE * slope.mean()
        weights.append(w)
    return np.array(weights)


def train(name, X, y):
    """Weights and accuracies after each epoch of one step."""
    model = MLPClassifier(
        (),
        loss=name,
        solver="sgd",
        momentum=0,
        alpha=0,
        learning_rate_init=RATE,
        batch_size=len(X),
        weight_init=lambda fan_in, fan_out, random_state: np.full((fan_in, fan_out), START),
    )
    weights, accuracies = [], []
    for _ in range(EPOCHS):
        model.partial_fit(X, y, classes=[0, 1])
        weights.append(model.coefs_[0][0, 0])
        accuracies.append(model.score(X, y))
    return np.array(weights), np.array(accuracies)


def draw_formulas(z, left, right):
    for name in LOSSES:
        loss, gradient = loss_and_gradient(name, z)
        left.plot(z, loss, STYLES[name], label=NAMES[name])
        right.plot(z, gradient, STYLES[name])
    left.set(xlabel="score z of a sample of class 1", ylabel="loss")
    right.set(xlabel="score z of a sample of class 1", ylabel="gradient dl/dz")
    left.legend(frameon=False)
    right.text(z[0], -0.7, "certain and wrong:\none pushes,\nthe other does not", color="0.3")


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)
    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    z = np.linspace(-10, 10, 401)
    check_formulas(z)
    draw_formulas(z, *axes[0])

    rng = np.random.RandomState(0)
    y = np.arange(200) % 2
    X = (2 * y - 1 + 0.5 * rng.normal(size=200))[:, None]
    print(f"\none unit that starts with weight {START:.0f}; {EPOCHS} steps of gradient descent:")
    steps = {}
    for name in LOSSES:
        weights, accuracies = train(name, X, y)
        np.testing.assert_allclose(weights, by_hand(name, X, y, EPOCHS), rtol=1e-7, atol=1e-9)
        steps[name] = np.argmax(accuracies > 0.9) + 1 if accuracies[-1] > 0.9 else np.inf
        print(
            f"{NAMES[name]}: accuracy over 0.9 after {steps[name]} steps, "
            f"weight at last {weights[-1]:.2f}"
        )
        epochs = np.arange(1, EPOCHS + 1)
        axes[1, 0].plot(epochs, weights, STYLES[name])
        axes[1, 1].plot(epochs, accuracies, STYLES[name])
    assert 5 * steps["log_loss"] < steps["squared_error"]
    axes[1, 0].set(xlabel="steps", ylabel="weight", xscale="log")
    axes[1, 1].set(xlabel="steps", ylabel="accuracy", xscale="log")
    axes[1, 0].axhline(0, color="0.7", linewidth=0.8, zorder=0)
    figure.savefig("cross_entropy.png", dpi=110)
    print("see cross_entropy.png")


if __name__ == "__main__":
    main()
