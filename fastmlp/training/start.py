"""The beginning and the end of a run's work on an engine."""

import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastmlp._sklearn import SEED_LIMIT
from fastmlp.dropout import Dropout
from fastmlp.engine import Engine, Samples, get_engine
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import Optimizer
from fastmlp.training.run import Run


class Setting(NamedTuple):
    """What an engine is made for; engines of equal settings can take each other's place."""

    device: str
    network: Network
    dtype: np.dtype
    objective: Objective
    dropout: Dropout | None
    alpha: float
    optimizer: Optimizer | None
    batch_size: int
    n_threads: int | None
    matmul_precision: str

    def make(self) -> Engine:
        return get_engine(**self._asdict())


def setting_of(run: Run, objective: Objective, dtype: np.dtype, alpha: float) -> Setting:
    """What a run's engine must be made for; draws the seed of dropout masks if there is none."""
    plan, state = run.plan, run.optimizer_state
    dropout, optimizer = None, None
    if state is not None:
        optimizer = state.optimizer
        if plan.dropout:
            seed = state.dropout_seed
            if seed is None:
                seed = run.random_state.randint(SEED_LIMIT)
                run.optimizer_state = replace(state, dropout_seed=seed)
            dropout = Dropout(plan.dropout, seed)
        run.batch_size = _batch_size(plan.batch_size, run.order.size)
    return Setting(
        network=run.network, dtype=dtype, objective=objective, dropout=dropout, alpha=alpha,
        optimizer=optimizer, batch_size=max(1, run.batch_size), **plan.execution,
    )  # fmt: skip


def load(run: Run, engine: Engine, samples: Samples) -> None:
    """Give an engine a run's samples, parameters and optimizer's state."""
    engine.load(samples)
    engine.set_parameters(run.parameters)
    state = run.optimizer_state
    if state is not None:
        state.require_size(run.network.n_parameters)
        engine.set_state(state.slots, state.step)
        run.learning_rate, run.n_steps, run.plateau = (
            state.learning_rate, state.step, state.plateau
        )  # fmt: skip
    run.engine, run.engine_info = engine, engine.info()


def unload(run: Run) -> None:
    """Take the optimizer's state from the engine."""
    if run.optimizer_state is not None:
        slots, step = run.engine.get_state()
        run.optimizer_state = replace(
            run.optimizer_state, slots=slots, step=step, learning_rate=run.learning_rate,
            plateau=run.plateau,
        )  # fmt: skip


def _batch_size(given: int | str, n_samples: int) -> int:
    if given == "auto":
        return min(200, n_samples)
    assert isinstance(given, int | np.integer)
    if given > n_samples:
        warnings.warn(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
        )
    return min(int(given), n_samples)
