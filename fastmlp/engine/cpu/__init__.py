"""The CPU engine: memory and threads around the compiled kernels.

An engine allocates everything once: packed parameters and state when it is made, the workspace
when it first sees its batch size.  An epoch then allocates nothing.

A compiled call cannot see Ctrl-C: Python delivers it when the call returns.  A call that takes
longer than a blink is therefore watched by the calling thread, ready to set the stop flag that the
kernel polls at every block of rows, while helper threads do the work.  What is short is estimated
from the arithmetic, not measured, so the choice never depends on the machine's load.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastmlp.dropout import Dropout, threshold
from fastmlp.engine import objects, processor
from fastmlp.engine.cpu import pieces
from fastmlp.engine.cpu.blocks import Layer, Packing, Task
from fastmlp.engine.cpu.layout import (
    ABORT,
    CUT_PANELS,
    CUT_ROWS,
    FIRST_STEP,
    LARGE_SLAB,
    MAX_UNIT_ROWS,
    SLAB,
    SLIVER_ROWS,
    STEPS,
    STOP,
    Layout,
    aligned,
)
from fastmlp.engine.cpu.samples import Samples, is_fused
from fastmlp.engine.cpu.source import address
from fastmlp.engine.cpu.stations import Stations
from fastmlp.engine.cpu.threads import CROWD, Team, Tuner, available_threads
from fastmlp.functions import ACTIVATIONS
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import N_NUMBERS, N_SLOTS, Optimizer

_SHORT_CALL = 5e8  # operations; about 0.1 s where the kernels are slowest
_WORTH_SHARING = 2e5  # operations per step below which more threads never pay
_SURELY_WORTH_SHARING = 1e8
_WORTH_THREADS = 4e7  # operations of a single call
_BLOCK_ROWS = 1024
_BLOCK_ELEMENTS = 2**23
_PREFETCH_BYTES = 2**20
_FIRST_PIECE = 2  # steps that a number of threads on trial takes before it is judged
_WORSE, _GRACE = 1.5, 1e-3  # how much slower it may be, and seconds in which threads wake up
_FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "neon", "sve")  # worth reporting
_L2_BYTES = 2**19  # of the smaller processors
_NO_CLASS = -1e30  # a score that softmax turns into exactly 0
_ROOM_FOR_BARRIER = 64  # int64s: its own cache lines


class CpuEngine:
    """See `fastmlp.engine.Engine`.

    Parameters
    ----------
    n_threads : int or None
        Most threads to use; None means as many as pay.
    """

    def __init__(
        self,
        network: Network,
        *,
        dtype,
        objective: Objective | None = None,
        dropout: Dropout | None = None,
        alpha: float = 0.0,
        optimizer: Optimizer | None = None,
        batch_size: int = 1,
        n_threads: int | None = None,
    ):
        self._network = network
        self._objective = objective
        self._dropout = dropout or Dropout((0.0,) * len(network.hidden), 0)
        self._dtype = np.dtype(dtype)
        self._type = str(self._dtype.name)  # which NumPy works out anew each time
        self._alpha = float(alpha)
        self._optimizer = optimizer
        self._batch_size = int(batch_size)
        self._threads = available_threads(n_threads)
        self._team = Team()
        self._tuner: Tuner | None = None
        self._seconds = 0.0  # that the last kernel call took
        self._layout = Layout(network, dtype)
        n_packed = int(self._layout.weights[-1])
        self._parameters = aligned(n_packed, self._dtype)
        self._slots = [aligned(n_packed if optimizer else 0, self._dtype) for _ in range(N_SLOTS)]
        self._transposed = aligned(int(self._layout.transposed[-1]), self._dtype)
        self._averages = optimizer is not None and optimizer.ema_decay is not None
        self._average = aligned(n_packed * self._averages, self._dtype)
        self._average_transposed = aligned(self._transposed.size * self._averages, self._dtype)
        self._gradient = aligned(0, self._dtype)
        self._progress = aligned(_ROOM_FOR_BARRIER, np.int64)
        self._barrier = aligned(_ROOM_FOR_BARRIER, np.int64)
        self._room: _Room | None = None
        self._numbers = np.empty((0, N_NUMBERS))
        self._samples: Samples | None = None
        self._slab_losses = np.empty(0)
        self._forward_tasks: dict[tuple[int, bool, bool], Task] = {}
        self._calls: dict[int, _Call] = {}  # by the number of threads
        self._transposed_is_stale = True
        self._operations_per_row = 6.0 * network.n_parameters + 60.0 * sum(network.widths)
        self._narrow = (  # whether most of a panel of the last layer would be padding
            len(network.widths) > 2
            and network.out_activation != "softmax"
            and 4 * network.n_outputs <= self._layout.vector
        )
        self._require(pieces.PARAMETERS)

    # --- parameters and state

    def get_parameters(self) -> np.ndarray:
        return self._unpack(self._average if self._averages else self._parameters)

    def set_parameters(self, flat: np.ndarray) -> None:
        self._set_trained(flat)
        if self._averages:
            self._average[:] = self._parameters

    def _set_trained(self, flat: np.ndarray) -> None:
        bias = _NO_CLASS if self._network.out_activation == "softmax" else 0.0
        self._pack(flat, self._parameters, padding_bias=bias)
        self._transposed_is_stale = True

    def get_state(self) -> tuple[np.ndarray, int]:
        packed = [*self._slots, *[self._parameters] * self._averages]
        slots = np.array([self._unpack(slot) for slot in packed])
        return slots, self.n_steps

    def set_state(self, slots: np.ndarray, step: int) -> None:
        for slot, values in zip(self._slots, slots[:N_SLOTS], strict=True):
            self._pack(values, slot)
        if self._averages:
            self._set_trained(slots[N_SLOTS])
        self._progress[STEPS] = step

    @property
    def n_steps(self) -> int:
        return int(self._progress[STEPS])

    def _pack(self, flat: np.ndarray, packed: np.ndarray, *, padding_bias: float = 0.0) -> None:
        flat = np.ascontiguousarray(flat, self._dtype)
        self._repack("pack", flat, packed, padding_bias)

    def _unpack(self, packed: np.ndarray) -> np.ndarray:
        flat = np.empty(self._network.n_parameters, self._dtype)
        self._repack("unpack", flat, packed, 0.0)
        return flat

    def _repack(self, name: str, flat, packed, padding_bias: float) -> None:
        layout = self._layout
        packing = Packing(
            flat=address(flat), packed=address(packed), n_layers=layout.rows.size,
            widths=address(layout.widths), rows=address(layout.rows),
            weights=address(layout.weights), padding_bias=padding_bias,
        )  # fmt: skip
        objects.entry(name, self._type)(0, packing.address)

    def stop(self) -> None:
        self._progress[STOP] = 1

    def info(self) -> dict[str, Any]:
        return {"device": "cpu", "dtype": self._type, "max_threads": self._threads}

    # --- data and verbs

    def load(self, samples: Samples) -> None:
        self._require_objective(samples)
        self._samples = samples
        self._calls.clear()
        if self._room is not None and self._room.sparse != samples.sparse:
            self._room = None

    def unload(self) -> None:
        self._samples = None
        self._calls.clear()

    def _require_objective(self, samples: Samples) -> None:
        if self._objective is None:
            raise ValueError("This needs an engine that was made with an objective.")
        if (samples.dtype, samples.objective) != (self._dtype, self._objective):
            raise ValueError("These samples have no targets, or another dtype or objective.")

    def run_epoch(self, order: np.ndarray, learning_rates: np.ndarray) -> float:
        if self._optimizer is None:
            raise ValueError("run_epoch needs an engine that was made with an optimizer.")
        steps = int(self._progress[STEPS])
        numbers = self._optimizer.step_numbers(learning_rates, steps, self._dtype)
        if self._tuner is None:
            per_step = self._operations(min(self._batch_size, order.size))
            limit = self._threads if per_step >= _WORTH_SHARING else 1
            if per_step >= _SURELY_WORTH_SHARING:
                self._tuner = Tuner(limit, first=limit, pause=8)
            else:
                self._tuner = Tuner(limit, first=1)
        share = CROWD.enter(self, self._threads)
        try:
            return self._run_tuned(order, numbers, self._tuner, share)
        finally:
            CROWD.leave(self)

    def _run_tuned(self, order, numbers, tuner: Tuner, share: int) -> float:
        """An epoch on as many threads as the tuner says, if the share allows.

        A number on trial takes ever longer runs of steps, and the rest goes to the present number
        as soon as it is clearly slower: where other programs keep the processors busy, threads that
        wait for each other take a thousand times as long.
        """
        n_steps, n_threads = len(numbers), min(tuner.choose(), share)
        per_step = tuner.seconds / n_steps
        if n_threads == tuner.current or not per_step:
            loss = self._train(order, self._batch_size, numbers, self._optimizer, n_threads)
            if n_threads == tuner.choose():  # else the share did not allow it
                tuner.report(n_threads, self._seconds)
            return loss
        loss, done, piece, seconds = 0.0, 0, _FIRST_PIECE, 0.0
        while done < n_steps and seconds <= _WORSE * per_step * done + _GRACE:
            stop = min(done + piece, n_steps)
            loss = self._train(
                order, self._batch_size, numbers, self._optimizer, n_threads, done, stop, loss
            )
            seconds, done, piece = seconds + self._seconds, stop, 2 * piece
        if n_threads == tuner.choose():
            tuner.report(n_threads, seconds * n_steps / done)
        if done < n_steps:
            n_threads = min(tuner.current, share)
            loss = self._train(
                order, self._batch_size, numbers, self._optimizer, n_threads, done, n_steps, loss
            )
        return loss

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        assert self._samples is not None
        n_samples = self._samples.n_samples
        worth = self._operations(n_samples) >= _WORTH_THREADS
        n_threads = self._threads if worth else 1
        steps = self._progress[STEPS]
        share = CROWD.enter(self, n_threads)
        try:
            numbers = np.zeros((1, N_NUMBERS))
            loss = self._train(self._samples.natural_order, n_samples, numbers, None, share)
        finally:
            CROWD.leave(self)
        self._progress[STEPS] = steps
        return loss / n_samples, self._unpack(self._gradient)

    def evaluate(self, samples: Samples) -> float:
        self._require_objective(samples)
        n_slabs = -(-samples.n_samples // SLAB)
        if self._slab_losses.size < n_slabs:
            self._slab_losses = np.empty(n_slabs)
        losses = self._slab_losses[:n_slabs]
        self._run_rows(samples, None, losses)
        with np.errstate(over="ignore", invalid="ignore"):  # parameters that have diverged
            return float(losses.sum() / samples.total_weight)

    def predict(self, X) -> np.ndarray:
        samples = X if isinstance(X, Samples) else Samples(X, dtype=self._dtype)
        out = np.empty((samples.n_samples, self._network.n_outputs), self._dtype)
        self._run_rows(samples, out, None)
        return out

    # --- inside

    def _operations(self, n_rows: int) -> float:
        """Rough cost of training on ``n_rows`` rows, in floating-point operations."""
        return n_rows * self._operations_per_row

    def _pieces(self, *, sparse: bool, train: bool, loss: bool) -> dict[str, str | None]:
        """Names of pieces by the fields of a `Task` that is for this use of the network."""
        network, objective = self._network, self._objective if loss else None
        softmax = network.out_activation == "softmax"
        fused = objective is not None and is_fused(objective.row)
        names: dict[str, str | None] = {
            "tiles": "tiles",
            "forward": "forward",
            "forward_sparse": "forward_sparse" if sparse else None,
            "forward_narrow": "forward_narrow" if self._narrow else None,
            "softmax_rows": "softmax_rows" if softmax and (fused or not loss) else None,
            "normalise": "normalise" if network.layer_norm else None,
        }
        if objective is not None:
            names["head"] = "head_softmax" if fused else "head_elementwise"
            if not objective.row.by_user:
                names["loss"] = pieces.loss(objective.row)
        else:
            names["link"] = pieces.link(network.out_activation)
        if len(network.widths) > 2:
            names["transpose"] = "transpose"
        if train:
            names |= {
                "backward": "backward",
                "unit": "unit",
                "unit_sparse": "unit_sparse" if sparse else None,
                "unit_narrow": "unit_narrow" if self._narrow else None,
                "normalise_derivative": "normalise_derivative" if network.layer_norm else None,
            }
        return names

    def _update(self, optimizer: Optimizer | None) -> tuple[dict[str, str], dict[str, Any]]:
        """What happens once a unit's gradient is complete: pieces, and numbers, of a `Task`."""
        names: dict[str, str] = {}
        if optimizer is None or optimizer.max_grad_norm is not None:
            names["loop"] = pieces.update(None)
        if optimizer is None:
            return names, {"training": 0}
        decays = optimizer.weight_decay > 0
        numbers: dict[str, Any] = {"training": 1}
        names.setdefault("loop", pieces.update(optimizer.name, decays=decays))
        if optimizer.max_grad_norm is not None:
            names["clipped"] = pieces.update(optimizer.name, decays=decays)
            names |= {name: name for name in ("update_clipped", "sum_squares", "scale")}
            numbers = {"training": 0, "max_norm": optimizer.max_grad_norm}
        if optimizer.ema_decay is not None:
            names["averager"] = "average"
            numbers["average_rate"] = 1.0 - optimizer.ema_decay
        return names, numbers

    def _loops(self, *, sparse: bool, train: bool) -> list[dict[str, str | int | None]]:
        """For each hidden layer, its loops by the fields of a `Layer`: names, or addresses of those
        that are the user's.
        """
        network = self._network
        loops: list[dict[str, str | int | None]] = []
        rates, slopes = self._dropout.rates, self._keeps_slopes(train)
        for row, keeps, rate in zip(network.hidden, slopes, rates, strict=True):
            drops = train and rate > 0
            fused = row == ACTIVATIONS["relu"] and not drops and not network.layer_norm
            own: dict[str, str | int | None] = {"relu": int(fused)}
            if row.by_user:
                own["activation"] = pieces.user_activation(row, self._type, slopes=keeps)
            elif sparse or not fused:
                own["activation"] = pieces.activation(row, slopes=keeps)
            if train and not fused:
                own["derivative"] = pieces.derivative(row, slopes=keeps)
            if drops:
                own["dropout"] = "dropout"
            loops.append(own)
        return loops

    def _require(self, names) -> None:
        """Make these pieces ready and, with an optimizer, all that training will need."""
        needed = list(names)
        if self._optimizer is not None:
            needed += ["epoch", *self._pieces(sparse=False, train=True, loss=True).values()]
            needed += self._update(self._optimizer)[0].values()
            for loop in self._loops(sparse=False, train=True):
                needed += [name for name in loop.values() if isinstance(name, str)]
        self._ready(needed)

    def _ready(self, names) -> None:
        company = partial(pieces.company, self._network, self._type)
        objects.require(pieces.keys(names, self._type), company)

    def _address(self, piece: str | int | None) -> int:
        return piece if isinstance(piece, int) else objects.address(piece, self._type)

    def _layers(self, places, *, sparse: bool, train: bool):
        """The network's layers for kernels.

        ``places`` are those of activations, slopes, normalised scores and deltas.
        """
        layout = self._layout
        columns = {
            "width": layout.widths, "stride": layout.strides, "rows": layout.rows,
            "rows_transposed": layout.rows_transposed, "weights": layout.weights,
            "transposed": layout.transposed, "activations": places[0], "slopes": places[1],
            "normalised": places[2], "deltas": places[3],
            "threshold": [threshold(rate) for rate in self._dropout.rates],
            "dropout_scale": [1 / (1 - rate) for rate in self._dropout.rates],
        }  # fmt: skip
        layers = (Layer * len(layout.widths))()
        for name, values in columns.items():
            for layer, value in zip(layers, values, strict=False):
                setattr(layer, name, value)
        for layer, loops in zip(layers, self._loops(sparse=sparse, train=train), strict=False):
            layer.update({name: self._address(piece) for name, piece in loops.items()})
        return layers

    def _keeps_slopes(self, train: bool) -> list[bool]:
        """Which hidden layers keep their derivative from the forward pass."""
        layers = zip(self._network.hidden, self._dropout.rates, strict=True)
        return [train and (row.of_score or rate > 0) for row, rate in layers]

    def _make_task(self, rows: int, threads: int, sparse: bool, *, train: bool, loss: bool) -> Task:
        """A task with workspace for ``rows`` rows."""
        names = self._pieces(sparse=sparse, train=train, loss=loss)
        self._ready(["outputs" if not train else "epoch", *names.values()])
        layout = self._layout
        sizes = layout.strides * rows
        if sparse:
            sizes = sizes * ([0] + [1] * (len(sizes) - 1))
        keeps_slopes = np.array(self._keeps_slopes(train), dtype=bool)
        hidden = sizes[1:-1] * train
        normalised = hidden * self._network.layer_norm
        ends = np.cumsum([0, *sizes, *hidden, *(hidden * keeps_slopes), *normalised])
        places_a = ends[: len(sizes)].copy()
        places_d, places_s, places_n = np.zeros_like(places_a), places_a.copy(), places_a.copy()
        places_d[1:-1], of_slopes, places_n[1:-1] = np.split(ends[len(sizes) : -1], 3)
        places_s[1:-1] = np.where(keeps_slopes, of_slopes, places_a[1:-1])
        cut = train and rows >= CUT_ROWS and layout.widths[1:].max() >= CUT_PANELS * layout.panel
        network, objective = self._network, self._objective if loss else None
        softmax = network.out_activation == "softmax"
        elementwise = objective is not None and not is_fused(objective.row)
        n_elementwise = rows * network.n_outputs * elementwise
        arrays = {
            "work": aligned(int(ends[-1]) + layout.vector, self._dtype),
            "zeros": aligned(layout.panel, self._dtype),
            **{name: aligned(rows * softmax, self._dtype) for name in ("sums", "peaks")},
            **{
                name: aligned(n_elementwise, self._dtype)
                for name in ("scores", "true", "constants", "per_output")
            },
            "scales": aligned(rows, self._dtype),
            "losses": aligned(rows, self._dtype),
            "scratch": aligned(MAX_UNIT_ROWS * layout.panel * threads, self._dtype),
            "slivers": aligned(SLIVER_ROWS * rows * threads * cut, self._dtype),
            "squares": aligned(len(layout.units(False)), self._dtype),
            "norms": aligned(len(layout.units(False)), self._dtype),
        }
        if objective is not None:
            constants = objective.constant_per_output
            arrays["constants"][:] = np.resize(constants, n_elementwise)
        shows_average = self._averages and not train
        layers = self._layers((places_a, places_s, places_n, places_d), sparse=sparse, train=train)
        units = layout.units(sparse)
        task = Task(
            units=address(units), n_units=len(units), n_layers=len(layout.widths) - 1,
            layers=address(layers), dropout_seed=self._dropout.seed, softmax=softmax,
            loss_divisor=1 if objective is None else objective.divisor,
            slab=SLAB if self._parameters.nbytes <= _L2_BYTES else LARGE_SLAB,
            parameters=address(self._average if shows_average else self._parameters),
            transposed=address(self._average_transposed if shows_average else self._transposed),
            first_slot=address(self._slots[0]), second_slot=address(self._slots[1]),
            average=address(self._average), gradient=address(self._gradient),
            progress=address(self._progress), barrier=address(self._barrier),
            **{name: address(array) if array.size else 0 for name, array in arrays.items()},
            **{name: self._address(piece) for name, piece in names.items()},
        )  # fmt: skip
        if objective is not None and objective.row.by_user:
            task.loss = pieces.user_loss(objective.row, self._type)
        task.keep = layers, units, arrays  # and not the engine, which keeps the task
        return task

    def _block_rows(self, batch_size: int) -> int:
        per_row = int(self._layout.strides.sum())
        return max(1, min(batch_size, _BLOCK_ROWS, max(SLAB, _BLOCK_ELEMENTS // per_row)))

    def _train(
        self, order, batch_size, numbers, optimizer: Optimizer | None, n_threads, first=0,
        stop=None, loss=0.0,
    ) -> float:  # fmt: skip
        """Run the epoch kernel; without an optimizer it only leaves the gradient.

        It takes the steps from ``first`` to ``stop`` of the epoch, and adds to ``loss``.
        """
        order = np.ascontiguousarray(order, np.int64)
        batch_size = min(batch_size, order.size)
        if self._numbers.shape != numbers.shape:
            self._numbers = np.empty_like(numbers)
            self._calls.clear()
        self._numbers[:] = numbers
        call = self._calls.get(n_threads)
        if call is None or not call.is_for(order, batch_size, optimizer):
            call = self._calls[n_threads] = self._make_call(order, batch_size, optimizer, n_threads)
        task = call.task
        task.first_step, task.loss_before = first, loss
        task.stop_step = len(numbers) if stop is None else stop
        self._refresh_transposed(task)
        operations = self._operations(order.size)
        return self._run("epoch", task, operations, call.stations)

    def _refresh_transposed(self, task: Task) -> None:
        if self._transposed_is_stale:
            objects.entry("refresh_transposed", self._type)(0, task.address)
            self._transposed_is_stale = False

    def _make_call(self, order, batch_size, optimizer: Optimizer | None, n_threads) -> "_Call":
        samples, room = self._samples, self._room
        assert samples is not None
        if room is None or (room.batch_size, room.optimizer) != (batch_size, optimizer):
            room = self._room = self._make_room(batch_size, optimizer, samples.sparse)
        stations = None
        if n_threads > 1 and not self._needs_supervision(self._operations(order.size)):
            stations = Stations(n_threads)
        bounds = self._layout.bounds(samples.sparse, n_threads)
        task = Task.from_buffer_copy(room.task)  # helpers may still look at the last call's
        task.update(samples.fields)
        task.update({
            "n_threads": n_threads, "n_samples": order.size, "batch_size": batch_size,
            "block": room.block, "numbers": address(self._numbers),
            "bounds": address(bounds), "alpha": self._alpha, "order": address(order),
            "prefetch": n_threads > 1 and 3 * self._parameters.nbytes > _PREFETCH_BYTES,
            "stations": stations.address if stations else 0,
        })  # fmt: skip
        task.keep = room, bounds, stations, order, self._numbers, samples
        return _Call(task, stations, order, room)

    def _make_room(self, batch_size: int, optimizer: Optimizer | None, sparse: bool) -> "_Room":
        block = self._block_rows(batch_size)
        names, numbers = self._update(optimizer)
        self._ready(names.values())
        in_memory = not numbers["training"] or sparse or block < batch_size
        if in_memory and not self._gradient.size:
            self._gradient = aligned(self._parameters.size, self._dtype)
        task = self._make_task(block, self._threads, sparse, train=True, loss=True)
        task.update({name: self._address(piece) for name, piece in names.items()} | numbers)
        return _Room(batch_size, optimizer, sparse, block, task)

    def _run_rows(self, samples: Samples, out, losses) -> None:
        """Run the forward kernel."""
        operations = self._operations(samples.n_samples) / 3
        n_slabs = -(-samples.n_samples // SLAB)
        n_threads = min(self._threads, n_slabs) if operations >= _WORTH_THREADS else 1
        kind = n_threads, samples.sparse, out is None
        task = self._forward_tasks.get(kind)
        if task is None:
            task = self._forward_tasks[kind] = self._make_task(
                SLAB * n_threads, n_threads, samples.sparse, train=False, loss=out is None
            )
        if self._averages:
            objects.entry("refresh_transposed", self._type)(0, task.address)
        else:
            self._refresh_transposed(task)
        order = samples.natural_order
        task.update(samples.fields)
        task.n_threads, task.n_samples, task.order = n_threads, samples.n_samples, address(order)
        task.out, task.slab_losses = address(out), address(losses)
        self._run("outputs", task, operations, None, samples, order, out, losses)

    def _needs_supervision(self, operations: float) -> bool:
        return operations >= _SHORT_CALL and (threading.current_thread() is threading.main_thread())

    def _run(
        self, kernel: str, task: Task, operations: float, stations: Stations | None, *keep
    ) -> float:
        """Call a kernel on as many threads as its task says, open to Ctrl-C.

        ``keep`` holds whatever the task's addresses belong to and the task does not keep.
        """
        call, n_threads = objects.entry(kernel, self._type), task.n_threads
        self._team.settle(self._where_threads_are, self._abort)
        steps = self._progress[STEPS]
        self._progress[:FIRST_STEP] = 0
        self._progress[STEPS] = self._progress[FIRST_STEP] = steps
        self._barrier[0] = 0
        supervised = self._needs_supervision(operations)
        started = time.perf_counter()
        if n_threads == 1 and not supervised:
            result = call(0, task.address)
        else:
            result = self._team.run(
                partial(_call, call, task, (self, *keep)),
                n_threads,
                supervised=supervised,
                stations=stations,
                stop=self.stop,
                abort=self._abort,
                describe=self._where_threads_are,
            )
        self._seconds = time.perf_counter() - started
        if self._progress[STOP]:
            raise KeyboardInterrupt
        return result

    def _abort(self) -> None:
        """Have threads that wait for others give up."""
        self._progress[[STOP, ABORT]] = 1

    def _where_threads_are(self) -> str:
        """For a report of threads that do not meet."""
        return f"progress {self._progress[:5].tolist()}, met {int(self._barrier[0])}"


class _Room(NamedTuple):
    """What stays the same while batches, optimizer and the kind of data do: the workspace."""

    batch_size: int
    optimizer: Optimizer | None
    sparse: bool
    block: int
    task: Task


class _Call(NamedTuple):
    """A call of the epoch kernel, which every epoch repeats whose order is in the same array."""

    task: Task
    stations: Stations | None
    order: np.ndarray
    room: _Room

    def is_for(self, order, batch_size, optimizer: Optimizer | None) -> bool:
        room = self.room
        return order is self.order and (
            (batch_size, optimizer) == (room.batch_size, room.optimizer)
        )


def _call(call: Callable[[int, int], float], task: Task, keep: tuple, thread: int) -> float:
    return call(thread, task.address)


def describe() -> dict[str, str]:
    """The processor as this engine sees it."""
    from llvmlite import binding

    there = processor.features()
    found = [f"{n} from the {origin}" for origin, n in objects.origins().items() if n]
    return {
        "target": f"{processor.LEVEL} ({binding.get_host_cpu_name()}), "
        f"vectors of {8 * processor.VECTOR_BYTES} bits",
        "features": " ".join(name for name in _FEATURES if name in there) or "unknown",
        "threads": str(available_threads(None)),
        "kernels": ", ".join(found) or "none used yet",
        "kernel cache": str(objects.cache_folder() or "no place to write to"),
    }


def warmup() -> None:
    """Compile every kernel that is not there compiled, in several processes."""
    objects.require(pieces.everything())
