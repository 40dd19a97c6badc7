"""Several runs of one fit, side by side, and which of them is the best."""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from fastmlp.engine import available_threads, capabilities
from fastmlp.training.hooks import Limit
from fastmlp.training.run import DivergedError

_POLL = 0.05  # seconds between two looks for Ctrl-C


def side_by_side(
    jobs: Sequence[Callable[[], Any]], limit: Limit, n_threads: int | None, device: str = "cpu"
) -> list[Any]:
    """Run trainings, at once as far as there are processors for them and the device gains by it.

    The first runs in any case; another that the limit leaves no time for is not started.

    Parameters
    ----------
    jobs : sequence of callable
    limit : Limit
        The one that the jobs obey: Ctrl-C ends them all, and is no reason to warn a second time.
    n_threads : int or None
        Most jobs at once; None means as many as `fastmlp.engine.available_threads`.
    device : {'cpu', 'cuda'}
        Where they train.

    Returns
    -------
    list
        What each job returned, or the DivergedError or KeyboardInterrupt that it raised.
    """

    def run(job: Callable[[], Any]) -> Any:
        if job is not jobs[0] and limit.reason():
            return DivergedError("There was no time left for it: raise max_time.")
        try:
            return job()
        except (DivergedError, KeyboardInterrupt) as error:
            return error

    if len(jobs) == 1:
        return [run(jobs[0])]
    n_at_once = min(available_threads(n_threads), len(jobs))
    if n_at_once == 1 or not capabilities(device).trains_side_by_side:
        return [run(job) for job in jobs]
    with ThreadPoolExecutor(n_at_once) as pool, limit.beside_threads() as heard:
        futures = [pool.submit(run, job) for job in jobs]
        while wait(futures, timeout=_POLL).not_done:
            if heard:
                limit.interrupt()  # again: a call that had not begun did not hear it
    if heard:
        warnings.warn("Training interrupted by user.")
    return [future.result() for future in futures]


def best_of(outcomes: Sequence[Any], scores: Callable[[int], float | None]) -> tuple[int, Any]:
    """Which run to keep.

    Parameters
    ----------
    outcomes : sequence
        Of `side_by_side`.
    scores : callable
        The score of the i-th run, which did not fail.

    Returns
    -------
    best : int
    scores : ndarray of shape (n_runs,)
        NaN for those that failed.

    Raises
    ------
    DivergedError, KeyboardInterrupt
        If all failed.
    """
    complete = set(succeeded(outcomes))
    found = np.array([scores(i) if i in complete else np.nan for i in range(len(outcomes))])
    if len(outcomes) == 1:
        return 0, found
    failed = [i not in complete for i in range(len(outcomes))]
    ranks = np.where(failed, -np.inf, np.nan_to_num(found, nan=-1e300))
    return int(np.argmax(ranks)), found


def succeeded(outcomes: Sequence[Any]) -> list[int]:
    """Which runs did not fail.

    Parameters
    ----------
    outcomes : sequence
        Of `side_by_side`.

    Raises
    ------
    DivergedError, KeyboardInterrupt
        If all failed.
    """
    found = [
        i for i, outcome in enumerate(outcomes)
        if not isinstance(outcome, DivergedError | KeyboardInterrupt)
    ]  # fmt: skip
    if not found:
        raise next((o for o in outcomes if isinstance(o, KeyboardInterrupt)), outcomes[0])
    return found
