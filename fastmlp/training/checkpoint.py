"""Checkpoints of a fit: what a killed one needs to go on to the bits of an uninterrupted one.

A fit is a function of its arguments and of the state of its random numbers at the beginning.  So a
checkpoint holds that state, from which the next fit repeats initial weights and validation split;
a description of the arguments, by which it sees whether they are the same; and for every restart
its `Run`, optimizer, sample order and random numbers at the end of an epoch.  Nothing is
written in the middle of one: after Ctrl-C the file is that of the last epoch that was written.
"""

import json
import os
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from fastmlp import _safetensors
from fastmlp._json import decode, encode
from fastmlp._json import read as read_json
from fastmlp.optimizers import COUNT_LIMIT
from fastmlp.training.hooks import Hook
from fastmlp.training.run import HISTORY, Run

_FORMAT = "fastmlp checkpoint 1"
_COUNTERS = ("n_iter", "n_steps", "n_samples_seen", "no_improvement_count")
_NUMBERS = ("learning_rate", "loss", "best_loss", "best_validation_score")
_ENDS = ("converged", "callback", "diverged")
_PAUSES = ("interrupted", "max_time", "max_iter")  # another call may go on from these
_ROWS = 1000  # of X that a checksum looks at


class State(NamedTuple):
    """Where a training run stands: what JSON can hold, and arrays."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Checkpoint:
    """The checkpoint file of one fit.

    Parameters
    ----------
    path : str or path-like
    every : float
        Seconds between two writes.
    resume : bool
        Whether to go on from the file, if there is one.

    Raises
    ------
    ValueError
        If the file could not be written, or is no checkpoint.
    """

    def __init__(self, path: Any, every: float, resume: bool):
        self._path, self._every = Path(path), every
        self._lock = threading.Lock()
        self._found: State | None = None
        self._beginning: dict[str, Any] = {}
        self._runs: list[State | None] = []
        folder = self._path.parent
        if self._path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(
                f"checkpoint={os.fspath(path)!r} cannot be written; give the path of a file in a "
                "folder that exists and may be written to."
            )
        if resume and self._path.exists():
            try:
                arrays, metadata = _safetensors.read(self._path)
            except ValueError as error:
                raise self.unusable(f"cannot be read ({error})") from error
            if metadata.get("format") != _FORMAT:
                raise self.unusable("is not a checkpoint that this version of fastmlp can read")
            with self.sense():
                self._found = State(dict(read_json(metadata["fit"])), arrays)

    @contextmanager
    def sense(self) -> Iterator[None]:
        """A file with contents that nobody writes gives one kind of error."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self.unusable(f"makes no sense ({error!r})") from error

    def unusable(self, why: str) -> ValueError:
        return ValueError(
            f"checkpoint={os.fspath(self._path)!r} {why}; give another path, or fit with "
            "resume=False."
        )

    def random_state(self, given: np.random.RandomState) -> np.random.RandomState:
        """Random numbers as they were at the beginning of the fit."""
        if self._found is not None:
            if given is np.random.mtrand._rand:  # NumPy's global one is not ours to set back
                given = np.random.RandomState()
            with self.sense():
                _set_random_state(given, self._found)
        self._beginning = {"random_state": _random_state(given)}
        return given

    def hooks(self, arguments: dict[str, str], n_runs: int, max_iter: int) -> list["RunCheckpoint"]:
        """One for each restart, after a look at what the file belongs to.

        Parameters
        ----------
        arguments : dict of str to str
            The fit's arguments in words, by name.
        n_runs, max_iter : int

        Raises
        ------
        ValueError
            If the file is of a fit with other arguments.
        """
        self._beginning["arguments"] = arguments
        self._runs = [None] * n_runs
        if self._found is not None:
            with self.sense():
                before = self._found.values["arguments"]
                differ = [name for name, words in arguments.items() if before.get(name) != words]
                self._runs = [] if differ else [self._find(i) for i in range(n_runs)]
            if differ:
                raise self.unusable(f"is of a fit with other values of {', '.join(differ)}")
        return [RunCheckpoint(self, i, self._every, max_iter) for i in range(n_runs)]

    def _find(self, i: int) -> State | None:
        assert self._found is not None
        values = self._found.values["runs"][i]
        arrays = {
            name.removeprefix(f"{i}."): array
            for name, array in self._found.arrays.items()
            if name.startswith(f"{i}.")
        }
        return None if values is None else State(values, arrays)

    def state(self, i: int) -> State | None:
        """Where a restart was when it was last written."""
        return self._runs[i]

    def write(self, i: int, state: State) -> None:
        """Write a restart's state, with the last known one of the others."""
        with self._lock:
            self._runs[i] = state
            values = self._beginning | {"runs": [run and run.values for run in self._runs]}
            arrays = {
                f"{i}.{name}": array
                for i, run in enumerate(self._runs)
                if run is not None
                for name, array in run.arrays.items()
            }
            self._keep(State(values, arrays))

    def _keep(self, fit: State) -> None:
        metadata = {"format": _FORMAT, "fit": json.dumps(fit.values)}
        try:
            _safetensors.write(self._path, fit.arrays, metadata)
        except OSError as error:
            warnings.warn(
                f"checkpoint={os.fspath(self._path)!r} could not be written, training goes on: "
                f"{error}."
            )


class KeptFit(Checkpoint, os.PathLike):
    """A checkpoint in memory, in the place of a path: each fit goes on where the last one ended.

    A fit with other arguments begins at the beginning.  Copies of estimators share it.

    Parameters
    ----------
    found : State or None
        Where to go on.
    """

    def __init__(self, found: State | None = None) -> None:
        self._path, self._every = Path("memory"), np.inf
        self._lock = threading.Lock()
        self._found = found
        self._beginning = {}
        self._runs = []

    def __fspath__(self) -> str:
        return os.fspath(self._path)

    def __deepcopy__(self, memo: dict[int, Any]) -> "KeptFit":
        return self

    def __reduce__(self) -> tuple[type, tuple[State | None]]:
        return KeptFit, (self._found,)

    def go_on_as(self, other: "KeptFit") -> None:
        """Stand where the other does, which was in another process."""
        self._found = other._found

    def random_state(self, given: np.random.RandomState) -> np.random.RandomState:
        if given is np.random.mtrand._rand:  # from which other threads draw at the same time
            given = np.random.RandomState(given.randint(np.iinfo(np.int32).max))
        return super().random_state(given)

    def hooks(self, arguments: dict[str, str], n_runs: int, max_iter: int) -> list["RunCheckpoint"]:
        if self._found is not None and self._found.values["arguments"] != arguments:
            self._found = None
        return super().hooks(arguments, n_runs, max_iter)

    def _keep(self, fit: State) -> None:
        self._found = fit


class RunCheckpoint(Hook):
    """Keeps one restart's state in the file."""

    def __init__(self, checkpoint: Checkpoint, i: int, every: float, max_iter: int):
        self._checkpoint, self._i, self._every = checkpoint, i, every
        self._max_iter = max_iter
        self._next = time.monotonic() + every

    def begin(self, run: Run) -> None:
        state = self._checkpoint.state(self._i)
        if state is None:
            return
        with self._checkpoint.sense():
            _restore(state, run)
        if run.stop_reason in (None, *_PAUSES):
            run.stop_reason = "max_iter" if run.n_iter >= self._max_iter else None

    def epoch_ends(self, run: Run) -> None:
        if run.stop_reason is None and time.monotonic() < self._next:
            return
        self._checkpoint.write(self._i, _state(run))
        self._next = time.monotonic() + self._every


def _state(run: Run) -> State:
    slots, step = run.engine.get_state()
    values = {name: getattr(run, name) for name in (*_COUNTERS, *_NUMBERS)}
    values |= {"step": step, "plateau": run.plateau, "stop_reason": run.stop_reason}
    values["random_state"] = _random_state(run.random_state)
    arrays = {
        "parameters": run.engine.get_parameters(),
        "slots": slots,
        "order": run.order.copy(),
        "loss_curve": np.array(run.loss_curve, np.float64),
        "history": np.array(run.history, np.float64).reshape(-1, len(HISTORY)),
    }
    if run.validation_scores is not None:
        arrays["validation_scores"] = np.array(run.validation_scores, np.float64)
    if run.best_parameters is not None:
        arrays["best_parameters"] = run.best_parameters
    return State(values, arrays)


def _restore(state: State, run: Run) -> None:
    """Set everything as it was.  Kernels index by ``order``, so it must hold the same samples."""
    values, arrays = state
    slots, _ = run.engine.get_state()
    flat = run.parameters
    _require_like(arrays["parameters"], flat)
    _require_like(arrays["slots"], slots)
    _require_like(arrays["order"], run.order)
    if not np.array_equal(np.sort(arrays["order"]), np.sort(run.order)):
        raise ValueError("its sample order is of other samples")
    if run.best_parameters is not None or "best_parameters" in arrays:
        _require_like(arrays["best_parameters"], flat)
        run.best_parameters = arrays["best_parameters"]
    run.engine.set_parameters(arrays["parameters"])
    run.engine.set_state(arrays["slots"], _count(values["step"]))
    run.order[:] = arrays["order"]
    _set_random_state(run.random_state, state)
    for name in _COUNTERS:
        setattr(run, name, _count(values[name]))
    for name in _NUMBERS:
        optional = getattr(run, name) is None  # with or without early stopping
        setattr(run, name, None if optional else _number(values[name]))
    if not 0 <= run.learning_rate < np.inf:
        raise ValueError(f"a learning rate cannot be {run.learning_rate}")
    best, n_bad = values["plateau"]
    run.plateau = (_number(best), _count(n_bad))
    run.loss_curve = _curve(arrays["loss_curve"], run.n_iter)
    if run.validation_scores is not None:
        run.validation_scores = _curve(arrays["validation_scores"], run.n_iter)
    shape, dtype = arrays["history"].shape, arrays["history"].dtype
    if (shape, dtype) != ((run.n_iter, len(HISTORY)), np.dtype(np.float64)):
        raise ValueError(f"its history is not one of {run.n_iter} epochs")
    run.history = [(int(line[0]), *line[1:]) for line in arrays["history"].tolist()]
    if values["stop_reason"] not in (None, *_ENDS, *_PAUSES):
        raise ValueError(f"training does not stop for {values['stop_reason']!r}")
    run.stop_reason = values["stop_reason"]


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < COUNT_LIMIT:
        raise ValueError(f"{value!r} is no count")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _curve(array: np.ndarray, n_iter: int) -> list[float]:
    """One number per epoch, those of earlier fits with ``warm_start`` before them."""
    if array.ndim != 1 or array.dtype != np.float64 or array.size < n_iter:
        raise ValueError(f"{array.dtype} {array.shape} are no numbers of {n_iter} epochs")
    return array.tolist()


def _require_like(array: np.ndarray, model: np.ndarray) -> None:
    if (array.shape, array.dtype) != (model.shape, model.dtype):
        raise ValueError(
            f"an array of {array.dtype} {array.shape} is in the place of {model.dtype} "
            f"{model.shape}"
        )


def _random_state(source: np.random.RandomState) -> dict[str, Any]:
    """For JSON."""
    try:
        return encode(source, "random_state")
    except ValueError as error:
        generator = source.get_state(legacy=False)["bit_generator"]
        raise ValueError(
            "checkpoint needs random numbers of RandomState's own generator, MT19937, got "
            f"random_state with {generator}; give random_state an integer."
        ) from error


def _set_random_state(target: np.random.RandomState, state: State) -> None:
    target.set_state(decode(state.values["random_state"]).get_state())


def in_words(value: Any) -> str:
    """A parameter's value, the same in every process."""
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value))}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_words, value))}]"
    if isinstance(value, np.random.RandomState):
        return "RandomState"
    return repr(value)


def checksum(array: Any, dtype: Any = None) -> str:
    """Shape, type and a checksum of an array, of some rows if there are many.

    With ``dtype``, of the numbers in that type, whatever type and layout they were given in.
    """
    if array is None:
        return "None"
    if not (sparse.issparse(array) or isinstance(array, np.ndarray)):
        return f"{array.shape} {array.dtype}"
    description = f"{array.shape} {np.dtype(dtype or array.dtype)}"
    rows = np.unique(np.linspace(0, array.shape[0] - 1, _ROWS).astype(np.int64))
    some = array[rows]
    values = some.data if sparse.issparse(some) else some
    parts = [values.astype(dtype or values.dtype, copy=False)]
    if sparse.issparse(some):
        parts += [some.indices.astype(np.int32), some.indptr.astype(np.int32)]
    total = 0
    for part in parts:
        total = zlib.crc32(np.ascontiguousarray(part).view(np.uint8).data, total)
    return f"{description} {total:08x}"
