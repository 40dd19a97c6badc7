"""The K-arm spiral: a classic that no linear model can separate.

Arm k of K is the curve

    X_k(t) = t (sin(2 pi / K (2 t + k - 1)), cos(2 pi / K (2 t + k - 1))) + N(0, sigma^2)

for t in (0, 1].  One hidden layer of 100 units learns to tell the arms apart.  Run it with
``--tiny`` for a shortened version.
"""

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression

from fastmlp import MLPClassifier

TINY = "--tiny" in sys.argv


def make_spiral(n_per_arm, n_arms, sigma, random_state):
    """Points (n_arms * n_per_arm, 2) and the number of their arm."""
    rng = np.random.RandomState(random_state)
    t = np.tile(np.linspace(0, 1, n_per_arm + 1)[1:], n_arms)
    arm = np.repeat(np.arange(n_arms), n_per_arm)
    angle = 2 * np.pi / n_arms * (2 * t + arm)
    X = t[:, None] * np.column_stack([np.sin(angle), np.cos(angle)])
    return X + sigma * rng.normal(size=X.shape), arm


def main():
    for sigma in (0.0, 0.05):
        X, y = make_spiral(n_per_arm=50 if TINY else 300, n_arms=3, sigma=sigma, random_state=0)
        linear = LogisticRegression().fit(X, y)
        model = MLPClassifier(
            hidden_layer_sizes=(100,),
            learning_rate_init=0.01,
            max_iter=1000,
            n_iter_no_change=50,
            random_state=0,
        ).fit(X, y)
        print(
            f"sigma {sigma:.2f}: logistic regression {linear.score(X, y):.3f}, one hidden layer "
            f"{model.score(X, y):.3f} after {model.n_iter_} epochs"
        )
        if sigma == 0:
            assert model.score(X, y) >= 0.98


if __name__ == "__main__":
    main()
