"""From scikit-learn and back: one model, two libraries, the same numbers.

Somebody has trained an MLPClassifier of scikit-learn's for a while.  `from_sklearn` takes it over,
Adam's state included, fastmlp goes on with the training, and `to_sklearn` hands a plain
scikit-learn estimator back, which goes on in turn.  Beside it scikit-learn alone does all the
epochs: in float64, both ways end with the same weights, to rounding.

A model can also leave as a file: `fastmlp.io.save` writes one safetensors file without any code in
it, and `fastmlp.io.load` checks it before it believes it.  Run it with ``--tiny`` for a shortened
version.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier as ScikitLearnMLPClassifier

import fastmlp

TINY = "--tiny" in sys.argv
EPOCHS = 2 if TINY else 10


def train(model, X, y):
    """Some epochs more."""
    for _ in range(EPOCHS):
        model.partial_fit(X, y, classes=np.arange(10))
    return model


def largest_difference(model, other):
    return max(np.abs(a - b).max() for a, b in zip(model.coefs_, other.coefs_, strict=True))


def main():
    X, y = load_digits(return_X_y=True)
    X = X / 16
    alone = train(ScikitLearnMLPClassifier((50,), random_state=0), X, y)
    print(f"scikit-learn, {EPOCHS} epochs: loss {alone.loss_:.6f}")

    ours = fastmlp.from_sklearn(alone)
    assert np.array_equal(ours.predict(X), alone.predict(X))
    train(ours, X, y)
    train(alone, X, y)
    print(f"taken over by fastmlp, {EPOCHS} more: loss {ours.loss_:.6f}")
    print(f"scikit-learn alone, {EPOCHS} more:    loss {alone.loss_:.6f}")
    print(f"largest difference of a weight: {largest_difference(ours, alone):.0e}")
    assert largest_difference(ours, alone) < 1e-9

    theirs = fastmlp.to_sklearn(ours)
    assert type(theirs) is ScikitLearnMLPClassifier
    train(theirs, X, y)
    train(alone, X, y)
    print(f"handed back, {EPOCHS} more: largest difference {largest_difference(theirs, alone):.0e}")
    assert largest_difference(theirs, alone) < 1e-9

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        fastmlp.io.save(ours, path, optimizer_state=True)
        print(f"\nsaved with the optimizer's state: {path.stat().st_size} bytes")
        again = train(fastmlp.io.load(path), X, y)
        path.write_bytes(path.read_bytes()[:-1])
        try:
            fastmlp.io.load(path)
        except ValueError as error:
            print(f"one byte cut off: {str(error).replace(folder, '...')}")
    train(ours, X, y)
    assert largest_difference(again, ours) == 0
    print("the loaded model goes on to the same bits")


if __name__ == "__main__":
    main()
