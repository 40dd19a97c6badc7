"""Five networks against one: what averaging gains, and what disagreement tells.

Networks that differ in their random numbers only end in different minima and make different errors.
What they have in common stays in an average of their probabilities, and what is due to chance
shrinks: for squared errors, the average's is that of a typical member less the members' variance
(Krogh and Vedelsby, 1995), never more.

First, scikit-learn's digits: accuracy of each single member and of the ensemble, over several
random splits.  What counts is their difference on the same split.  Then the digits that the members
disagree on most are put aside: the rest is more accurate.

Last, the identity above on one noisy curve, and the standard deviation over the members, which
grows where there are no data.

Run it with ``--tiny`` for a shortened version.
"""

import sys
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from fastmlp import (
    MLPClassifier,
    MLPEnsembleClassifier,
    MLPEnsembleRegressor,
    MLPRegressor,
)

TINY = "--tiny" in sys.argv
N_SPLITS = 3 if TINY else 20
NETWORK = MLPClassifier((32, 32), learning_rate_init=0.01, max_iter=30)


def spread(values):
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def one_split(X, y, seed):
    """Mean accuracy of the members, that of the ensemble, and that where they agree."""
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.5, stratify=y, random_state=seed
    )
    model = MLPEnsembleClassifier(NETWORK, n_members=5, random_state=seed).fit(X_train, y_train)
    single = np.mean([member.score(X_test, y_test) for member in model.members_])
    probabilities, std = model.predict_proba(X_test, return_std=True)
    correct = model.classes_[probabilities.argmax(axis=1)] == y_test
    disagreement = std.max(axis=1)
    agreed = disagreement <= np.quantile(disagreement, 0.9)
    return single, correct.mean(), correct[agreed].mean()


def digits():
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    single, five, agreed = np.array([one_split(X, y, seed) for seed in range(N_SPLITS)]).T
    print(f"digits, test accuracy over {N_SPLITS} splits (mean ± standard deviation)")
    print(f"  one network                          {spread(single)}")
    print(f"  five networks                        {spread(five)}")
    print(f"  difference on the same split         {spread(five - single)}")
    print(f"  without the tenth they disagree on   {spread(agreed)}")
    assert five.mean() > single.mean()
    assert agreed.mean() > five.mean()


def curve():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, size=(60, 1))
    y = np.sin(2 * X[:, 0]) + rng.normal(scale=0.2, size=60)
    network = MLPRegressor(hidden_layer_sizes=(20,), solver="lbfgs")
    model = MLPEnsembleRegressor(network, n_members=5, random_state=0).fit(X, y)

    inside = np.linspace(-2, 2, 201)[:, None]
    truth = np.sin(2 * inside[:, 0])
    mean, std = model.predict(inside, return_std=True)
    each = np.mean([(member.predict(inside) - truth) ** 2 for member in model.members_])
    error, variance = ((mean - truth) ** 2).mean(), (std**2).mean()
    print("\na noisy curve, mean squared error")
    print(f"  of a member, on average {each:.5f}; of the ensemble {error:.5f}, "
          f"{variance:.5f} less")  # fmt: skip
    np.testing.assert_allclose(error, each - variance)

    _, outside = model.predict([[4.0], [6.0]], return_std=True)
    print(f"  standard deviation over the members: {std.mean():.3f} among the data, "
          f"{outside[0]:.3f} at x = 4, {outside[1]:.3f} at x = 6")  # fmt: skip
    assert std.mean() < outside[0] < outside[1]


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)
    digits()
    curve()


if __name__ == "__main__":
    main()
