"""Plan: what a fit will do, stated before it begins.

Estimators make one from their parameters (`fastmlp.estimators.plan`), and refuse there what could
not do what it says; whoever trains reads it and asks nobody else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastmlp.functions import Activation
from fastmlp.optimizers import Optimizer
from fastmlp.schedules import Schedule, is_over_all_epochs


@dataclass(frozen=True)
class Plan:
    """What a fit will do; names and values are those of the estimators' parameters.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int
    activations : str or tuple of str or Activation
        As `fastmlp.network.Network` takes them.
    layer_norm : bool
    weight_init : str or callable
    solver : str
    optimizer : Optimizer or None
        None for 'lbfgs'.
    schedule : Schedule
    dropout : tuple of float
        A rate for each hidden layer; empty without dropout.
    alpha : float
    batch_size : int or 'auto'
    max_iter, max_fun : int
    shuffle : bool
    tol : float
    n_iter_no_change : float
    verbose : bool
    early_stopping : bool
        Whether a validation score decides when to stop and which parameters to keep.
    validation_fraction : float
    scoring : None, str or callable
    n_restarts : int
    max_time : float or None
    checkpoint : str, path-like or None
    checkpoint_every : float
    incremental : bool
        One epoch, from where the last call ended: ``partial_fit``.
    warm_start : bool
        Whether to go on from the parameters of the last call.
    resume : bool
    execution : dict
        Where and how to run: ``device``, ``n_threads`` and ``matmul_precision``, as
        `fastmlp.engine.get_engine` takes them.
    """

    hidden_layer_sizes: tuple[int, ...]
    activations: str | tuple[str | Activation, ...]
    layer_norm: bool
    weight_init: str | Callable
    solver: str
    optimizer: Optimizer | None
    schedule: Schedule
    dropout: tuple[float, ...]
    alpha: float
    batch_size: int | str
    max_iter: int
    max_fun: int
    shuffle: bool
    tol: float
    n_iter_no_change: float
    verbose: bool
    early_stopping: bool
    validation_fraction: float
    scoring: str | Callable | None
    n_restarts: int
    max_time: float | None
    checkpoint: Any
    checkpoint_every: float
    incremental: bool
    warm_start: bool
    resume: bool
    execution: dict[str, Any]

    @property
    def is_as_planned(self) -> bool:
        """Whether to end after all epochs is what the user asked for.

        That is a schedule over all of them, and no way to stop earlier.
        """
        return is_over_all_epochs(self.schedule.name) and self.n_iter_no_change == float("inf")
