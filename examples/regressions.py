"""Linear, logistic, softmax and Poisson regression are networks without hidden layer.

Such a network is ``g(x W + b)``, and what the output activation g and the loss are decides which
regression it is:

    regression     output activation g          loss of one sample
    linear         z                            (y - z)^2 / 2
    multivariate   z, several outputs           sum_k (y_k - z_k)^2 / 2
    logistic       1 / (1 + exp(-z))            -y log g - (1 - y) log(1 - g)
    softmax        exp(z_k) / sum_j exp(z_j)    -log g_y
    Poisson        exp(z)                       g - y log g + a constant

The network minimises the mean over n samples plus ``alpha / (2 n) ||W||^2``.  scikit-learn's linear
models minimise the same, each with a penalty parameter of its own: `Ridge` has ``alpha``,
`LogisticRegression` has ``C = 1 / alpha``, `PoissonRegressor` has ``alpha / n``.  These losses are
convex, so there is one minimum, and both must find it.  Linear regression's is also known in closed
form, ``W = (X'X + alpha I)^-1 X'Y`` with centred X and Y.

Each line of the table says how far the coefficients of a network are from those of scikit-learn's
model, trained in two ways: gradient descent with momentum, hundreds of cheap steps, and L-BFGS, a
few tens of dearer ones.  SciPy ends L-BFGS when a step gains less than 2e-9 of the loss; around a
minimum the loss grows with the square of the distance, so the coefficients may then still be off by
something like the root of that.

It needs nothing but fastmlp.  Run it with ``--tiny`` for a shortened version.
"""

import sys

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_linnerud, load_wine
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.preprocessing import scale

from fastmlp import MLPClassifier, MLPRegressor

TINY = "--tiny" in sys.argv
TOLERANCE = 1e-3 if TINY else 1e-5  # relative to the largest coefficient
EXACT = {"tol": 1e-12, "max_iter": 10_000}


def coefficients(model):
    """Those of a fitted network, in the form of scikit-learn's ``coef_``."""
    return model.coefs_[0].T


def train(network, X, y):
    """Coefficients after gradient descent, and after L-BFGS."""
    network.set_params(hidden_layer_sizes=(), random_state=0, max_iter=20_000)
    network.set_params(
        solver="sgd", batch_size=len(X), learning_rate_init=0.1, momentum=0.95,
        n_iter_no_change=100 if TINY else 1000, tol=1e-14,
    )  # fmt: skip
    descent = coefficients(network.fit(X, y))
    network.set_params(solver="lbfgs", tol=1e-10)
    return descent, coefficients(network.fit(X, y))


def compare(regression, network, model, X, y):
    """Fit both, and print how far they are apart; the coefficients by gradient descent."""
    model.fit(X, y)
    descent, lbfgs = train(network, X, y)
    apart = [np.abs(W - model.coef_).max() / np.abs(model.coef_).max() for W in (descent, lbfgs)]
    against = type(model).__name__
    print(f"{regression:<13} {against:<19} {descent.size:12} {apart[0]:15.0e} {apart[1]:11.0e}")
    assert apart[0] < TOLERANCE
    assert apart[1] < 1e-2
    return descent


def linear():
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X), scale(y)
    compare("linear", MLPRegressor(alpha=0), LinearRegression(), X, y)
    W = compare("linear", MLPRegressor(alpha=10), Ridge(alpha=10), X, y)
    closed_form = np.linalg.solve(X.T @ X + 10 * np.eye(X.shape[1]), X.T @ y)
    np.testing.assert_allclose(W[0], closed_form, atol=TOLERANCE)


def multivariate():
    X, Y = load_linnerud(return_X_y=True)
    compare("multivariate", MLPRegressor(alpha=0.1), Ridge(alpha=0.1), scale(X), scale(Y))


def logistic():
    X, y = load_breast_cancer(return_X_y=True)
    compare("logistic", MLPClassifier(alpha=1), LogisticRegression(C=1, **EXACT), scale(X), y)


def softmax():
    X, y = load_wine(return_X_y=True)
    compare("softmax", MLPClassifier(alpha=1), LogisticRegression(C=1, **EXACT), scale(X), y)


def poisson():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(1000, 5))
    counts = rng.poisson(np.exp(0.5 + X @ np.linspace(-0.5, 0.5, 5)))
    model = PoissonRegressor(alpha=1 / len(X), **EXACT)
    compare("Poisson", MLPRegressor("poisson", alpha=1), model, X, counts)


def main():
    print("regression    against             coefficients   apart: descent     L-BFGS")
    linear()
    multivariate()
    logistic()
    softmax()
    poisson()
    print("A hidden layer is what makes a network more than these.")


if __name__ == "__main__":
    main()
