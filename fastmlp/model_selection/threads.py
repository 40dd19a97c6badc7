"""How the fits of a search run: all in threads of this process, on shared data.

scikit-learn's search classes hand every fit of a candidate on a split to joblib.  `Threads` is a
joblib backend that collects them, orders them and runs them: kernels release the GIL, so nothing
has to be copied to other processes.  All the rest of a search stays scikit-learn's.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from joblib.parallel import ParallelBackendBase, get_active_backend, parallel_config
from sklearn import config_context, get_config
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import Pipeline

from fastmlp._sklearn import search_task
from fastmlp.engine import available_threads
from fastmlp.estimators import MLPClassifier, MLPRegressor
from fastmlp.model_selection.folds import Fold, Memory, may_share, size_of
from fastmlp.model_selection.survivors import Survivors
from fastmlp.training.hooks import LIMIT_OF_SEARCH, Limit

Batch = Callable[[], list[Any]]

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


def runs_in_threads(search: Any) -> bool:
    """Whether a search is one for `Threads`; else it is scikit-learn's in every respect."""
    try:
        found = find_network(search.estimator)
    except (AttributeError, IndexError, TypeError, ValueError):  # for scikit-learn to complain of
        return False
    if found is None or found[1].device != "cpu" or search.n_jobs == 0:
        return False
    backend = type(get_active_backend()[0]).__module__
    return backend == "joblib._parallel_backends" and not get_config()["array_api_dispatch"]


class Job:
    """What joblib wants to be run, and what came of it.

    Parameters
    ----------
    batch : callable
    done : callable
        To be called after it has run.
    """

    def __init__(self, batch: Batch, done: Callable[..., Any] | None):
        self.batch: Batch | None = batch
        self.done = done
        self.results: list[Any] = []


class Threads(ParallelBackendBase):
    """joblib backend of one search.

    Parameters
    ----------
    estimator : estimator
        That of the search.
    n_jobs : int or None
    max_time : float or None
        Seconds from now.
    survivors : Survivors or None
        Where candidates stand that go on in a later iteration.
    """

    supports_sharedmem = True
    uses_threads = True

    def __init__(
        self, estimator: Any, n_jobs: int | None, max_time: float | None,
        survivors: Survivors | None,
    ):  # fmt: skip
        super().__init__()
        self._n_threads = available_threads(None) if n_jobs is None else effective_n_jobs(n_jobs)
        self._nested = get_active_backend()[0].nesting_level or 0
        self._max_time, self._limit = max_time, Limit(max_time)
        self._survivors = survivors
        found = find_network(estimator)
        assert found is not None
        self._prefix, self._network = found
        self._may_share = may_share([estimator])
        self._waiting: list[Job] = []
        self._offer = contextlib.ExitStack()
        self._n_finished = 0
        self._model: dict[str, Any] = {}

    @contextlib.contextmanager
    def offered(self) -> Iterator[None]:
        """Be the backend of the next `joblib.Parallel` that is made, and of no other."""
        with self._offer:
            self._offer.enter_context(parallel_config(self))
            yield

    # --- what joblib asks

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        self._offer.close()
        parallel.pre_dispatch = "all"  # before the first is run
        return super().configure(n_jobs, parallel, **options)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        return max(2, self._n_threads)  # a single one joblib would run itself

    def submit(self, func: Batch, callback: Callable[..., Any] | None = None) -> Job:
        self._waiting.append(Job(func, callback))
        return self._waiting[-1]

    def retrieve_result(self, out: Job, timeout: float | None = None) -> list[Any]:
        while out.batch is not None:
            jobs, self._waiting = self._waiting, []
            self._run(jobs)
        return out.results

    # --- how it is done

    def _run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs; the results of what there was no time for are NaN."""
        tasks: list[Task] = []
        for job in jobs:
            assert job.batch is not None
            call = search_task(job.batch)
            if call is None:
                job.results = job.batch()
            else:
                tasks.append(Task(len(tasks), job, *call))
        if tasks:
            self._run_tasks(tasks)
        for job in jobs:
            job.batch = None
            if job.done is not None:
                job.done()

    def _run_tasks(self, tasks: list["Task"]) -> None:
        if self._survivors is not None:
            self._survivors.join(tasks, self._prefix, self._network)
        with self._limit.beside_threads():
            for group in self._groups(tasks):
                self._run_group(group)
        for task in tasks:  # the error that comes first in the search's own order
            if task.error is not None:
                raise task.error
        self._fill_in(tasks)

    def _groups(self, tasks: list["Task"]) -> Iterator[list["Task"]]:
        """Tasks in the order of work, in groups of which each must have ended before the next.

        The longest come first, so that no thread is left alone with one in the end; with a time
        limit, candidates are tried in their order.  If all that tasks share would be too much to
        keep, folds come one after the other, and so does preprocessing.
        """
        kinds = {task: task.preprocessing(self._prefix) for task in tasks}
        n_copies = len({(task.split, kind) for task, kind in kinds.items()})
        is_large = size_of(tasks[0].X) * n_copies > _MOST_BYTES
        if not (is_large and self._max_time):
            self._assign_folds(kinds if is_large else dict.fromkeys(tasks, ()))
        if self._max_time:
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

    def _assign_folds(self, kinds: dict["Task", tuple[Any, ...]]) -> None:
        """Give tasks of the same split the same fold, but those that run code of the user's."""
        folds: dict[tuple[int, int], Fold] = {}
        for task, kind in kinds.items():
            if not (self._may_share and may_share(task.parameters.values())):
                continue
            train, test = task.rows
            key = id(train), id(test)
            if key not in folds:
                folds[key] = Fold(task.X, task.y, train, test)
            task.fold, task.kind = folds[key], kind
            task.fold.expect(kind)

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
        if not self._nested and 2 * n_at_once <= available_threads(None):
            return contextlib.nullcontext()
        backend, n_jobs = self.get_nested_backend()
        return parallel_config(backend, n_jobs=n_jobs)

    def _fill_in(self, tasks: Sequence["Task"]) -> None:
        """Say what is missing."""
        missing = {task.candidate for task in tasks if task.result is None}
        n_candidates = len({task.candidate for task in tasks})
        self._n_finished += n_candidates - len(missing)
        if missing:
            if not self._n_finished and self._limit.interrupted:
                raise KeyboardInterrupt
            if not self._n_finished:
                raise ValueError(
                    f"max_time={self._max_time} seconds were over before a candidate was finished; "
                    "give the search more time, or its fits fewer epochs (max_iter)."
                )
            why = "Ctrl-C" if self._limit.interrupted else f"max_time={self._max_time}"
            warnings.warn(
                f"The search was ended by {why}: of {n_candidates} candidates, {len(missing)} are "
                "not finished, and their scores are NaN."
            )
        results = [task.result for task in tasks if task.result is not None]
        results.sort(key=lambda result: bool(result["fit_error"]))
        self._model = (*results, self._model)[0]
        for task in tasks:
            task.job.results = [_unfinished(self._model) if task.result is None else task.result]


class Task:
    """A candidate on a split.

    Parameters
    ----------
    number : int
        Its place in the search's order.
    job : Job
    function, arguments, keywords
        See `fastmlp._sklearn.search_task`.
    """

    def __init__(
        self, number: int, job: Job, function: Callable[..., dict[str, Any]],
        arguments: tuple[Any, ...], keywords: dict[str, Any],
    ):  # fmt: skip
        self.number, self.job = number, job
        self._function, self._keywords = function, keywords
        self.estimator, self.X, self.y = arguments
        self.parameters: dict[str, Any] = keywords["parameters"] or {}
        self.rows = keywords["train"], keywords["test"]
        self.split: int = keywords["split_progress"][0]
        self.candidate: int = keywords["candidate_progress"][0]
        self.fold: Fold | None = None
        self.kind: tuple[Any, ...] = ()
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
            self.estimator = self.job.batch = None  # only scores are kept
            if self.fold is not None:
                self.fold.leave(self.kind)

    def _fit_and_score(self) -> dict[str, Any]:
        if self.fold is None:
            return self._function(self.estimator, self.X, self.y, **self._keywords)
        _remember_steps(self.estimator, self.fold.memory(self.kind))
        rows = {"train": self.fold.train, "test": self.fold.test}
        return self._function(self.estimator, self.fold.X, self.fold.y, **self._keywords | rows)


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


def _unfinished(model: dict[str, Any]) -> dict[str, Any]:
    """A result of NaN, with the entries of another."""
    nothing = {
        key: dict.fromkeys(value, np.nan) if isinstance(value, dict) else np.nan
        for key, value in model.items()
    }
    return nothing | {"fit_error": None}
