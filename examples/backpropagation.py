"""Backpropagation by hand, next to `fastmlp.inspect`.

A network with one hidden layer of tanh units and a softmax on three classes; its loss on a batch of
n samples is the log loss plus the L2 penalty,

    J = -1/n sum_i log p_i[y_i] + alpha / (2 n) (|W1|^2 + |W2|^2).

The forward pass, written with one row per sample, is

    z1 = X W1 + b1,   a1 = tanh(z1),   z2 = a1 W2 + b2,   p = softmax(z2),

and the chain rule, from the loss backwards, gives with the one-hot matrix Y of the targets

    delta2 = (p - Y) / n
    dJ/dW2 = a1^T delta2 + alpha / n W2,   dJ/db2 = the rows of delta2, summed
    delta1 = delta2 W2^T * (1 - a1 * a1)
    dJ/dW1 = X^T delta1 + alpha / n W1,    dJ/db1 = the rows of delta1, summed

`by_hand` below is that in NumPy.  `inspect.backward` must find the same arrays,
`inspect.check_gradients` compares the compiled kernels with differences of the loss, and
`inspect.step` shows what Adam makes of the gradient.  Run it with ``--tiny`` for a shortened
version.
"""

import sys
import warnings

import numpy as np
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

from fastmlp import MLPClassifier, inspect

TINY = "--tiny" in sys.argv


def by_hand(model, X, y):
    """Deltas and gradients of both layers, from the output backwards."""
    (W1, W2), (b1, b2) = model.coefs_, model.intercepts_
    n, alpha = len(X), model.alpha
    Y = np.eye(3)[y]

    z1 = X @ W1 + b1
    a1 = np.tanh(z1)
    z2 = a1 @ W2 + b2
    p = np.exp(z2) / np.exp(z2).sum(axis=1, keepdims=True)

    delta2 = (p - Y) / n
    delta1 = delta2 @ W2.T * (1 - a1 * a1)
    gradients = {
        "dJ/dW1": X.T @ delta1 + alpha / n * W1,
        "dJ/db1": delta1.sum(axis=0),
        "dJ/dW2": a1.T @ delta2 + alpha / n * W2,
        "dJ/db2": delta2.sum(axis=0),
    }
    penalty = alpha / (2 * n) * ((W1**2).sum() + (W2**2).sum())
    loss = -np.log(p[np.arange(n), y]).mean() + penalty
    return loss, [delta1, delta2], gradients


def by_inspect(model, X, y):
    """The same arrays from `fastmlp.inspect`."""
    passed = inspect.backward(model, X, y)
    (dW1, dW2), (db1, db2) = passed.coef_grads, passed.intercept_grads
    gradients = {"dJ/dW1": dW1, "dJ/db1": db1, "dJ/dW2": dW2, "dJ/db2": db2}
    return passed.loss, passed.deltas, gradients


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, y = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = MLPClassifier(
        (5,), "tanh", alpha=0.1, batch_size=len(X), max_iter=5 if TINY else 50,
        n_iter_no_change=50, random_state=0,
    )  # fmt: skip
    model.fit(X, y)
    print(f"4 features, 5 tanh units, 3 classes; after {model.n_iter_} epochs")

    loss, deltas, gradients = by_hand(model, X, y)
    their_loss, their_deltas, their_gradients = by_inspect(model, X, y)
    print(f"\nloss by hand {loss:.12f}, by inspect.backward {their_loss:.12f}")
    assert abs(loss / their_loss - 1) < 1e-12
    for name, ours, theirs in zip(("delta1", "delta2"), deltas, their_deltas, strict=True):
        print(f"{name} {ours.shape}: largest difference {np.abs(ours - theirs).max():.0e}")
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    for name, ours in gradients.items():
        off = np.abs(ours - their_gradients[name]).max()
        print(f"{name} {ours.shape}: largest difference {off:.0e}")
        np.testing.assert_allclose(ours, their_gradients[name], atol=1e-12)

    print("\nThe compiled kernels against differences of the loss:")
    print(inspect.check_gradients(model, X, y))

    step = inspect.step(model, X, y)
    print(
        f"\nOne step of Adam: the loss goes from {step.loss_before:.6f} to {step.loss_after:.6f}."
    )
    print("First unit of the output layer, weight by weight:")
    print("    weight    gradient    update")
    W, g, u = step.coefs_before[1], step.coef_grads[1], step.coef_updates[1]
    for k in range(len(W)):
        print(f"  {W[k, 0]:8.4f}  {g[k, 0]:10.6f}  {u[k, 0]:8.5f}")
    assert step.loss_after < step.loss_before
    again = MLPClassifier(**model.get_params()).set_params(max_iter=model.n_iter_ + 1).fit(X, y)
    np.testing.assert_allclose(again.coefs_[1], step.coefs_after[1], rtol=1e-9)


if __name__ == "__main__":
    main()
