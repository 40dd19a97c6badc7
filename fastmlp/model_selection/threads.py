"""How the fits of a search run: in threads of this process, on shared data.

Kernels release the GIL, so nothing has to be copied to other processes.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any, Protocol

import numpy as np
from joblib.parallel import SequentialBackend, ThreadingBackend, parallel_config
from sklearn import config_context, get_config
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import Pipeline

from fastmlp.engine import available_threads
from fastmlp.estimators import MLPClassifier, MLPRegressor
from fastmlp.model_selection.folds import Fold, Memory, all_ours, size_of
from fastmlp.training.checkpoint import KeptFit
from fastmlp.training.hooks import LIMIT_OF_SEARCH, Limit

_MOST_BYTES = 2**26  # of all folds, to be kept until the end of a search
_POLL = 0.1  # seconds between two looks for Ctrl-C


def find_network(estimator: Any) -> tuple[str, Any] | None:
    """The MLP that an estimator ends in, with the prefix of its parameters; None if it does not.

    Parameters
    ----------
    estimator : estimator
        An MLP of fastmlp's, or pipelines and transformed targets around one.
    """
    prefix = ""
    while type(estimator) in (Pipeline, TransformedTargetRegressor):
        if type(estimator) is Pipeline:
            name, estimator = estimator.steps[-1]
        else:
            name, estimator = "regressor", estimator.regressor
        prefix += f"{name}__"
    return (prefix, estimator) if type(estimator) in (MLPClassifier, MLPRegressor) else None


class Folds(Protocol):
    """Folds by the number of the split."""

    def setdefault(self, split: int, fold: Fold, /) -> Fold: ...


class Threads:
    """Runs the tasks of a search.

    Parameters
    ----------
    prefix, network
        See `find_network`; of the search's estimator.
    limit : Limit
        Ends all.
    n_threads : int
        Models at once.
    level : int
        How many of joblib's backends are around this one; none means that processors which are to
        spare may be used.
    in_order : bool
        Whether candidates are tried in their order, for there may not be time for all.
    """

    def __init__(
        self, prefix: str, network: Any, limit: Limit, n_threads: int, level: int, *,
        in_order: bool,
    ):  # fmt: skip
        self._prefix, self._network, self._limit = prefix, network, limit
        self._n_threads, self._level, self._in_order = n_threads, level, in_order

    def run(self, tasks: Sequence["Task"], folds: Folds | None = None) -> None:
        """Run tasks, each of which keeps its result or its error.

        Parameters
        ----------
        tasks : sequence of Task
        folds : mapping, optional
            Folds that others use as well, by the number of the split.
        """
        with self._limit.beside_threads():
            for group in self._groups(tasks, {} if folds is None else folds):
                self._run_group(group)

    def _groups(self, tasks: Sequence["Task"], folds: Folds) -> Iterator[Sequence["Task"]]:
        """Tasks in the order of work, in groups of which each must have ended before the next.

        The longest come first, so that no thread is left alone with one in the end; with a time
        limit, candidates are tried in their order.  If all that tasks share would be too much to
        keep, folds come one after the other, and so does preprocessing.
        """
        kinds = {task: task.preprocessing(self._prefix) for task in tasks}
        n_copies = len({(task.split, kind) for task, kind in kinds.items()})
        is_large = size_of(tasks[0].X) * n_copies > _MOST_BYTES
        if not (is_large and self._in_order):
            _assign_folds(kinds if is_large else dict.fromkeys(tasks, ()), folds)
        if self._in_order:
            yield tasks
            return
        ordered = sorted(tasks, key=lambda task: -task.cost(self._prefix, self._network))
        if not is_large:
            yield ordered
            return
        first = {kind: i for i, kind in reversed(list(enumerate(kinds.values())))}
        ordered.sort(key=lambda task: first[kinds[task]])
        for split in sorted({task.split for task in tasks}):
            yield [task for task in ordered if task.split == split]

    def _run_group(self, tasks: Sequence["Task"]) -> None:
        """Run tasks in threads; after one that failed, only those that come before it."""
        queue, lock, config = iter(tasks), threading.Lock(), get_config()
        first_failed = np.inf
        n_at_once = min(self._n_threads, len(tasks))

        def take() -> Task | None:
            with lock:
                return next(queue, None)

        def work() -> None:
            nonlocal first_failed
            LIMIT_OF_SEARCH.set(self._limit)
            with config_context(**config), self._inside(n_at_once):
                while (task := take()) is not None:
                    if task.number < first_failed:
                        task.run(self._limit)
                    if task.error is not None:
                        first_failed = min(first_failed, task.number)

        threads = [
            threading.Thread(target=copy_context().run, args=(work,), name="fastmlp", daemon=True)
            for _ in range(n_at_once)
        ]
        with warnings.catch_warnings():  # threads that use it are not good at putting things back
            _run_to_the_end(threads, self._limit)

    def _inside(self, n_at_once: int) -> Any:
        """Where a thread's fits run: in one thread each, unless there are processors to spare."""
        if not self._level and 2 * n_at_once <= available_threads(None):
            return contextlib.nullcontext()
        kind = SequentialBackend if self._level else ThreadingBackend
        return parallel_config(kind(nesting_level=self._level + 1))


def _assign_folds(kinds: dict["Task", tuple[Any, ...]], folds: Folds) -> None:
    """Give tasks of the same split the same fold, but those that run code of the user's."""
    for task, kind in kinds.items():
        if not task.may_share:
            continue
        task.fold = folds.setdefault(task.split, Fold(task.X, task.y, *task.rows))
        task.kind = kind
        task.fold.expect(kind)


class Task:
    """A candidate on a split.

    Parameters
    ----------
    number : int
        Its place in the search's order.
    function, arguments, keywords
        See `fastmlp._sklearn.search_task`.
    may_share : bool
        Whether the estimator can be trusted with data that others use.
    """

    def __init__(
        self, number: int, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...],
        keywords: dict[str, Any], *, may_share: bool,
    ):  # fmt: skip
        self.number = number
        self.function, self.keywords = function, keywords
        self.estimator, self.X, self.y = arguments
        self.parameters: dict[str, Any] = keywords["parameters"] or {}
        self.rows = keywords["train"], keywords["test"]
        self.split: int = keywords["split_progress"][0]
        self.candidate: int = keywords["candidate_progress"][0]
        self.may_share = may_share and all_ours(self.parameters.values())
        self.fold: Fold | None = None
        self.kind: tuple[Any, ...] = ()
        self.kept: KeptFit | None = None
        self.result: dict[str, Any] | None = None
        self.error: BaseException | None = None

    def setting(self, name: str, prefix: str, network: Any) -> Any:
        """The value of a parameter of the MLP's."""
        return self.parameters.get(prefix + name, getattr(network, name))

    def network(self) -> Any:
        """The MLP that will be fitted, unless a parameter replaces it."""
        found = find_network(self.estimator)
        assert found is not None
        return found[1]

    def preprocessing(self, prefix: str) -> tuple[Any, ...]:
        """The parameters that are not the MLP's; the same for tasks that might share it."""
        return tuple(
            (name, id(value))
            for name, value in sorted(self.parameters.items())
            if not name.startswith(prefix)
        )

    def cost(self, prefix: str, network: Any) -> float:
        """Parameters times samples times epochs, about."""
        try:
            hidden = np.atleast_1d(self.setting("hidden_layer_sizes", prefix, network))
            n_features = self.X.shape[1]
            widths = np.array([n_features, *hidden.astype(float), 1.0])
            epochs = float(self.setting("max_iter", prefix, network))
            return float((widths[:-1] * widths[1:]).sum()) * len(self.rows[0]) * epochs
        except (AttributeError, IndexError, TypeError, ValueError):  # for `fit` to complain of
            return 0.0

    def run(self, limit: Limit) -> None:
        """Fit and score, unless there is no time left; what was cut short does not count."""
        if limit.reason() is not None:
            return
        try:
            result = self._fit_and_score()
            if limit.reason() is None:
                self.result = result
        except BaseException as error:
            if limit.reason() is None:
                self.error = error
        finally:
            self.estimator = None  # only scores are kept
            if self.fold is not None:
                self.fold.leave(self.kind)

    def _fit_and_score(self) -> dict[str, Any]:
        if self.fold is None:
            return self.function(self.estimator, self.X, self.y, **self.keywords)
        _remember_steps(self.estimator, self.fold.memory(self.kind))
        rows = {"train": self.fold.train, "test": self.fold.test}
        return self.function(self.estimator, self.fold.X, self.fold.y, **self.keywords | rows)


def _remember_steps(estimator: Any, memory: Memory) -> None:
    """Give pipelines that have no memory of their own that of a fold."""
    while type(estimator) in (Pipeline, TransformedTargetRegressor):
        if type(estimator) is TransformedTargetRegressor:
            estimator = estimator.regressor
            continue
        if estimator.memory is None:
            estimator.memory = memory
        estimator = estimator.steps[-1][1]


def _run_to_the_end(threads: Sequence[threading.Thread], limit: Limit) -> None:
    """Run threads until all have ended, which Ctrl-C tells them to do soon."""
    for thread in threads:
        thread.start()
    while running := [thread for thread in threads if thread.is_alive()]:
        running[0].join(_POLL)
        if limit.interrupted:
            limit.interrupt()  # again: a call that had not begun did not hear it
