"""What an earlier version of fastmlp wrote, and the models that it wrote.

The files in ``tests/persistence/data`` are those of version 0.1.0.dev0 of November 2026, before
estimators became a package; ``python tests/helpers/written.py`` made them.  They are not made anew:
that later versions read them is the point.
"""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "persistence" / "data"
rng = np.random.default_rng(5)
X = rng.normal(size=(60, 4))
SCORES = X @ rng.normal(size=(4, 3))
WORDS = np.array(["ant", "bee", "cat"])[SCORES.argmax(axis=1)]
TARGETS = {
    "words": WORDS,
    "labels": (SCORES > 0).astype(int),
    "levels": SCORES[:, 0],
    "lines": SCORES[:, :2],
}


def unfitted():
    """Models by name."""
    from fastmlp import MLPClassifier, MLPRegressor

    shared = {"hidden_layer_sizes": (6,), "random_state": 1, "max_iter": 8}
    return {
        "words": MLPClassifier(
            early_stopping=True, class_weight={"ant": 2.0, "bee": 1.0}, **shared
        ),
        "labels": MLPClassifier(solver="sgd", learning_rate="adaptive", **shared),
        "levels": MLPRegressor(
            loss="quantile", quantile=(0.1, 0.5, 0.9), dropout=0.2, ema_decay=0.9,
            learning_rate="plateau", activation="gelu", layer_norm=True, **shared,
        ),
        "lines": MLPRegressor(solver="lbfgs", activation="tanh", **shared),
    }  # fmt: skip


def outputs(model) -> list:
    """What a fitted model predicts for ``X``."""
    return (model.predict_proba if hasattr(model, "predict_proba") else model.predict)(X).tolist()


def resumable(folder, **parameters):
    """A model with early stopping that keeps a checkpoint in a folder."""
    from fastmlp import MLPClassifier

    return MLPClassifier(
        (6,), random_state=1, early_stopping=True, checkpoint=Path(folder) / "fit.checkpoint",
        checkpoint_every=0, n_iter_no_change=50, **parameters,
    )  # fmt: skip


if __name__ == "__main__":
    import fastmlp

    warnings.simplefilter("ignore")
    DATA.mkdir(exist_ok=True)
    expected = {}
    for name, model in unfitted().items():
        model.fit(X, TARGETS[name])
        expected[name] = outputs(model)
        fastmlp.io.save(model, DATA / f"{name}.safetensors", optimizer_state=True)
        (DATA / f"{name}.pickle").write_bytes(pickle.dumps(model))
        if model.solver != "lbfgs":
            model.early_stopping = False
            expected[f"{name}, one epoch more"] = outputs(model.partial_fit(X, TARGETS[name]))
    resumable(DATA, max_iter=5).fit(X, WORDS)
    expected["resumed"] = outputs(resumable(DATA, max_iter=9).fit(X, WORDS, resume=True))
    resumable(DATA, max_iter=5).fit(X, WORDS)
    (DATA / "expected.json").write_text(json.dumps(expected) + "\n")
