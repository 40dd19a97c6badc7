"""Fits whose bits are held from version to version, and a way to write them down anew.

``python tests/helpers/default_fits.py`` writes the digests of this version's parameters for every
level of x86-64 that the processor has.  They change only on purpose: a change of them is a change
of numbers that users see.
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy import sparse

FILE = Path(__file__).parent / "default_fits.json"
SOLVERS = ("adam", "sgd", "lbfgs")
ACTIVATIONS = ("relu", "tanh", "logistic", "identity")
FORMS = ("float64", "float32", "csr float64", "csr float32", "weighted")
KINDS = ("MLPClassifier", "MLPRegressor")
CASES = list(itertools.product(KINDS, SOLVERS, ACTIVATIONS, FORMS, (False, True)))


def fit(kind, solver, activation, form, early_stopping):
    """A short fit with default parameters otherwise."""
    import fastmlp

    rng = np.random.default_rng(7)
    X = rng.normal(size=(330, 13)) * (rng.random((330, 13)) < 0.6)
    scores = X @ rng.normal(size=(13, 3))
    y = scores.argmax(axis=1) if kind == "MLPClassifier" else scores[:, :2]
    weight = rng.random(330) if form == "weighted" else None
    X = X.astype("float32" if "float32" in form else "float64")
    if form.startswith("csr"):
        X = sparse.csr_matrix(X)
    model = getattr(fastmlp, kind)(
        hidden_layer_sizes=(11, 5), activation=activation, solver=solver,
        early_stopping=early_stopping, max_iter=6, random_state=3,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y, sample_weight=weight)


def digest(model):
    """Of all parameters, to the bit."""
    arrays = [array.tobytes() for array in (*model.coefs_, *model.intercepts_)]
    return hashlib.sha256(b"".join(arrays)).hexdigest()[:16]


def name_of(case) -> str:
    """A case in words."""
    *words, early_stopping = case
    return ", ".join(words) + ", early stopping" * early_stopping


def digests() -> dict[str, str]:
    """Of all cases, on the level of this process."""
    return {name_of(case): digest(fit(*case)) for case in CASES}


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(digests()))
        sys.exit()
    recorded = {}
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        environment = os.environ | {"FASTMLP_CPU_LEVEL": level}
        output = subprocess.run(
            [sys.executable, __file__, "one"], env=environment, check=True, stdout=subprocess.PIPE
        ).stdout
        recorded[level] = json.loads(output)
    FILE.write_text(json.dumps(recorded, indent=0) + "\n")
