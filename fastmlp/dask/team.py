"""Team: the workers of a fit, as the client's process sees them, and what is done when one dies."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import dask
import numpy as np
from distributed import Actor, CancelledError, Client, Future, wait

from fastmlp.dask.workers import Job, Nodes, Part, Shard, Sums, Survey, merge, survey

_GONE = (
    "The data are no longer on the cluster: it was closed, or a worker was lost that held what "
    "cannot be computed again (scattered data); start a cluster, or load them there, and fit again."
)
_POLL = 1.0  # seconds between two looks at where partitions are
_CLOSING = 10.0  # seconds to let go of them


class Lost(Exception):
    """A worker that somebody waited for is gone."""


class Team:
    """The workers of a fit, as long as they live, and others in their place.

    Parameters
    ----------
    client : Client
    timeout : float
        Seconds without any progress after which to give up.
    retries : int
        How often a lost worker may be replaced.
    """

    def __init__(self, client: Client, timeout: float, retries: int):
        self._client, self._timeout, self._retries = client, timeout, retries
        self._parts: list[Future] = []
        self._n_train = 0
        self._job: Job | None = None
        self._futures: list[Future] = []
        self._actors: dict[str, Any] = {}

    def gather(self, X: Any, y: Any, sample_weight: Any, *, of_classes: bool) -> list[Survey]:
        """Have partitions loaded where they are to stay, and tell what is in those with rows.

        The first call is for the data to train on, the second for those to validate with.
        """
        parts = self._client.compute([dask.delayed(Part)(*p) for p in _zip(X, y, sample_weight)])
        look = partial(survey, of_classes=of_classes)
        surveys = self._client.map(look, parts, pure=False)
        self._parts += parts  # at once, for `close`
        self._futures += surveys
        with _for_good():
            self._wait(surveys)
            found: list[Survey] = self._call(self._client.gather, surveys)
        kept = [part for part, one in zip(parts, found, strict=True) if one.n_rows]
        self._parts = self._parts[: -len(parts)] + kept
        self._n_train = self._n_train or len(kept)
        return [one for one in found if one.n_rows]

    def begin(self, job: Job) -> None:
        """Put an actor beside the partitions of each worker."""
        self._job = job
        self._replace_lost(lambda: None)

    @property
    def n_workers(self) -> int:
        return len(self._actors)

    def sum(self, kind: str, verb: str, *arguments: Any) -> Sums:
        """Sums over all partitions of `Shard.train` or `Shard.validate`; lost workers are replaced.

        Raises
        ------
        RuntimeError
            If too many workers were lost, or what they held cannot be had again.
        TimeoutError
            If a worker does not answer.
        """
        return self._replace_lost(lambda: self._ask(kind, verb, arguments))

    def close(self) -> None:
        """Let go of everything on the cluster."""
        futures = [*self._futures, *self._parts]
        self._actors, self._futures, self._parts = {}, [], []
        if self._client.status == "running":
            with suppress(Exception):  # the cluster may be closed at this moment
                self._call(self._client.cancel, futures, timeout=_CLOSING)

    # --- inside

    def _call(self, method: Any, futures: list[Future], timeout: float | None = None) -> Any:
        """Call a method of the client's, which would wait for the scheduler forever."""
        with self._losses():
            return self._client.sync(method, futures, callback_timeout=timeout or self._timeout)

    def _ask(self, kind: str, verb: str, arguments: tuple) -> Sums:
        assert self._job is not None
        n_leaves = self._n_train if kind == "train" else self._job.n_val or self._n_train
        end = time.monotonic() + self._timeout
        nodes: Nodes = {}
        with self._losses():
            calls = [getattr(actor, kind)(verb, *arguments) for actor in self._actors.values()]
            for call in calls:
                nodes = merge(nodes | self._answer(call, end), n_leaves)
        (sums,) = nodes.values()
        return sums

    def _answer(self, call: Any, end: float) -> Nodes:
        """An actor's answer, which never comes once the client is closed."""
        while True:
            try:
                answer: Nodes = call.result(timeout=_POLL)
                return answer
            except TimeoutError:
                if self._client.status != "running":
                    raise Lost from None
                if time.monotonic() > end:
                    raise

    @contextmanager
    def _losses(self) -> Iterator[None]:
        """Tell lost workers from slow ones and from errors of their own."""
        try:
            yield
        except TimeoutError as error:
            raise self._late() from error
        except (CancelledError, OSError) as error:
            raise Lost from error
        except Exception as error:
            is_loss = "Worker holding Actor was lost" in str(error)
            if self._client.status == "running" and not is_loss:
                raise
            raise Lost from error

    def _late(self) -> TimeoutError:
        return TimeoutError(
            f"The cluster did not answer for timeout={self._timeout} seconds; look at its "
            "dashboard, or raise timeout."
        )

    def _replace_lost(self, ask: Callable[[], Any]) -> Any:
        """Call until no worker is lost meanwhile."""
        while True:
            try:
                if not self._actors:
                    self._place()
                return ask()
            except Lost as error:
                self._actors = {}
                if self._client.status != "running":
                    raise RuntimeError(_GONE) from error
                if not self._retries:
                    raise RuntimeError(
                        "A worker was lost during fit, and no more may be (retries); give workers "
                        "more memory, or raise retries."
                    ) from error
                self._retries -= 1

    def _place(self) -> None:
        """Make actors where the partitions are."""
        self._call(self._client.cancel, self._futures)
        self._futures = []
        owners = self._owners()
        addresses = sorted(set(owners))
        self._futures = [self._submit(address, owners) for address in addresses]
        end = time.monotonic() + self._timeout
        for future in self._futures:
            self._wait_for_actor(future, owners, end)
        # not what a future's result is, which belongs to whatever client is the default
        self._actors = {
            address: Actor(Shard, address, future.key)
            for address, future in zip(addresses, self._futures, strict=True)
        }

    def _submit(self, address: str, owners: list[str]) -> Future:
        """Have the actor of one worker made."""
        mine = [i for i, owner in enumerate(owners) if owner == address]
        train = [i for i in mine if i < self._n_train]
        validate = [i - self._n_train for i in mine if i >= self._n_train]
        return self._client.submit(
            Shard, self._job, train, validate, *(self._parts[i] for i in mine),
            workers=[address], allow_other_workers=False, actor=True, pure=False,
        )  # fmt: skip

    def _wait_for_actor(self, future: Future, owners: list[str], end: float) -> None:
        """Wait until it is made, unless its partitions are no longer where they were."""
        while self._look([future]):
            holders = self._holders()
            if any(owner not in held for owner, held in zip(owners, holders, strict=True)):
                raise Lost
            if time.monotonic() > end:
                raise self._late()

    def _owners(self) -> list[str]:
        """A worker for each partition, one of those that have it."""
        end = time.monotonic() + self._timeout
        while True:
            with _for_good():
                self._wait(self._parts)
            holders = self._holders()
            if all(holders):
                break
            if time.monotonic() > end:
                raise self._late()
            time.sleep(0.1)
        load: dict[str, int] = {}
        owners = []
        for held in holders:
            owner = min(held, key=lambda address: (load.get(address, 0), address))
            load[owner] = load.get(owner, 0) + 1
            owners.append(owner)
        return owners

    def _holders(self) -> list[tuple[str, ...]]:
        """Who has each partition."""
        found = self._call(self._client.who_has, self._parts)
        return [tuple(found.get(part.key, ())) for part in self._parts]

    def _wait(self, futures: list[Future]) -> None:
        """Wait as long as there is progress."""
        end = time.monotonic() + self._timeout
        while futures:
            left = self._look(futures)
            if len(left) < len(futures):
                end = time.monotonic() + self._timeout
            elif time.monotonic() > end:
                raise self._late()
            futures = left

    def _look(self, futures: list[Future]) -> list[Future]:
        """Wait a little, and tell which are still to wait for; raises errors of the data."""
        with self._losses(), suppress(TimeoutError):
            wait(futures, min(_POLL, self._timeout))
        for future in futures:
            if future.cancelled():
                raise Lost
            if future.status == "error":
                future.result(timeout=self._timeout)
        return [future for future in futures if not future.done()]


@contextmanager
def _for_good() -> Iterator[None]:
    """What is lost here cannot be replaced."""
    try:
        yield
    except Lost as error:
        raise RuntimeError(_GONE) from error


def _zip(X: Any, y: Any, sample_weight: Any) -> Iterator[tuple]:
    """Delayed partitions of X, y and, if given, weights."""
    given = {"X": X, "y": y, "sample_weight": sample_weight}
    columns = {}
    for name, collection in given.items():
        if collection is None:
            continue
        if not hasattr(collection, "to_delayed"):
            raise TypeError(
                f"{name} must be a Dask array or a Dask frame, got {type(collection).__name__}; "
                "use dask.array.from_array, or MLPClassifier and MLPRegressor."
            )
        columns[name] = _partitions(collection, X)
    if len(set(map(len, columns.values()))) > 1:
        counts = ", ".join(f"{name} {len(parts)}" for name, parts in columns.items())
        raise ValueError(
            f"X, y and sample_weight must have the same partitions, got {counts}; rechunk or "
            "repartition them alike."
        )
    return zip(*columns.values(), strict=True)


def _partitions(collection: Any, X: Any) -> list:
    if not hasattr(collection, "chunks"):
        return list(collection.to_delayed())
    if collection.ndim == 2 and collection.numblocks[1] > 1:
        collection = collection.rechunk({1: -1})
    rows = getattr(X, "chunks", (None,))[0]
    if rows is None or np.isnan([*rows, *collection.chunks[0]]).any():
        return list(collection.to_delayed().ravel())
    if collection.chunks[0] != rows and sum(collection.chunks[0]) == sum(rows):
        collection = collection.rechunk({0: rows})
    return list(collection.to_delayed().ravel())
