"""A fold of a search: its rows taken once, its preprocessing fitted once.

Whoever shares data must not change them: shared arrays are read-only, and only transformers of
scikit-learn's and fastmlp's own, which are known to keep to it, are given shared data.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import joblib
import numpy as np
from scipy import sparse
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags

from fastmlp._sklearn import safe_indexing

FitTransform = Callable[..., tuple[Any, Any]]

_OURS = ("sklearn", "fastmlp")


class Fold:
    """One split of the data, for tasks that fit and score on it.

    Parameters
    ----------
    X, y
        All rows, as a search has them.
    train, test : array-like
        Rows of the two parts.
    """

    def __init__(self, X: Any, y: Any, train: Any, test: Any):
        self._data = X, y
        self.train, self.test = np.asarray(train), np.asarray(test)
        self._lock = threading.Lock()
        self._n_tasks: Counter[Hashable] = Counter()
        self._memories: dict[Hashable, Memory] = {}
        self._take_nothing()

    def _take_nothing(self) -> None:
        X, y = self._data
        self._parts = Shared()
        self.X = Rows(X, self._parts)
        self.y = None if y is None else Rows(y, self._parts)

    def expect(self, kind: Hashable) -> None:
        """A task will come; those of a kind share preprocessing."""
        with self._lock:
            self._n_tasks[kind] += 1

    def memory(self, kind: Hashable) -> "Memory":
        """What tasks of a kind have made of the data."""
        with self._lock:
            if kind not in self._memories:
                self._memories[kind] = Memory(Shared(self._parts))
            return self._memories[kind]

    def leave(self, kind: Hashable) -> None:
        """A task has ended; what no other will need is dropped."""
        with self._lock:
            self._n_tasks[kind] -= 1
            if not self._n_tasks[kind]:
                self._memories.pop(kind, None)
            if not any(self._n_tasks.values()):
                self._take_nothing()


class Shared:
    """Arrays that several candidates use, known by their identity.

    Parameters
    ----------
    others : Shared, optional
        More of them.
    """

    def __init__(self, others: "Shared | None" = None) -> None:
        self._arrays: dict[int, Any] = {}
        self._others = others

    def add(self, array: Any) -> Any:
        """Make it read-only, as far as its type can be, and keep it."""
        for part in (array.data, array.indices) if _is_compressed(array) else (array,):
            if isinstance(part, np.ndarray):
                part.flags.writeable = False
        self._arrays[id(array)] = array
        return array

    def __contains__(self, array: Any) -> bool:
        if id(array) in self._arrays:
            return True
        return self._others is not None and array in self._others


class Rows:
    """Stands for an array where scikit-learn takes rows from it: the same rows are taken once.

    Parameters
    ----------
    array : array-like
    parts : Shared
        Where to keep what was taken.
    """

    def __init__(self, array: Any, parts: Shared):
        self._array, self._parts = array, parts
        self._lock = threading.Lock()
        self._taken: dict[int, tuple[Any, Any]] = {}
        self.shape = getattr(array, "shape", None) or (len(array),)

    @property
    def iloc(self) -> "Rows":
        """What a frame has: scikit-learn asks it for rows without a long look at what it is."""
        return self

    loc = iloc

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: np.ndarray) -> Any:
        return self.take(rows)

    def take(self, rows: np.ndarray, axis: int = 0) -> Any:
        """The rows."""
        with self._lock:
            if id(rows) not in self._taken:
                part = self._parts.add(safe_indexing(self._array, rows))
                self._taken[id(rows)] = rows, part
            return self._taken[id(rows)][1]


class Memory:
    """``memory`` of a `sklearn.pipeline.Pipeline`: steps that were fitted on this fold already.

    Parameters
    ----------
    parts : Shared
        The data of the fold.  Steps are looked up that are fitted on these, or on what such steps
        made of them.
    """

    def __init__(self, parts: Shared):
        self._parts = parts
        self._lock = threading.Lock()
        self._steps: list[_Step] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Memory":
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()  # a pickled pipeline has no memory

    def cache(self, function: FitTransform, ignore: Any = None) -> FitTransform:
        """What a pipeline asks for: ``function`` that fits a step and transforms, with memory."""

        def fit_transform(transformer: Any, X: Any, y: Any, **options: Any) -> tuple[Any, Any]:
            step = self._find(transformer, X, y, options)
            if step is None:
                return function(transformer, X, y, **options)
            with step.lock:
                if step.fitted is None:
                    outputs, fitted = function(transformer, X, y, **options)
                    step.outputs = self._parts.add(outputs)
                    step.fitted = _transforming_once(fitted, self._parts)
            return step.outputs, step.fitted

        return fit_transform

    def _find(self, transformer: Any, X: Any, y: Any, options: dict[str, Any]) -> "_Step | None":
        """The step, new or known; None if it is not to be shared."""
        own_data = any((options.get("params") or {}).values())
        if own_data or options.get("message") or X not in self._parts:
            return None
        name = _description(transformer)
        if name is None:
            return None
        with self._lock:
            for step in self._steps:
                if step.name == name and step.X is X and _is_same(step.y, y):
                    return step
            self._steps.append(_Step(name, X, y))
            return self._steps[-1]


class _Step:
    """A transformer with its parameters, and what it is fitted on."""

    def __init__(self, name: str, X: Any, y: Any):
        self.name, self.X, self.y = name, X, y
        self.lock = threading.Lock()
        self.outputs: Any = None
        self.fitted: Any = None


def _transforming_once(fitted: Any, parts: Shared) -> Any:
    """``fitted``, whose ``transform`` remembers what it made of the fold's data."""
    transform, lock = fitted.transform, threading.Lock()
    made: dict[int, Any] = {}

    def transform_once(X: Any, **options: Any) -> Any:
        if options or X not in parts:
            return transform(X, **options)
        with lock:
            if id(X) not in made:
                made[id(X)] = parts.add(transform(X))
            return made[id(X)]

    fitted.transform = transform_once
    return fitted


def _description(transformer: Any) -> str | None:
    """The same for equal transformers; None if they would not do the same."""
    for part in estimators_in([transformer]):
        if get_tags(part).non_deterministic or getattr(part, "random_state", 0) is None:
            return None
    try:
        return str(joblib.hash(transformer))
    except Exception:  # whatever a parameter raises that cannot be pickled
        return None


def _is_same(y: Any, other: Any) -> bool:
    """Whether targets are equal; a target transformer makes them anew for each candidate."""
    if y is other:
        return True
    arrays = isinstance(y, np.ndarray) and isinstance(other, np.ndarray)
    return arrays and y.dtype == other.dtype and np.array_equal(y, other)


def _is_compressed(array: Any) -> bool:
    return sparse.issparse(array) and array.format in ("csr", "csc")


def size_of(X: Any) -> float:
    """Bytes of a data set; infinite if its type does not tell."""
    if _is_compressed(X):
        return float(X.data.nbytes + X.indices.nbytes + X.indptr.nbytes)
    if hasattr(X, "memory_usage"):
        return float(X.memory_usage(index=True, deep=True).sum())
    return float(getattr(X, "nbytes", np.inf))


def all_ours(values: Iterable[Any]) -> bool:
    """Whether no estimator among ``values`` or inside of them is a user's code."""
    return all(
        type(part).__module__.partition(".")[0] in _OURS
        and not isinstance(part, FunctionTransformer)
        for part in estimators_in(values)
    )


def estimators_in(values: Iterable[Any]) -> Iterable[Any]:
    """All estimators among ``values``, in lists of them, and in their parameters."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from estimators_in(value)
        elif hasattr(value, "get_params") and not isinstance(value, type):
            yield value
            yield from estimators_in(value.get_params(deep=False).values())
