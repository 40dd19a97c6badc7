"""What the presets of `TabularMLPClassifier` and `TabularMLPRegressor` train.

What pays, as the mean over tuning sets of bench/table_sets.py of the logarithm of an error's ratio
(1 - R^2, or 1 - area under the ROC curve; below 0 is better), with its standard error.  Splits were
others than those of bench/tables.py, and the held-out sets were not looked at.

- Bins of numbers: without them +0.18 (six sets, ensembles of 5), the largest effect of all.  32
  are better than 64 (which cost +0.06 +- 0.02); a tree's edges were no better than quantiles.
- Early stopping of a constant rate with averaged weights (``ema_decay``), after 16 epochs without
  a smaller validation loss: the same score as all 128 epochs in a third of the time, and as good as
  RealMLP's or cosine schedules over a fixed number (within 0.03, no sign either way).
- Members: 5 instead of 1, -0.04; a tenth of the rows held out instead of a fifth, -0.02.
- Many narrow networks rather than few wide ones, where rows are few: 4 of 128 units, -0.04 +- 0.03
  against 2 of 256, in less time; 8 of 128, -0.05 +- 0.02.
- SiLU rather than ReLU, -0.05 +- 0.03; two hidden layers are as good as three and faster.
- Not kept: weight decay (of 1, +0.09 +- 0.03), dropout of 0.25 (+0.01), rates of half or twice
  (+0.02, +0.01), 384 units (+0.03), label smoothing (no sign either way).
- Of what RealMLP-TD and TabM have (bench/tables_ablation.py, bench/results/tables_ablation.md) none
  was better by two standard errors.  Next to it came a learned factor of each input, -0.015 +-
  0.009 on the 12 sets with errors above 0.01: -0.03 to -0.10 on three of them with every seed
  (deliveries, churn, diamonds), nothing on the others.  Periodic inputs instead of bins were worse
  (+0.06 +- 0.03), as was a fixed number of epochs, which `flat_cos` for dropout and weight decay
  needs (+0.04 to +0.07).  The last layer's zeros were no better (+0.01 +- 0.01).  Clamped output,
  parametric activations, slower biases, NTK, periodic inputs beside bins and TabM-mini's shared
  weights made no difference (within 0.005).
"""

from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone

PRESETS = ("fast", "default", "best")

# members, units of a layer, epochs without improvement, and most steps of each member
_OF_FEW_ROWS = {"fast": (1, 128, 8, 3_000), "default": (4, 128, 8, 10_000),
                "best": (12, 128, 16, 20_000)}  # fmt: skip
_OF_MANY_ROWS = {"fast": (1, 128, 8, 3_000), "default": (2, 256, 8, 10_000),
                 "best": (4, 256, 16, 20_000)}  # fmt: skip
_MANY = 20_000
_BATCHES = 24  # of an epoch, where a table is small

_NETWORK: dict[str, Any] = {
    "alpha": 0.0,
    "activation": "silu",
    "weight_init": "lecun_normal",
    "beta_2": 0.95,
    "ema_decay": 0.99,
    "dropout": 0.1,
}
_VALIDATION: dict[str, Any] = {"early_stopping": True, "scoring": "loss", "tol": 0.0}
_OF_ALL_SOLVERS = ("hidden_layer_sizes", "activation", "weight_init", "alpha", "class_weight")
_SHARE = 0.1  # of the rows, set aside to find the best epoch
_LARGEST_SHARE = 0.3  # in a small table of many classes; none is set aside in a smaller one
_MOST_EPOCHS = 400


class Recipe(NamedTuple):
    """What a preset says.

    Parameters
    ----------
    n_members : int
    n_bins : int
    strategy : str
        Of the bins' edges.
    parameters : dict
        Of each network.
    """

    n_members: int
    n_bins: int
    strategy: str
    parameters: dict[str, Any]


def recipe_for(preset: str, n_rows: int, validates: bool) -> Recipe:
    """What a preset trains on a table.

    Parameters
    ----------
    preset : {'fast', 'default', 'best'}
    n_rows : int
        To train on.
    validates : bool
        Whether there are others to find the best epoch by.
    """
    n_members, width, patience, n_steps = (_OF_MANY_ROWS if n_rows > _MANY else _OF_FEW_ROWS)[
        preset
    ]
    batch = min(int(np.clip(2 ** round(np.log2(n_rows / _BATCHES)), 16, 256)), n_rows)
    epochs = int(np.clip(n_steps * batch / n_rows, 4, _MOST_EPOCHS))
    parameters = _NETWORK | {
        "hidden_layer_sizes": (width, width), "batch_size": batch, "max_iter": epochs
    }  # fmt: skip
    if validates:
        parameters |= _VALIDATION | {"n_iter_no_change": patience}
    return Recipe(n_members, 32, "quantile", parameters)


def share_held_out(n_rows: int, n_classes: int = 1) -> float:
    """The share of the rows that networks set aside; 0 if there are too few of them.

    Parameters
    ----------
    n_rows : int
    n_classes : int, default=1
        Of the target, if it has classes; there must be as many rows.
    """
    share = max(_SHARE, (n_classes + 1) / n_rows)
    return share if share <= _LARGEST_SHARE else 0.0


def completed(network: Any, parameters: dict[str, Any]) -> Any:
    """A copy of an estimator, with these parameters where it has defaults."""
    defaults = type(network)().get_params()
    # repr, because arrays and pairs of functions are parameters, too
    chosen = {
        name for name, value in network.get_params().items() if repr(value) != repr(defaults[name])
    }
    if network.solver == "lbfgs":
        parameters = {name: parameters[name] for name in _OF_ALL_SOLVERS if name in parameters}
    missing = {name: value for name, value in parameters.items() if name not in chosen}
    return clone(network).set_params(**missing)
