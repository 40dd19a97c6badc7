"""A cluster in the place of an engine and of validation data, for `fastmlp.training`."""

from typing import Any

import numpy as np

from fastmlp.dask.team import Team
from fastmlp.dask.workers import Job
from fastmlp.estimators import Labels, Values
from fastmlp.optimizers import N_SLOTS
from fastmlp.training.hooks import Hook
from fastmlp.training.run import Run


class ClusterEngine:
    """What `fastmlp.training.epochs.train` takes for an engine: a cluster, and one engine here.

    The engine here has parameters and optimizer, the workers have the samples.

    Parameters
    ----------
    team : Team
    job : Job
    every : int or None
        Steps between two averages; None means steps that all partitions share.
    """

    def __init__(self, team: Team, job: Job, every: int | None):
        self._team, self._job, self._every = team, job, every
        self._owner, optimizer = job.setting.make(), job.setting.optimizer
        self._averages = optimizer is not None and optimizer.ema_decay is not None
        self._epoch, self._stopping = 0, False

    def load(self, samples: Any) -> None:
        """The workers have them."""

    def info(self) -> dict[str, Any]:
        return self._owner.info() | {"n_workers": self._team.n_workers}

    def get_parameters(self) -> np.ndarray:
        return self._owner.get_parameters()

    def set_parameters(self, flat: np.ndarray) -> None:
        self._owner.set_parameters(flat)

    def get_state(self) -> tuple[np.ndarray, int]:
        return self._owner.get_state()

    def set_state(self, slots: np.ndarray, step: int) -> None:
        self._owner.set_state(slots, step)

    @property
    def n_steps(self) -> int:
        return self._owner.n_steps

    def stop(self) -> None:
        self._stopping = True

    def run_epoch(self, order: np.ndarray, learning_rates: np.ndarray) -> float:
        self._epoch, self._stopping = self._epoch + 1, False
        every, total = self._every or 1, 0.0
        for first in range(0, len(learning_rates), every):
            if self._stopping:
                raise KeyboardInterrupt
            rates = learning_rates[first : first + every]
            if self._every is None:
                total += self._share_step(first, rates)
            else:
                total += self._average(first, rates)
        return total

    def _share_step(self, step: int, rates: np.ndarray) -> float:
        owner = self._owner
        sums = self._team.sum(
            "train", "sum_gradients", self._trained(), owner.n_steps, self._epoch, step
        )
        if not sums:
            owner.apply_gradient(np.empty(0), 0.0, rates[0])
            return 0.0
        (loss, weight), gradient = sums
        penalty = owner.apply_gradient(gradient, float(weight), float(rates[0]))
        return float(loss / weight + penalty) * self._job.rows_of(step) if weight else 0.0

    def _average(self, first: int, rates: np.ndarray) -> float:
        owner, (slots, step) = self._owner, self._owner.get_state()
        sums = self._team.sum(
            "train", "train_alone", owner.get_parameters(), slots, step, self._epoch, first, rates
        )
        if sums:
            (loss, weight), parameters, slots = sums
            owner.set_parameters(parameters / weight)
            slots = slots / weight
        owner.set_state(slots, step + len(rates))
        return float(loss) if sums else 0.0

    def _trained(self) -> np.ndarray:
        """The parameters that are trained, and not their average."""
        if not self._averages:
            return self._owner.get_parameters()
        return self._owner.get_state()[0][N_SLOTS]


class ClusterValidation(Hook):
    """Judges parameters by data that are on the workers.

    Parameters
    ----------
    team : Team
    targets : Labels or Values
    scoring : None or 'loss'
    """

    def __init__(self, team: Team, targets: Labels | Values, scoring: str | None):
        self._team, self._scoring = team, scoring
        self._squares: np.ndarray | None = None
        if scoring is None and isinstance(targets, Values):
            total, sums = team.sum("validate", "moments")
            (self._squares,) = team.sum("validate", "squares", sums / total)

    def epoch_ends(self, run: Run) -> None:
        sums = self._team.sum("validate", "score", run.engine.get_parameters())
        if not sums:
            raise ValueError(
                "All validation samples have a weight of zero; give some a larger one."
            )
        (total, loss), found = sums
        run.validation_loss = float(loss / total)
        run.validation_score = self._score(found, total)
        if self._scoring == "loss":
            run.validation_score = -run.validation_loss

    def _score(self, found: np.ndarray, total: float) -> float:
        """Accuracy, or R^2 averaged over outputs."""
        if self._squares is None:
            return float(found[0] / total)
        if not np.isfinite(found).all():
            return float("nan")
        ratio = np.divide(found, self._squares, out=np.ones_like(found), where=self._squares != 0)
        return float(np.mean(np.where(found == 0, 1.0, 1.0 - ratio)))
