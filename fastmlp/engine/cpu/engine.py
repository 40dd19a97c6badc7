"""The CPU engine: what it is asked, and how a compiled call is run.

An engine allocates everything once: packed parameters and state when it is made, the workspace
when it first sees its batch size.  An epoch then allocates nothing.

A compiled call cannot see Ctrl-C: Python delivers it when the call returns.  A call that takes
longer than a blink is therefore watched by the calling thread, ready to set the stop flag that the
kernel polls at every micro-batch, while helper threads do the work.  What is short is estimated
from the arithmetic, not measured, so the choice never depends on the machine's load.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from fastmlp.dropout import Dropout
from fastmlp.engine import objects
from fastmlp.engine.cpu.blocks import Task
from fastmlp.engine.cpu.layout import (
    ABORT,
    DECISION,
    FIRST_STEP,
    NOT_FINITE,
    ROW_BLOCK,
    STEPS,
    STOP,
    Layout,
)
from fastmlp.engine.cpu.memory import Memory
from fastmlp.engine.cpu.program import Program
from fastmlp.engine.cpu.samples import Samples
from fastmlp.engine.cpu.source import address
from fastmlp.engine.cpu.standby import Standby
from fastmlp.engine.cpu.threads import THREAD_BUDGET, Team, available_threads
from fastmlp.engine.cpu.tuner import Tuner, run_trial
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import N_NUMBERS, Optimizer

_SHORT_CALL = 5e8  # operations; about 0.1 s where the kernels are slowest
_WORTH_SHARING = 2e5  # operations per step below which more threads never pay
_SURELY_WORTH_SHARING = 1e8
_WORTH_THREADS = 4e7  # operations of a single call
_MICRO_BATCH_ROWS = 1024
_MICRO_BATCH_ELEMENTS = 2**23
_PREFETCH_BYTES = 2**20
_NO_NUMBERS = np.zeros((1, N_NUMBERS))  # of a step that only leaves the gradient


class CpuEngine:
    """See `fastmlp.engine.contract.Engine`.

    Parameters
    ----------
    n_threads : int or None
        Most threads to use; None means as many as pay.
    """

    def __init__(
        self,
        network: Network,
        *,
        dtype: DTypeLike,
        objective: Objective | None = None,
        dropout: Dropout | None = None,
        alpha: float = 0.0,
        optimizer: Optimizer | None = None,
        batch_size: int = 1,
        n_threads: int | None = None,
    ):
        self._network = network
        self._objective = objective
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
        self._memory = Memory(self._layout, optimizer)
        self._words = self._memory.control.data
        self._barrier = self._memory.barrier.data
        dropout = dropout or Dropout((0.0,) * len(network.hidden), 0)
        self._program = Program(self._layout, objective, dropout, optimizer)
        self._workspace: _Workspace | None = None
        self._numbers = np.empty((0, N_NUMBERS))
        self._samples: Samples | None = None
        self._row_block_losses = np.empty(0)
        self._forward_tasks: dict[tuple[int, bool, bool], Task] = {}
        self._step_task: Task | None = None
        self._calls: dict[int, _Call] = {}  # by the number of threads
        self._operations_per_row = 6.0 * network.n_parameters + 60.0 * sum(network.widths)
        self._program.require_first()

    # --- parameters and state

    def get_parameters(self) -> np.ndarray:
        return self._memory.get_parameters()

    def set_parameters(self, flat: np.ndarray) -> None:
        self._memory.set_parameters(flat)

    def get_state(self) -> tuple[np.ndarray, int]:
        return self._memory.get_slots(), self.n_steps

    def set_state(self, slots: np.ndarray, step: int) -> None:
        self._memory.set_state(slots, step)

    @property
    def n_steps(self) -> int:
        return self._words[STEPS]

    def stop(self) -> None:
        self._words[STOP] = 1

    def info(self) -> dict[str, Any]:
        return {"device": "cpu", "dtype": self._type, "max_threads": self._threads}

    # --- data and verbs

    def load(self, samples: Samples) -> None:
        self._require_objective(samples)
        self._samples = samples
        self._calls.clear()
        if self._workspace is not None and self._workspace.sparse != samples.sparse:
            self._workspace = None

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
        self._prepare_numbers(learning_rates)
        if self._tuner is None:
            per_step = self._operations(min(self._batch_size, order.size))
            limit = self._threads if per_step >= _WORTH_SHARING else 1
            if per_step >= _SURELY_WORTH_SHARING:
                self._tuner = Tuner(limit, first=limit, pause=8)
            else:
                self._tuner = Tuner(limit, first=1)
        share = THREAD_BUDGET.enter(self, self._threads)
        try:
            return self._run_tuned(order, self._tuner, share)
        finally:
            THREAD_BUDGET.leave(self)

    def _prepare_numbers(self, learning_rates: np.ndarray) -> None:
        """The numbers of an epoch's steps, in memory that stays where it is."""
        assert self._optimizer is not None
        if len(self._numbers) != len(learning_rates):
            self._numbers = self._optimizer.blank_numbers(len(learning_rates), self._dtype)
            self._calls.clear()
        self._optimizer.fill(self._numbers, learning_rates, self._words[STEPS])

    def _run_tuned(self, order: np.ndarray, tuner: Tuner, share: int) -> float:
        """An epoch on as many threads as the tuner says, if the share allows."""
        n_threads = min(tuner.choose(), share)
        if n_threads != tuner.current and tuner.seconds:
            run = partial(self._run_steps, order)
            return run_trial(tuner, n_threads, share, len(self._numbers), run)
        loss = self._train(order, self._batch_size, self._optimizer, n_threads)
        if n_threads == tuner.choose():  # else the share did not allow it
            tuner.report(n_threads, self._seconds)
        return loss

    def _run_steps(
        self, order: np.ndarray, n_threads: int, first: int, stop: int, loss: float
    ) -> tuple[float, float]:
        """Some steps of an epoch, for `run_trial`."""
        loss = self._train(order, self._batch_size, self._optimizer, n_threads, first, stop, loss)
        return loss, self._seconds

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        assert self._samples is not None
        n_samples = self._samples.n_samples
        worth = self._operations(n_samples) >= _WORTH_THREADS
        n_threads = self._threads if worth else 1
        steps = self._words[STEPS]
        share = THREAD_BUDGET.enter(self, n_threads)
        try:
            loss = self._train(self._samples.natural_order, n_samples, None, share)
        finally:
            THREAD_BUDGET.leave(self)
        self._words[STEPS] = steps
        return loss / n_samples, self._memory.unpack(self._memory.gradient)

    def sum_gradients(self, order: np.ndarray, step: int) -> tuple[float, float, np.ndarray]:
        assert self._samples is not None
        total = self._samples.weight_of(order)
        if total == 0.0:
            return 0.0, 0.0, np.zeros(self._network.n_parameters, self._dtype)
        worth = self._operations(order.size) >= _WORTH_THREADS
        before, self._words[STEPS] = self._words[STEPS], step
        share = THREAD_BUDGET.enter(self, self._threads if worth else 1)
        try:
            loss = self._train(order, order.size, None, share, alpha=0.0)
        finally:
            THREAD_BUDGET.leave(self)
            self._words[STEPS] = before
        gradient = self._memory.unpack(self._memory.gradient)
        gradient *= total
        return loss / order.size * total, total, gradient

    def apply_gradient(
        self, gradient: np.ndarray, total_weight: float, learning_rate: float
    ) -> float:
        if self._optimizer is None:
            raise ValueError("apply_gradient needs an engine that was made with an optimizer.")
        penalty = 0.0
        if total_weight != 0.0:
            mean = (gradient / total_weight).astype(self._dtype, copy=False)
            penalty = self._add_penalty(mean, total_weight)
            numbers = self._optimizer.step_numbers(
                np.array([learning_rate]), self._words[STEPS], self._dtype
            )
            self._step(self._optimizer, mean, numbers)
        self._words[STEPS] += 1
        return penalty

    def _add_penalty(self, gradient: np.ndarray, total_weight: float) -> float:
        """Add the gradient of the penalty, which is returned."""
        if not self._alpha:
            return 0.0
        squares, parameters = 0.0, self._memory.unpack(self._memory.parameters)
        coefs, _ = self._network.unflatten(parameters)
        for coef, slope in zip(coefs, self._network.unflatten(gradient)[0], strict=True):
            squares += float(np.vdot(coef, coef))
            slope += (self._alpha / total_weight) * coef
        return 0.5 * self._alpha * squares / total_weight

    def _step(self, optimizer: Optimizer, gradient: np.ndarray, numbers: np.ndarray) -> None:
        """One step of the optimizer."""
        if self._step_task is None:
            self._step_task = self._program.step_task(self._memory, optimizer)
        task = self._step_task
        self._memory.set_gradient(gradient)
        norms = np.zeros(task.n_gradient_blocks, self._dtype)
        if optimizer.max_grad_norm is not None:
            norms[0] = np.vdot(gradient, gradient)
        task.norms, task.numbers = address(norms), address(numbers)
        self._run("step", task, 0.0, None, norms, numbers)

    def evaluate(self, samples: Samples) -> float:
        self._require_objective(samples)
        n_blocks = -(-samples.n_samples // ROW_BLOCK)
        if self._row_block_losses.size < n_blocks:
            self._row_block_losses = np.empty(n_blocks)
        losses = self._row_block_losses[:n_blocks]
        self._run_rows(samples, None, losses)
        with np.errstate(over="ignore", invalid="ignore"):  # parameters that have diverged
            return float(losses.sum() / samples.total_weight)

    def predict(self, X: Any, out: np.ndarray | None = None) -> np.ndarray:
        samples = X if isinstance(X, Samples) else Samples(X, dtype=self._dtype)
        if out is None:
            out = np.empty((samples.n_samples, self._network.n_outputs), self._dtype)
        self._run_rows(samples, out, None)
        return out

    def predict_if_finite(self, X: np.ndarray) -> np.ndarray | None:
        """Looks at rows while they are in L1: a pass of its own is a tenth of a prediction."""
        samples = Samples(X, dtype=self._dtype)
        out = np.empty((samples.n_samples, self._network.n_outputs), self._dtype)
        self._run_rows(samples, out, None, checks=True)
        return None if self._words[NOT_FINITE] else out

    # --- inside

    def _operations(self, n_rows: int) -> float:
        """Rough cost of training on ``n_rows`` rows, in floating-point operations."""
        return n_rows * self._operations_per_row

    def _micro_batch(self, batch_size: int) -> int:
        """Rows that the workspace of such batches holds."""
        per_row = int(self._layout.strides.sum())
        most = max(ROW_BLOCK, _MICRO_BATCH_ELEMENTS // per_row)
        return max(1, min(batch_size, _MICRO_BATCH_ROWS, most))

    def _train(
        self, order: np.ndarray, batch_size: int, optimizer: Optimizer | None, n_threads: int,
        first: int = 0, stop: int | None = None, loss: float = 0.0, alpha: float | None = None,
    ) -> float:  # fmt: skip
        """Run the epoch kernel; without an optimizer it only leaves the gradient.

        It takes the steps from ``first`` to ``stop`` of the epoch, and adds to ``loss``.
        ``alpha`` is the engine's own unless given.
        """
        call = self._calls.get(n_threads)
        if call is None or not call.is_for(order, batch_size, optimizer):
            call = self._calls[n_threads] = self._make_call(order, batch_size, optimizer, n_threads)
        task = call.task
        task.first_step, task.loss_before = first, loss
        task.alpha = self._alpha if alpha is None else alpha
        task.stop_step = call.n_steps if stop is None else stop
        self._refresh_transposed(task)
        return self._run("epoch", task, call.operations, call.standby)

    def _refresh_transposed(self, task: Task) -> None:
        if self._memory.transposed_is_stale:
            objects.entry("refresh_transposed", self._type)(0, task.address)
            self._memory.transposed_is_stale = False

    def _make_call(
        self, order: np.ndarray, batch_size: int, optimizer: Optimizer | None, n_threads: int
    ) -> "_Call":
        samples, space, given = self._samples, self._workspace, order
        assert samples is not None
        order = np.ascontiguousarray(order, np.int64)
        most, batch_size = batch_size, min(batch_size, order.size)
        operations = self._operations(order.size)
        numbers = _NO_NUMBERS if optimizer is None else self._numbers
        if space is None or not space.is_for(batch_size, optimizer):
            space = self._workspace = self._make_workspace(batch_size, optimizer, samples.sparse)
        standby = None
        if n_threads > 1 and not self._needs_supervision(operations):
            standby = Standby(n_threads)
        rows = min(batch_size, space.micro_batch)
        n_parts = self._layout.n_parts(rows, sparse=samples.sparse)
        bounds = self._layout.bounds(samples.sparse, n_threads)
        part_bounds = self._layout.bounds(samples.sparse, n_threads, n_parts)
        task = Task.from_buffer_copy(space.task)  # helpers may still look at the last call's
        task.update(samples.fields)
        task.update({
            "n_threads": n_threads, "n_samples": order.size, "batch_size": batch_size,
            "micro_batch": space.micro_batch, "numbers": address(numbers),
            "bounds": address(bounds), "n_parts": n_parts, "part_bounds": address(part_bounds),
            "order": address(order),
            "prefetch": n_threads > 1 and 3 * self._memory.parameters.nbytes > _PREFETCH_BYTES,
            "standby": standby.address if standby else 0,
        })  # fmt: skip
        task.keep = space, bounds, part_bounds, standby, order, numbers, samples
        return _Call(task, standby, given, most, optimizer, operations, len(numbers))

    def _make_workspace(
        self, batch_size: int, optimizer: Optimizer | None, sparse: bool
    ) -> "_Workspace":
        micro_batch = self._micro_batch(batch_size)
        task = self._program.training_task(
            self._memory, micro_batch, self._threads, optimizer,
            sparse=sparse, accumulates=micro_batch < batch_size,
        )  # fmt: skip
        return _Workspace(batch_size, optimizer, sparse, micro_batch, task)

    def _run_rows(
        self, samples: Samples, out: np.ndarray | None, losses: np.ndarray | None,
        *, checks: bool = False,
    ) -> None:  # fmt: skip
        """Run the forward kernel."""
        operations = self._operations(samples.n_samples) / 3
        n_blocks = -(-samples.n_samples // ROW_BLOCK)
        n_threads = min(self._threads, n_blocks) if operations >= _WORTH_THREADS else 1
        kind = n_threads, samples.sparse, out is None
        task = self._forward_tasks.get(kind)
        if task is None:
            task = self._forward_tasks[kind] = self._program.forward_task(
                self._memory, ROW_BLOCK * n_threads, n_threads,
                sparse=samples.sparse, loss=out is None,
            )  # fmt: skip
        if self._memory.averages:
            objects.entry("refresh_transposed", self._type)(0, task.address)
        else:
            self._refresh_transposed(task)
        order = samples.natural_order
        task.update(samples.fields)
        task.n_threads, task.n_samples, task.order = n_threads, samples.n_samples, address(order)
        task.out, task.row_block_losses, task.checks = address(out), address(losses), checks
        self._run("outputs", task, operations, None, samples, order, out, losses)

    def _needs_supervision(self, operations: float) -> bool:
        return operations >= _SHORT_CALL and (threading.current_thread() is threading.main_thread())

    def _run(
        self, kernel: str, task: Task, operations: float, standby: Standby | None, *keep: Any
    ) -> float:
        """Call a kernel on as many threads as its task says, open to Ctrl-C.

        ``keep`` holds whatever the task's addresses belong to and the task does not keep.
        """
        call, n_threads = objects.entry(kernel, self._type), task.n_threads
        self._team.settle(self._where_threads_are, self._abort)
        words = self._words
        words[STOP] = words[DECISION] = words[ABORT] = words[NOT_FINITE] = self._barrier[0] = 0
        words[FIRST_STEP] = words[STEPS]
        supervised = self._needs_supervision(operations)
        started = time.perf_counter()
        if n_threads == 1 and not supervised:
            result = call(0, task.address)
        else:
            result = self._team.run(
                partial(_call, call, task, (self, *keep)),
                n_threads,
                supervised=supervised,
                standby=standby,
                stop=self.stop,
                abort=self._abort,
                describe=self._where_threads_are,
            )
        self._seconds = time.perf_counter() - started
        if words[STOP]:
            raise KeyboardInterrupt
        return result

    def _abort(self) -> None:
        """Have threads that wait for others give up."""
        self._words[STOP] = self._words[ABORT] = 1

    def _where_threads_are(self) -> str:
        """For a report of threads that wait without end."""
        return f"control {self._words[:5].tolist()}, barrier {self._barrier[0]}"


class _Workspace(NamedTuple):
    """What stays the same while batches, optimizer and the kind of data do."""

    batch_size: int
    optimizer: Optimizer | None
    sparse: bool
    micro_batch: int
    task: Task

    def is_for(self, batch_size: int, optimizer: Optimizer | None) -> bool:
        """Gradients that are left in memory have room where there was room for larger batches."""
        if self.optimizer != optimizer:
            return False
        return self.batch_size == batch_size or (optimizer is None and batch_size < self.batch_size)


class _Call(NamedTuple):
    """A call of the epoch kernel, which every epoch repeats whose order is in the same array."""

    task: Task
    standby: Standby | None
    order: np.ndarray
    batch_size: int
    optimizer: Optimizer | None
    operations: float
    n_steps: int

    def is_for(self, order: np.ndarray, batch_size: int, optimizer: Optimizer | None) -> bool:
        return order is self.order and batch_size == self.batch_size and optimizer is self.optimizer


def _call(call: Callable[[int, int], float], task: Task, keep: tuple, thread: int) -> float:
    return call(thread, task.address)
