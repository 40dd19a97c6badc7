"""XOR: what a perceptron cannot learn, and what one hidden layer is for.

XOR is 1 if exactly one of two inputs is 1.  A network without hidden layer decides by the sign of
a score ``z(x) = w_1 x_1 + w_2 x_2 + b``, that is, on which side of a line a point lies.  No line
separates the two classes: ``z(0, 0) + z(1, 1) = z(0, 1) + z(1, 0)`` whatever w and b are, but the
left side should be negative and the right side positive (Minsky and Papert, 1969).  At most three
of the four points can be on their side.  Asked for probabilities, the best that the network can say
is 1/2 everywhere, with the loss log 2.

Two hidden units are enough.  By hand, with steps: one unit computes OR, ``x_1 + x_2 > 1/2``, the
other AND, ``x_1 + x_2 > 3/2``, and XOR is OR but not AND.  By learning, with tanh: each unit draws
a line of its own, and the output combines the two.

The picture shows on the left the four points with one of the best lines; in the middle what the
network has learned, and its units' lines; on the right the points as the hidden layer presents
them to the output, which now needs but one line.

Needs ``pip install "fastmlp[examples]"``; writes xor.png.  Run it with ``--tiny`` for a shortened
version.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from fastmlp import MLPClassifier

TINY = "--tiny" in sys.argv
X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
y = np.array([0, 1, 1, 0])
COLORS = np.array(["#0072b2", "#d55e00"])


def without_hidden_layer():
    """The perceptron: the best probabilities, and a best line (w_1, w_2, b) of many."""
    model = MLPClassifier((), solver="lbfgs", alpha=0, random_state=0).fit(X, y)
    probabilities = model.predict_proba(X)[:, 1]
    print(f"perceptron: probabilities {probabilities.round(3).tolist()}, loss {model.loss_:.6f}")
    np.testing.assert_allclose(probabilities, 0.5, atol=1e-3)
    assert abs(model.loss_ - np.log(2)) < 1e-6

    lines = np.random.RandomState(0).normal(size=(1000 if TINY else 100_000, 3))
    right = ((X @ lines[:, :2].T + lines[:, 2] > 0) == y[:, None]).mean(axis=0)
    print(f"of {len(lines)} random lines the best has {right.max():.0%} of the points right")
    assert right.max() == 0.75
    return lines[right.argmax()]


def by_hand():
    """OR and AND from steps; any fitted network of that shape can be given weights."""
    model = MLPClassifier((2,), activation="step").partial_fit(X, y, classes=[0, 1])
    model.coefs_ = [np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[1.0], [-1.0]])]
    model.intercepts_ = [np.array([-0.5, -1.5]), np.array([-0.5])]
    print(f"two step units, weights by hand: {model.predict(X).tolist()}")
    assert model.predict(X).tolist() == [0, 1, 1, 0]


def with_hidden_layer():
    """Two tanh units; some starts end in a local minimum, so the best of ten is taken."""
    model = MLPClassifier(
        (2,), activation="tanh", solver="lbfgs", alpha=1e-3, n_restarts=10, random_state=0
    ).fit(X, y)
    probabilities = model.predict_proba(X)[:, 1]
    print(f"two tanh units: probabilities {probabilities.round(3).tolist()}")
    losses = np.sort(-model.restart_scores_)
    print(f"losses of the ten starts: {losses.round(3).tolist()}")
    print(f"(two points right and two undecided would be log(2) / 2 = {np.log(2) / 2:.3f})")
    assert model.predict(X).tolist() == [0, 1, 1, 0]
    assert np.abs(probabilities - y).max() < 0.1
    return model


def draw_line(axes, w, b, **style):
    """The line ``w_1 x_1 + w_2 x_2 + b = 0``."""
    on_it = -b * w / (w @ w)
    axes.axline(on_it, on_it + np.array([-w[1], w[0]]), **style)


def draw_points(axes, points):
    axes.scatter(*points.T, c=COLORS[y], s=110, edgecolors="white", zorder=3)
    for point, label, up in zip(points, ("00", "01", "10", "11"), (-16, 7, 7, 7), strict=True):
        axes.annotate(label, point, (7, up), textcoords="offset points")


def draw(line, model):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    left.set_title("no hidden layer: 3 of 4 at best")
    draw_line(left, line[:2], line[2], color="black", linestyle="--")
    draw_points(left, X)

    axis = np.linspace(-0.5, 1.5, 200)
    grid = np.dstack(np.meshgrid(axis, axis)).reshape(-1, 2)
    p = model.predict_proba(grid)[:, 1].reshape(200, 200)
    style = {"extent": [-0.5, 1.5] * 2, "cmap": "RdYlBu_r", "alpha": 0.6}
    shown = middle.imshow(p, origin="lower", vmin=0, vmax=1, **style)
    figure.colorbar(shown, ax=middle, label="probability of class 1", shrink=0.7)
    for unit in range(2):
        draw_line(
            middle, model.coefs_[0][:, unit], model.intercepts_[0][unit],
            color="black", linestyle="--",
        )  # fmt: skip
    middle.set_title("two hidden units: solved")
    draw_points(middle, X)

    right.set_title("seen by the output unit")
    draw_line(right, model.coefs_[1][:, 0], model.intercepts_[1][0], color="black", linestyle="--")
    draw_points(right, np.tanh(X @ model.coefs_[0] + model.intercepts_[0]))
    right.set(xlabel="hidden unit 1", ylabel="hidden unit 2", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
    for axes in (left, middle):
        axes.set(xlabel="$x_1$", ylabel="$x_2$", xlim=(-0.5, 1.5), ylim=(-0.5, 1.5))
    for axes in (left, middle, right):
        axes.set_aspect("equal")
    figure.savefig("xor.png", dpi=110)


def main():
    line = without_hidden_layer()
    by_hand()
    model = with_hidden_layer()
    draw(line, model)
    print("see xor.png")


if __name__ == "__main__":
    main()
