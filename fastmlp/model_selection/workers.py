"""How the fits of a search run on the workers of a joblib backend: Dask's, Ray's, other processes.

scikit-learn hands such a backend every fit by itself.  Here a worker gets a `Group`: runs that
share a fold, whose rows it takes once and for which it fits preprocessing once.  Groups are made by
guided self-scheduling (Polychronopoulos and Kuck, 1987): each is at most an equal share of the work
that is left, so the first ones are whole folds, and the last ones so small that all workers end at
about the same time.  A group occupies one of the backend's slots; those that run in one process at
the same time share their folds.

joblib's Dask backend leaves large arguments on one worker, and cannot go on when that one dies.  So
Dask is asked directly: it reruns the groups of a worker that dies, and data that died with it are
handed out anew.  Other backends get the groups through `joblib.Parallel`.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from fastmlp._sklearn import Parallel, delayed, with_config
from fastmlp.model_selection.folds import Fold
from fastmlp.model_selection.threads import Task, Threads
from fastmlp.training.checkpoint import KeptFit
from fastmlp.training.hooks import Limit

_MOST_GROUPS = 8  # for each slot, if all were as small as they may get
_MOST_LOSSES = 5  # of the data, before a search on Dask gives up
_POLL = 1.0  # seconds between two looks for whether somebody waits for the outcome

Outcome = tuple[dict[str, Any] | None, BaseException | None, KeptFit | None]
"""A task's result, its error, and where it stands, if it may go on later."""


class Group(NamedTuple):
    """Runs that one worker gets.

    Parameters
    ----------
    search : str
        Different for each search.
    prefix, network
        See `fastmlp.model_selection.threads.find_network`.
    end : float or None
        When to stop, by the clock.
    calls : list of tuple
        Number, function, estimator, keywords, ``may_share`` and ``kept`` of each `Task`.
    """

    search: str
    prefix: str
    network: Any
    end: float | None
    calls: list[tuple[Any, ...]]


class Workers:
    """Runs the tasks of a search on workers.

    Parameters
    ----------
    prefix, network, limit
        See `fastmlp.model_selection.threads.Threads`.
    backend : joblib.parallel.ParallelBackendBase
        That is active.
    n_jobs : int
        How many of its slots to use; Dask uses them all.
    max_time : float or None
        Seconds from now, by the clocks of all machines.
    """

    def __init__(
        self, prefix: str, network: Any, limit: Limit, backend: Any, n_jobs: int,
        max_time: float | None,
    ):  # fmt: skip
        self._prefix, self._network, self._limit = prefix, network, limit
        self._backend, self._n_jobs = backend, n_jobs
        self._end = None if max_time is None else time.time() + max_time

    def run(self, tasks: Sequence[Task]) -> None:
        """Run tasks, each of which keeps its result or its error."""
        with Parallel(self._n_jobs, pre_dispatch="all", batch_size=1) as parallel:
            n_slots = max(1, self._backend.effective_n_jobs(self._n_jobs))
            pieces = self._pieces(tasks, n_slots)
            is_dask = type(self._backend).__module__ == "joblib._dask"
            hand_out = _by_dask if is_dask else _by_joblib
            data, first_failed = (tasks[0].X, tasks[0].y), np.inf
            waiting = dict(enumerate(pieces))
            try:
                for i, outcomes in hand_out(parallel, self._backend, data, self._groups(pieces)):
                    for task, outcome in zip(waiting.pop(i), outcomes, strict=True):
                        task.result, task.error, kept = outcome
                        if task.kept is not None and kept is not None:
                            task.kept.go_on_as(kept)
                        if task.error is not None:
                            first_failed = min(first_failed, task.number)
                    if all(t.number > first_failed for piece in waiting.values() for t in piece):
                        break
            except KeyboardInterrupt:
                self._limit.interrupted = True

    def _groups(self, pieces: Sequence[Sequence[Task]]) -> list[Group]:
        search = uuid.uuid4().hex
        calls = [
            [(t.number, t.function, t.estimator, t.keywords, t.may_share, t.kept) for t in piece]
            for piece in pieces
        ]
        return [Group(search, self._prefix, self._network, self._end, part) for part in calls]

    def _pieces(self, tasks: Sequence[Task], n_slots: int) -> list[list[Task]]:
        """Tasks for a group each, in the order in which to hand them out."""
        costs = {task: task.cost(self._prefix, self._network) + 1.0 for task in tasks}
        left = sum(costs.values())
        least = left / (_MOST_GROUPS * n_slots)
        pieces: list[list[Task]] = []
        for unit in self._units(costs, least):
            piece, cost = unit[:1], costs[unit[0]]
            for task in unit[1:]:
                if cost + costs[task] > 1.001 * max(least, left / n_slots):
                    pieces.append(piece)
                    left, piece, cost = left - cost, [], 0.0
                piece.append(task)
                cost += costs[task]
            pieces.append(piece)
            left -= cost
        return pieces

    def _units(self, costs: dict[Task, float], least: float) -> list[list[Task]]:
        """What shares a fold and preprocessing, the longest first.

        With a time limit, candidates come in their order, some of them on each fold.
        """
        units: dict[tuple[Any, ...], list[Task]] = {}
        done = dict.fromkeys((task.split for task in costs), 0.0)
        for task, cost in costs.items():
            key: tuple[Any, ...] = task.split, task.preprocessing(self._prefix)
            if self._end is not None:
                done[task.split] += cost
                key = done[task.split] // least, task.split
            units.setdefault(key, []).append(task)
        if self._end is not None:
            return [units[key] for key in sorted(units)]
        return sorted(units.values(), key=lambda unit: -sum(costs[task] for task in unit))


# --- how groups get to workers, and outcomes back


def _by_joblib(
    parallel: Any, backend: Any, data: tuple[Any, Any], groups: Sequence[Group]
) -> Iterator[tuple[int, list[Outcome]]]:
    yield from enumerate(parallel(delayed(run_group)(*data, group) for group in groups))


def _by_dask(
    parallel: Any, backend: Any, data: tuple[Any, Any], groups: Sequence[Group]
) -> Iterator[tuple[int, list[Outcome]]]:
    from distributed import CancelledError, as_completed

    client, call = backend.client, with_config(delayed(_run_on_dask)(*data)[0])
    waiting = dict(enumerate(groups))
    with backend.retrieval_context():  # a search inside of a Dask task gives up its slot
        for _ in range(_MOST_LOSSES):
            there = client.scatter(list(data), hash=False)
            futures = {
                client.submit(call, *there, group, pure=False, **backend.submit_kwargs): i
                for i, group in waiting.items()
            }
            try:
                for future in as_completed(futures):
                    try:
                        outcomes = future.result()
                    except CancelledError:  # the data are lost
                        continue
                    waiting.pop(futures[future])
                    yield futures[future], outcomes
            finally:
                client.cancel(list(futures))
            if not waiting:
                return
    raise RuntimeError(
        f"The data of a search were lost {_MOST_LOSSES} times, with all of Dask's workers that "
        "held them; give the workers more memory, or look into their logs."
    )


# --- on a worker

_FOLDS: WeakValueDictionary[tuple[str, int], Fold] = WeakValueDictionary()
"""Of the groups that run now in this process, by search and number."""
_FOLDS_LOCK = threading.Lock()


class _Folds:
    """The folds of one search among `_FOLDS`."""

    def __init__(self, search: str):
        self._search = search

    def setdefault(self, split: int, fold: Fold) -> Fold:
        with _FOLDS_LOCK:
            return _FOLDS.setdefault((self._search, split), fold)


class _LimitOnWorker(Limit):
    """Ends training when nobody waits for it any more.

    Parameters
    ----------
    max_time : float or None
        Seconds from now.
    is_wanted : callable
    """

    def __init__(self, max_time: float | None, is_wanted: Callable[[], bool]):
        super().__init__(max_time)
        self._is_wanted, self._next_look = is_wanted, 0.0

    def reason(self) -> str | None:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _POLL
            self.interrupted = self.interrupted or not self._is_wanted()
        return super().reason()


def run_group(
    X: Any, y: Any, group: Group, is_wanted: Callable[[], bool] = lambda: True
) -> list[Outcome]:
    """Run a group's tasks, one after the other."""
    tasks = [
        Task(number, function, (estimator, X, y), keywords, may_share=may_share)
        for number, function, estimator, keywords, may_share, _ in group.calls
    ]
    max_time = None if group.end is None else group.end - time.time()
    limit = _LimitOnWorker(max_time, is_wanted)
    in_order = max_time is not None
    threads = Threads(group.prefix, group.network, limit, 1, 1, in_order=in_order)
    threads.run(tasks, _Folds(group.search))
    kept = [call[-1] for call in group.calls]
    return [(task.result, task.error, one) for task, one in zip(tasks, kept, strict=True)]


def _run_on_dask(X: Any, y: Any, group: Group) -> list[Outcome]:
    """The same until Dask forgets of it."""
    from distributed import get_worker

    worker = get_worker()
    known, key = worker.state.tasks, worker.get_current_task()
    return run_group(X, y, group, lambda: key in known and known[key].state == "executing")
