"""The K-arm spiral: a classic that no linear model can separate.

Arm k of K is the curve

    X_k(t) = t (sin(2 pi / K (2 t + k)), cos(2 pi / K (2 t + k))) + N(0, sigma^2)

for t in (0, 1].  One hidden layer of 100 units learns to tell the arms apart.  With noise the arms
overlap near the origin, so nobody can be right always: Bayes' rule, which knows the curves and
sigma, says what is possible, and the network, which knows neither, comes close to it.

The picture shows what the network predicts after so many epochs, and the samples that it learned
from.  At first the boundaries are nearly straight, as those of a linear model; then they bend, and
wind around the origin.  Each epoch is a call of `partial_fit`.

Needs ``pip install "fastmlp[examples]"``; writes spiral.png.  Run it with ``--tiny`` for a
shortened version.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from fastmlp import MLPClassifier

TINY = "--tiny" in sys.argv
N_ARMS, SIGMA = 3, 0.05
SHOWN = (1, 5, 20, 60) if TINY else (1, 5, 15, 30, 60, 300)
COLORS = ["#0072b2", "#e69f00", "#009e73"]


def arm_curve(t, arm, n_arms=N_ARMS):
    """Points (len(t), 2) of arms without noise."""
    angle = 2 * np.pi / n_arms * (2 * t + arm)
    return t[:, None] * np.column_stack([np.sin(angle), np.cos(angle)])


def make_spiral(n_per_arm, n_arms, sigma, random_state):
    """Points (n_arms * n_per_arm, 2) and the number of their arm."""
    rng = np.random.RandomState(random_state)
    t = np.tile(np.linspace(0, 1, n_per_arm + 1)[1:], n_arms)
    arm = np.repeat(np.arange(n_arms), n_per_arm)
    X = arm_curve(t, arm, n_arms)
    return X + sigma * rng.normal(size=X.shape), arm


def bayes_rule(X, sigma):
    """The most likely arm of each point: the best that any classifier can do."""
    t = np.linspace(0, 1, 501)[1:]
    likelihood = np.empty((len(X), N_ARMS))
    for arm in range(N_ARMS):
        squares = ((X[:, None] - arm_curve(t, arm)) ** 2).sum(axis=2)
        likelihood[:, arm] = np.exp(-squares / (2 * sigma**2)).mean(axis=1)
    return likelihood.argmax(axis=1)


def compare(n_per_arm):
    """Linear against nonlinear, without and with noise; accuracies on samples not learned from."""
    print("accuracy on new samples   logistic regression   one hidden layer   Bayes' rule")
    for sigma in (0.0, SIGMA):
        X, y = make_spiral(n_per_arm, N_ARMS, sigma, random_state=0)
        X_new, y_new = make_spiral(300 if TINY else 1000, N_ARMS, sigma, random_state=1)
        linear = LogisticRegression().fit(X, y).score(X_new, y_new)
        model = MLPClassifier(
            hidden_layer_sizes=(100,),
            learning_rate_init=0.01,
            max_iter=1000,
            n_iter_no_change=50,
            random_state=0,
        ).fit(X, y)
        network = model.score(X_new, y_new)
        best = 1.0 if sigma == 0 else np.mean(bayes_rule(X_new, sigma) == y_new)
        print(f"sigma {sigma:.2f} {linear:28.3f} {network:18.3f} {best:13.3f}")
        assert linear < 0.65
        assert network > best - (0.05 if TINY else 0.02)
        assert network < best + 3 * np.sqrt(0.25 / len(y_new))  # three standard errors


def panel(axes, model, X, y, epoch):
    """Predictions over the plane, and the samples."""
    line = np.linspace(-1.25, 1.25, 200)
    grid = np.dstack(np.meshgrid(line, line))
    arms = model.predict(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    cmap = ListedColormap(COLORS)
    extent = [line[0], line[-1], line[0], line[-1]]
    axes.imshow(arms, cmap=cmap, alpha=0.35, vmin=0, vmax=2, origin="lower", extent=extent)
    axes.scatter(*X.T, c=y, cmap=cmap, s=4, linewidths=0)
    epochs = "1 epoch" if epoch == 1 else f"{epoch} epochs"
    axes.set_title(f"{epochs}: accuracy {model.score(X, y):.2f}", fontsize=10)
    axes.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    axes.label_outer()


def boundary_over_epochs(n_per_arm):
    X, y = make_spiral(n_per_arm, N_ARMS, SIGMA, random_state=0)
    # a RandomState, not a number, or every call would draw the same order of the samples
    model = MLPClassifier(learning_rate_init=0.01, random_state=np.random.RandomState(0))
    columns = len(SHOWN) // 2
    figure, grid = plt.subplots(2, columns, figsize=(2.9 * columns, 6.2), layout="constrained")
    panels = dict(zip(SHOWN, grid.flat, strict=True))
    accuracies = []
    for epoch in range(1, SHOWN[-1] + 1):
        model.partial_fit(X, y, classes=range(N_ARMS))
        if epoch in panels:
            panel(panels[epoch], model, X, y, epoch)
            accuracies.append(model.score(X, y))
    figure.supxlabel("$x_1$")
    figure.supylabel("$x_2$")
    figure.savefig("spiral.png", dpi=110)
    print(f"\naccuracies after {SHOWN} epochs: {np.round(accuracies, 2).tolist()}; see spiral.png")
    assert accuracies[-1] > accuracies[0] + 0.2


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)  # 1000 epochs are enough to see it
    plt.style.use("tableau-colorblind10")
    n_per_arm = 50 if TINY else 300
    compare(n_per_arm)
    boundary_over_epochs(n_per_arm)


if __name__ == "__main__":
    main()
