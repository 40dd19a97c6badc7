"""What happens on the workers: partitions, each with an engine, and sums over them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from distributed import get_worker

from fastmlp._sklearn import SEED_LIMIT
from fastmlp.dropout import Dropout
from fastmlp.engine import get_engine, place
from fastmlp.estimators import Labels, Values, read_batch
from fastmlp.training.start import Setting

_GOLDEN = 0.6180339887498949

Sums = list[np.ndarray]
"""Arrays that are added up over partitions; none at all stand for zeros."""
Nodes = dict[tuple[int, int], Sums]
"""Sums by (level, place) in the tree over the partitions."""


def merge(nodes: Nodes, n_leaves: int) -> Nodes:
    """Add up neighbours in the tree, as far as both are there.

    A node without a neighbour, at the end of a level of odd length, moves up as it is.
    """
    nodes, level, length = dict(nodes), 0, n_leaves
    while length > 1:
        for left in sorted(i for at, i in nodes if at == level and i % 2 == 0):
            is_alone = left + 1 == length
            if is_alone or (level, left + 1) in nodes:
                one, other = nodes.pop((level, left)), nodes.pop((level, left + 1), [])
                nodes[level + 1, left // 2] = _add(one, other)
        level, length = level + 1, -(-length // 2)
    return nodes


def _add(one: Sums, other: Sums) -> Sums:
    if not (one and other):
        return one or other
    return [a + b for a, b in zip(one, other, strict=True)]


class Part(NamedTuple):
    """A partition as it lies on a worker."""

    X: Any
    y: Any
    sample_weight: Any = None


class Survey(NamedTuple):
    """What the client has to know of a partition before anything begins.

    Parameters
    ----------
    n_rows, n_columns : int
    target_shape : tuple
        Of one sample's target.
    weight : float
        Sum of the sample weights.
    classes, counts : ndarray
        Those that occur, and how often; empty for a regression.
    """

    n_rows: int
    n_columns: int
    target_shape: tuple[int, ...]
    weight: float
    classes: np.ndarray
    counts: np.ndarray


def survey(part: Part, *, of_classes: bool) -> Survey:
    """Look at a partition."""
    n_rows, n_columns = part.X.shape
    y = _targets_of(part)
    if len(y) != n_rows or (part.sample_weight is not None and len(part.sample_weight) != n_rows):
        raise ValueError(
            f"Partitions of X, y and sample_weight must have the same rows: one of X has {n_rows} "
            f"and its y {len(y)}; rechunk or repartition them alike."
        )
    weight = n_rows if part.sample_weight is None else np.sum(np.asarray(part.sample_weight))
    found = np.unique(y, return_counts=True) if of_classes and y.ndim == 1 else (y[:0], y[:0])
    return Survey(n_rows, n_columns, y.shape[1:], float(weight), *found)


def _targets_of(part: Part) -> np.ndarray:
    y = np.asarray(part.y)
    return y.ravel() if y.ndim == 2 and y.shape[1] == 1 else y


@dataclass(frozen=True)
class Job:
    """What workers have to know of a fit.

    Parameters
    ----------
    model : MLPClassifier or MLPRegressor
        It reads partitions; unfitted, but it knows features and classes.
    targets : Labels or Values
    setting : Setting
        Of the client's engine.
    class_weight : ndarray or None
        A weight for each class.
    seed : int
        Of whatever is drawn on workers.
    shuffle : bool
    n_held : tuple of int
        Rows of each partition that are set aside for validation.
    n_rows : tuple of int
        The others.
    n_val : int
        Partitions of a user's validation data.
    alone : bool
        Whether partitions make steps of their own.
    wants_loss : bool
        Whether validation needs the loss.
    """

    model: Any
    targets: Labels | Values
    setting: Setting
    class_weight: np.ndarray | None
    seed: int
    shuffle: bool
    n_held: tuple[int, ...]
    n_rows: tuple[int, ...]
    n_val: int
    alone: bool
    wants_loss: bool

    @property
    def n_parts(self) -> int:
        return len(self.n_rows)

    @cached_property
    def n_samples(self) -> int:
        return sum(self.n_rows)

    @cached_property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.n_samples // self.setting.batch_size)

    @property
    def has_validation(self) -> bool:
        return self.n_val > 0 or any(self.n_held)

    @cached_property
    def _rows_and_phases(self) -> np.ndarray:
        """Of each partition; phases are multiples of the golden ratio, in steps."""
        phases = np.arange(self.n_parts) * _GOLDEN % 1.0 * self.n_steps
        return np.array([self.n_rows, phases], np.int64)

    def first_row(self, part: Any, step: int) -> Any:
        """Where in the order of a partition, or of a slice of them, a step of an epoch begins.

        Shares are equal but for roundings.  Phases spread these over the steps, whatever the period
        in which large and small partitions alternate.
        """
        rows, phases = self._rows_and_phases[:, part]
        return (step * rows + phases) // self.n_steps

    def rows_of(self, step: int) -> int:
        """Rows of a step, of all partitions together."""
        every = slice(None)
        return int((self.first_row(every, step + 1) - self.first_row(every, step)).sum())

    def _share(self, part: int) -> float:
        """A partition's share of all rows."""
        return self.n_rows[part] / self.n_samples

    def batch_size(self, part: int) -> int:
        """Rows of a partition's own steps."""
        return max(1, round(self.setting.batch_size * self._share(part)))

    def read(self, part: Part) -> Any:
        """A partition's `fastmlp.estimators.Batch`; None if all its weights are zero."""
        y, weight = _targets_of(part), part.sample_weight
        if self.class_weight is not None:
            own = self.class_weight[np.searchsorted(self.model.classes_, y)]
            weight = own if weight is None else own * np.asarray(weight)
        if weight is not None:
            weight = np.asarray(weight).ravel()
            if not weight.any():
                return None
        return read_batch(self.model, part.X, y, weight)

    def engine(self, part: int, n_threads: int) -> Any:
        """An engine for a partition, with dropout of its own and its share of the penalty."""
        setting, dropout = self.setting, self.setting.dropout
        if dropout is not None:
            dropout = Dropout(dropout.rates, int(self.random(part).integers(SEED_LIMIT)))
        return get_engine(
            "cpu", setting.network, dtype=setting.dtype, objective=setting.objective,
            dropout=dropout, alpha=setting.alpha * self._share(part),
            optimizer=setting.optimizer if self.alone else None,
            batch_size=self.batch_size(part), n_threads=n_threads,
        )  # fmt: skip

    def random(self, *where: int) -> np.random.Generator:
        """Random numbers that belong to a partition, or to one of its epochs."""
        return np.random.default_rng([self.seed, *where])

    def place(self, batch: Any, rows: np.ndarray | None = None) -> Any:
        return place(
            "cpu", batch.X, batch.y, batch.weight, dtype=self.setting.dtype,
            objective=self.setting.objective, rows=rows,
        )  # fmt: skip


class Scored:
    """Validation data of one partition, and an engine for them."""

    def __init__(self, job: Job, batch: Any, rows: np.ndarray | None, engine: Any):
        self._job, self._engine = job, engine
        self._samples = job.place(batch, rows)
        chosen = slice(None) if rows is None else rows
        self._y = batch.y[chosen]
        self._weight = np.ones(len(self._y)) if batch.weight is None else batch.weight[chosen]

    @property
    def _total(self) -> float:
        return float(self._weight.sum(dtype=np.float64))

    def moments(self) -> Sums:
        """Sum of the weights, and weighted sums of the targets."""
        return [np.array([self._total]), self._weight @ self._y.astype(np.float64)]

    def squares(self, mean: np.ndarray) -> Sums:
        """Weighted squares of the targets' distances from their mean."""
        return [self._weight @ (self._y - mean) ** 2]

    def score(self, parameters: np.ndarray) -> Sums:
        """Sums of weights, losses, and of correct labels, or of each output's squared errors."""
        job, total = self._job, self._total
        if not total:
            return []
        self._engine.set_parameters(parameters)
        loss = self._engine.evaluate(self._samples) * total if job.wants_loss else np.nan
        outputs = self._engine.predict(self._samples).astype(np.float64)
        if isinstance(job.targets, Labels):
            correct = job.targets.score(outputs, self._y, self._weight) * total
            return [np.array([total, loss]), np.array([correct])]
        with np.errstate(over="ignore", invalid="ignore"):
            return [np.array([total, loss]), self._weight @ (self._y - outputs) ** 2]


class Trained:
    """The training rows of one partition, and an engine that is loaded with them."""

    def __init__(self, job: Job, part: int, batch: Any, kept: np.ndarray, n_threads: int):
        self._job, self._part, self._kept = job, part, kept
        self._samples = job.place(batch)
        self.engine = job.engine(part, n_threads)
        self.engine.load(self._samples)
        self._epoch, self._order = 0, kept

    def _rows(self, epoch: int, first: int, stop: int) -> np.ndarray:
        """Rows of the steps from ``first`` to ``stop`` of an epoch."""
        job, part = self._job, self._part
        if job.shuffle and epoch != self._epoch:
            self._epoch, self._order = epoch, job.random(part, epoch).permutation(self._kept)
        return self._order[job.first_row(part, first) : job.first_row(part, stop)]

    def sum_gradients(self, parameters: np.ndarray, n_steps: int, epoch: int, step: int) -> Sums:
        """Sums of losses and weights, and of gradients, of a step's rows."""
        rows = self._rows(epoch, step, step + 1)
        if not rows.size:
            return []
        self.engine.set_parameters(parameters)
        loss, weight, gradient = self.engine.sum_gradients(rows, n_steps)
        return [np.array([loss, weight]), gradient]

    def train_alone(
        self, parameters: np.ndarray, slots: np.ndarray, n_steps: int, epoch: int, first: int,
        rates: np.ndarray,
    ) -> Sums:  # fmt: skip
        """Steps of its own: sums of losses and weights, weighted parameters and state."""
        rows = self._rows(epoch, first, first + len(rates))
        weight = self._samples.weight_of(rows)
        if weight == 0:
            return []
        engine = self.engine
        engine.set_parameters(parameters)
        engine.set_state(slots, n_steps)
        own = -(-rows.size // self._job.batch_size(self._part))
        loss = engine.run_epoch(rows, rates[np.arange(own) * len(rates) // own])
        return [
            np.array([loss, weight]), engine.get_parameters() * weight,
            engine.get_state()[0] * weight,
        ]  # fmt: skip


class Shard:
    """Dask's actor on a worker: its partitions, each with an engine.

    Parameters
    ----------
    job : Job
    train, validate : list of int
        Numbers of the partitions.
    parts : Part
        The partitions to train on, and then those to validate with.
    """

    def __init__(self, job: Job, train: list[int], validate: list[int], *parts: Part):
        self._job = job
        self._n_threads = job.setting.n_threads or get_worker().state.nthreads
        # None where no row counts
        self._trained: dict[int, Trained | None] = dict.fromkeys(train)
        self._scored: dict[int, Scored | None] = dict.fromkeys(validate if job.n_val else train)
        for number, part in zip(train, parts, strict=False):
            self._take(number, job.read(part))
        for number, part in zip(validate, parts[len(train) :], strict=True):
            batch = job.read(part)
            if batch is not None:
                self._scored[number] = Scored(job, batch, None, job.engine(0, self._n_threads))

    def _take(self, number: int, batch: Any) -> None:
        if batch is None:
            return
        job = self._job
        rows, n_held = np.arange(len(batch.y)), job.n_held[number]
        if n_held:
            rows = job.random(number, 0, 0).permutation(rows)
        kept, held = np.sort(rows[n_held:]), np.sort(rows[:n_held])
        trained = self._trained[number] = Trained(job, number, batch, kept, self._n_threads)
        if n_held:
            self._scored[number] = Scored(job, batch, held, trained.engine)

    def train(self, verb: str, *arguments: Any) -> Nodes:
        """Sums of a verb of `Trained`, added up as far as neighbours are here."""
        return _ask(self._trained, self._job.n_parts, verb, arguments)

    def validate(self, verb: str, *arguments: Any) -> Nodes:
        """The same of `Scored`."""
        return _ask(self._scored, self._job.n_val or self._job.n_parts, verb, arguments)


def _ask(parts: dict[int, Any], n_leaves: int, verb: str, arguments: tuple) -> Nodes:
    nodes = {
        (0, number): [] if part is None else getattr(part, verb)(*arguments)
        for number, part in parts.items()
    }
    return merge(nodes, n_leaves)
