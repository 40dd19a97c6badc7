"""``python -m fastmlp``: what this installation consists of, and whether it works.

After `fastmlp.show_versions` come about two seconds of training beside scikit-learn, with which all
numbers must agree.  The exit status is 1 if something does not.
"""

import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import make_classification
from sklearn.neural_network import MLPClassifier as ScikitLearnMLPClassifier

import fastmlp
from fastmlp import MLPClassifier, engine

_EPOCHS = 40
_TOLERANCE = {"float64": 1e-9, "float32": 1e-3}


def check() -> Iterator[tuple[str, bool, str]]:
    """What is checked, whether it holds, and figures."""
    X, y = make_classification(1500, 30, n_informative=10, n_classes=3, random_state=0)
    settings: dict[str, Any] = {
        "hidden_layer_sizes": (40, 20),
        "max_iter": _EPOCHS,
        "tol": 0,
        "random_state": 0,
    }
    theirs, their_seconds = _timed(ScikitLearnMLPClassifier(**settings), X, y)
    ours, our_seconds = _timed(MLPClassifier(**settings), X, y)
    for model in (ours, MLPClassifier(**settings).fit(X.astype(np.float32), y)):
        dtype = model.coefs_[0].dtype.name
        off = _difference(model, theirs)
        yield f"{dtype}: scikit-learn's loss curve", off < _TOLERANCE[dtype], f"within {off:.0e}"
    one = MLPClassifier(**settings, n_threads=1).fit(X, y)
    same = one.loss_curve_ == ours.loss_curve_ and np.array_equal(one.coefs_[0], ours.coefs_[0])
    yield "one thread and several: the same bits", same, ""
    row, batch = ours.predict_proba(X[:1]), ours.predict_proba(X)
    yield "one row and many: the same prediction", np.allclose(row, batch[:1], atol=1e-12), ""
    times = (
        f"{1e3 * our_seconds / _EPOCHS:.2f} ms, scikit-learn {1e3 * their_seconds / _EPOCHS:.2f}"
    )
    yield "time per epoch", True, times
    if "compute capability" in engine.describe("cuda"):
        off = _difference(MLPClassifier(**settings, device="cuda").fit(X, y), ours)
        yield "GPU: the CPU's loss curve", off < _TOLERANCE["float64"], f"within {off:.0e}"


def _timed(model: Any, X: Any, y: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    model.fit(X, y)
    return model, time.perf_counter() - start


def _difference(model: Any, other: Any) -> float:
    ours, theirs = np.array(model.loss_curve_), np.array(other.loss_curve_)
    return float(np.abs(ours / theirs - 1).max())


def main() -> int:
    """Print everything; 1 if a check failed."""
    warnings.simplefilter("ignore")
    fastmlp.show_versions()
    start = time.perf_counter()
    fastmlp.warmup()
    print(f"\nSelf-check (kernels ready in {time.perf_counter() - start:.1f} s):")
    passed = True
    for what, holds, figures in check():
        print(f"    {what}: {figures or ('yes' if holds else 'no')}{'' if holds else '  FAILED'}")
        passed &= holds
    print("    passed" if passed else "    FAILED: please report this, with all of the above")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
