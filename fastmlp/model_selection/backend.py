"""What stands between scikit-learn's search classes and those who run their fits.

scikit-learn hands every fit of a candidate on a split to joblib.  `Backend` is a joblib backend
that collects them and has them run as one job: in threads of this process
(`fastmlp.model_selection.threads`), or on the workers of a backend that the user has chosen
(`fastmlp.model_selection.workers`).  All the rest of a search stays scikit-learn's.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from joblib.parallel import ParallelBackendBase, get_active_backend, parallel_config
from sklearn import get_config

from fastmlp._sklearn import search_task
from fastmlp.engine import available_threads
from fastmlp.model_selection.folds import all_ours
from fastmlp.model_selection.survivors import Survivors
from fastmlp.model_selection.threads import Task, Threads, find_network
from fastmlp.model_selection.workers import Workers
from fastmlp.training.hooks import Limit

Batch = Callable[[], list[Any]]


def is_ours(search: Any) -> bool:
    """Whether a search is one for `Backend`; else it is scikit-learn's in every respect."""
    try:
        found = find_network(search.estimator)
    except (AttributeError, IndexError, TypeError, ValueError):  # for scikit-learn to complain of
        return False
    if found is None or found[1].device != "cpu" or search.n_jobs == 0:
        return False
    return not get_config()["array_api_dispatch"]


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


class Backend(ParallelBackendBase):
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
        self._max_time, self._limit = max_time, Limit(max_time)
        self._survivors = survivors
        found = find_network(estimator)
        assert found is not None
        self._prefix, self._network = found
        self._may_share = all_ours([estimator])
        self._runs: Threads | Workers = self._who_runs(n_jobs)
        self._waiting: list[Job] = []
        self._offer = contextlib.ExitStack()
        self._n_finished = 0
        self._model: dict[str, Any] = {}

    def _who_runs(self, n_jobs: int | None) -> Threads | Workers:
        backend, n_configured = get_active_backend()
        of_search = self._prefix, self._network, self._limit
        in_order = self._max_time is not None
        is_chosen = backend is get_active_backend()[0]  # else joblib makes one for each that asks
        if is_chosen and not getattr(backend, "uses_threads", False):
            if n_jobs is None:
                n_jobs = -1 if n_configured in (None, 1) else n_configured  # 1 is joblib's default
            return Workers(*of_search, backend, n_jobs, self._max_time)
        n_threads = available_threads(None) if n_jobs is None else effective_n_jobs(n_jobs)
        return Threads(*of_search, n_threads, backend.nesting_level or 0, in_order=in_order)

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
        return 2  # or more: a single one joblib would run itself

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
        places: list[Job] = []
        for job in jobs:
            assert job.batch is not None
            call = search_task(job.batch)
            if call is None:
                job.results = job.batch()
            else:
                tasks.append(Task(len(tasks), *call, may_share=self._may_share))
                places.append(job)
            job.batch = None  # only scores are kept
        if tasks:
            self._run_tasks(tasks, places)
        for job in jobs:
            if job.done is not None:
                job.done()

    def _run_tasks(self, tasks: list[Task], places: list[Job]) -> None:
        if self._survivors is not None:
            self._survivors.join(tasks, self._prefix, self._network)
        self._runs.run(tasks)
        for task in tasks:  # the error that comes first in the search's own order
            if task.error is not None:
                raise task.error
        self._warn_of_missing(tasks)
        finished = [task.result for task in tasks if task.result is not None]
        finished.sort(key=lambda result: bool(result["fit_error"]))
        self._model = (*finished, self._model)[0]
        for task, job in zip(tasks, places, strict=True):
            job.results = [_unfinished(self._model) if task.result is None else task.result]

    def _warn_of_missing(self, tasks: Sequence[Task]) -> None:
        """Say what there was no time for."""
        missing = {task.candidate for task in tasks if task.result is None}
        n_candidates = len({task.candidate for task in tasks})
        self._n_finished += n_candidates - len(missing)
        if not missing:
            return
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


def _unfinished(model: dict[str, Any]) -> dict[str, Any]:
    """A result of NaN, with the entries of another."""
    nothing = {
        key: dict.fromkeys(value, np.nan) if isinstance(value, dict) else np.nan
        for key, value in model.items()
    }
    return nothing | {"fit_error": None}
