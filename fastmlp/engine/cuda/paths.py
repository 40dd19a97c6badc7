"""The two paths through an epoch: which kernels are launched, in what order, with what names bound.

The resident path is one launch for all of a chunk's steps (see `resident`).  The tiled path has,
per step, a launch for each layer and direction (see `kernels`), over one micro-batch after another.
"""

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from fastmlp.dropout import Dropout, threshold
from fastmlp.engine.cuda import kernels, resident
from fastmlp.engine.cuda.compiler import UserFormula
from fastmlp.engine.cuda.device import Device, Sequence
from fastmlp.engine.cuda.launcher import Launcher
from fastmlp.engine.cuda.samples import Chunk, Data
from fastmlp.engine.cuda.tiles import RowTile, Sizes
from fastmlp.engine.cuda.workspace import Buffers, Copy, MicroBatch, Pass, Workspace
from fastmlp.functions import (
    ACTIVATIONS,
    LAYER_NORM_EPSILON,
    LINKS,
    Activation,
    Loss,
    identity,
    with_our_arguments,
)
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import N_NUMBERS, OPTIMIZERS, Optimizer, decay_weight, keep_weight

_SMALL_ARRAYS = 2048  # bytes
_STEPS_AT_ONCE, _ROWS_AT_ONCE = 4096, 2**24  # in a launch: a quarter of a second at most
# Where row tiles of few rows are better than the tiled path, by the model of both.
_MOST_PARAMETERS, _ROWS_PER_MULTIPROCESSOR = 2**15, 64


class _Path:
    """What both paths know."""

    def __init__(
        self, device: Device, launcher: Launcher, buffers: Buffers, network: Network,
        dtype: np.dtype, sizes: Sizes, objective: Objective | None, dropout: Dropout, alpha: float,
    ):  # fmt: skip
        self._device, self._buffers, self._recording = device, buffers, launcher.recording
        self._kernel, self._product, self._launch = (
            launcher.kernel, launcher.product, launcher.launch
        )  # fmt: skip
        self._kernel_of_rows = launcher.kernel_of_rows
        self._by_threads, self._by_warps = launcher.by_threads, launcher.by_warps
        self._blocks_for = launcher.blocks_for
        self._network, self._dtype, self._sizes = network, dtype, sizes
        self._objective, self._dropout, self._alpha = objective, dropout, alpha


class ResidentPath(_Path):
    """For small networks, whose weights fit in a block's shared memory beside some rows of
    activations: four, or a large row tile if a batch has many rows for each multiprocessor.
    """

    def takes(self, optimizer: Optimizer | None, batch_size: int) -> bool:
        """Whether it can train this network."""
        if (
            any(self._dropout.rates)
            or self._network.layer_norm
            or (optimizer and optimizer.max_grad_norm is not None)
            or len(set(self._network.hidden)) > 1
            or len(self._network.widths) - 1 > resident.MOST_LAYERS
            or batch_size >= 2**31
        ):
            return False
        tile = self._tile(batch_size)
        if tile is None or tile.large:
            return tile is not None
        return (
            self._network.n_parameters <= _MOST_PARAMETERS
            and batch_size <= _ROWS_PER_MULTIPROCESSOR * self._device.n_multiprocessors
        )

    def begin(self, call: Pass) -> None:
        """Before the first chunk of an epoch."""
        _, sums = self._buffers_for_blocks(call)
        self._device.write(sums, np.zeros(2 * self._device.n_multiprocessors))
        self._device.write(self._buffers.barrier, np.zeros(1, np.uint32))

    def _buffers_for_blocks(self, call: Pass) -> tuple[Any, Any]:
        """Gradients of those that work on rows, and the sums of all."""
        n_partial = self._n_working(call.batch_size) * self._network.n_parameters
        return call.buffers_for_blocks(n_partial, 2 * self._device.n_multiprocessors)

    def _tile(self, batch_size: int) -> RowTile | None:
        """The smallest row tile that holds a multiprocessor's share of a batch, or the largest that
        fits in shared memory; None if none does.
        """
        found = None
        for tile in self._sizes.rows:
            if self._shared_bytes(tile) > self._free_bytes(tile):
                break
            found = tile
            if tile.rows * self._device.n_multiprocessors >= batch_size:
                break
        return found

    def _n_working(self, batch_size: int) -> int:
        """Blocks that work on rows."""
        tile = self._tile(batch_size)
        assert tile is not None
        return min(self._device.n_multiprocessors, -(-batch_size // tile.rows))

    def _free_bytes(self, tile: RowTile) -> int:
        """Shared memory that a block can have beside the kernel's own."""
        return self._device.shared_bytes - 8 * tile.threads - _SMALL_ARRAYS

    def _n_weights_shared(self) -> int:
        """Elements of all weights and biases in shared memory."""
        shapes = pairwise(self._network.widths)
        return sum((fan_in + 1) * resident.pitch_of(fan_out) for fan_in, fan_out in shapes)

    def _of_score(self) -> bool:
        """Whether the activation's derivative is worked out from the score."""
        return any(row.of_score for row in self._network.hidden)

    def _shared_bytes(self, tile: RowTile) -> int:
        """Shared memory of a block."""
        n_columns = sum(self._network.widths) + len(self._network.widths)
        n_columns = n_columns * (1 if tile.in_place(self._of_score()) else 2) + tile.margin
        return (self._n_weights_shared() + n_columns * tile.pitch) * self._dtype.itemsize

    def run(
        self, call: Pass, chunk: Chunk, optimizer: Optimizer, go_on: Callable[[], None]
    ) -> None:  # fmt: skip
        """All of a chunk's steps; ``go_on`` is called from time to time, and may raise an error."""
        network, buffers = self._network, self._buffers
        kind, n = self._dtype.type, network.n_parameters
        tile, n_working = self._tile(call.batch_size), self._n_working(call.batch_size)
        objective = self._objective
        assert objective is not None
        assert tile is not None
        loss = objective.row
        activation = network.hidden[0] if network.hidden else ACTIVATIONS["identity"]
        kernel = self._kernel(
            resident.resident_epoch, **tile.names(self._dtype, self._of_score()),
            ACTIVATION=_formula(activation, activation.value),
            DERIVATIVE=_formula(activation, activation.derivative),
            HEAD=_head(loss, resident), **_loss(loss), **_rule(optimizer),
        )  # fmt: skip
        data = chunk.data
        partial, sums = self._buffers_for_blocks(call)
        blocks = (self._device.n_multiprocessors, 1, 1)
        at_once = max(1, min(_STEPS_AT_ONCE, _ROWS_AT_ONCE // call.batch_size))
        for step in range(0, chunk.steps, at_once):
            if step:  # so that Ctrl-C does not wait for long
                self._device.synchronize()
                go_on()
            n_steps = min(at_once, chunk.steps - step)
            self._launch(
                kernel, blocks, tile.threads, buffers.control, buffers.barrier, n_steps, call.order,
                *data.fields, data.targets, data.weights, data.weighted, call.scales,
                call.numbers, call.shares, buffers.parameters, partial, n_working, buffers.slots,
                n, buffers.layers, buffers.widths, len(network.widths) - 1,
                self._n_weights_shared(), kind(self._alpha), kind(objective.divisor),
                np.finfo(kind).eps, buffers.constants, kind(objective.label_smoothing),
                buffers.average, buffers.average_rate, sums, cooperative=True,
                shared_bytes=self._shared_bytes(tile),
            )  # fmt: skip


class TiledPath(_Path):
    """For every network, batch and kind of samples."""

    def run(
        self, call: Pass, chunk: Chunk, optimizer: Optimizer, go_on: Callable[[], None]
    ) -> None:  # fmt: skip
        """All of a chunk's steps; ``go_on`` is called from time to time, and may raise an error."""
        whole = chunk._replace(steps=0, first=0, end=call.batch_size)
        steps = self._sequence("steps", call, chunk, lambda: self.step(call, whole, optimizer))
        steps.run(chunk.steps, go_on)

    def once(self, name: str, call: Pass, chunk: Chunk, queue: Callable[[], None]) -> None:
        """Queue launches; those of all samples, if they are in one chunk, are kept by ``name``."""
        if chunk.steps:
            self._sequence(name, call, chunk, queue).run(1, lambda: None)
        else:
            queue()

    def _sequence(
        self, name: str, call: Pass, chunk: Chunk, queue: Callable[[], None]
    ) -> Sequence:  # fmt: skip
        """What ``queue`` launches, the same each time on this data."""
        key = name, chunk.buffer
        if key not in call.sequences:
            with self._recording() as launches:
                queue()
            call.sequences[key] = self._device.sequence(launches)
        return call.sequences[key]

    def step(self, call: Pass, chunk: Chunk, optimizer: Optimizer | None) -> None:
        """The chunk's part of one step; with the batch's last rows, its end."""
        for rows in call.micro_batches(chunk):
            self._forward(call, chunk.data, rows, train=True)
            self._head(call, chunk.data, rows)
            self._backward(call, rows)
        if chunk.end < call.batch_size:
            return
        self._update(call, optimizer)
        self._finish_step(call, self._blocks_for(self._network.n_parameters))

    def evaluate(self, call: Pass, chunk: Chunk) -> None:
        """The chunk's part of all samples' losses; with the last rows, their sum."""
        for rows in call.micro_batches(chunk):
            self._forward(call, chunk.data, rows)
            self._head(call, chunk.data, rows)
        if chunk.end == call.batch_size:
            self._finish_step(call, 0)

    def predict(self, call: Pass, chunk: Chunk, outputs: Any) -> None:
        """The chunk's part of all samples' outputs."""
        for rows in call.micro_batches(chunk):
            self._forward(call, chunk.data, rows)
            self._link(call, rows, outputs)

    def _forward(self, call: Pass, data: Data, rows: MicroBatch, *, train: bool = False) -> None:
        """Scores of a micro-batch; ``train`` prepares `_backward`."""
        work, widths = call.workspace, self._network.widths
        parameters = self._buffers.parameters if train else self._buffers.average
        if rows.first == 0 and self._buffers.copy:
            self._copy_weights(parameters, self._buffers.copy)
        gather = self._kernel_of_rows(kernels.gather_sparse if data.sparse else kernels.gather)
        self._by_warps(gather, rows, call.order, *data.fields, widths[0], work.activations,
                       work.strides[0])  # fmt: skip
        for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
            hidden = layer < len(widths) - 2
            names = self._activation(layer, work, train) if hidden else {}
            normalised = hidden and self._network.layer_norm
            scores = (work.kept if normalised else work.activations), work.places[layer + 1]
            self._product(
                rows, (0, fan_out, fan_in + 1),
                (work.activations, work.places[layer], work.strides[layer], True),
                (*self._weights(layer, parameters), False),
                (*(scores if hidden else (work.scores, 0)), work.strides[layer + 1]),
                **({} if normalised else names),
            )  # fmt: skip
            if normalised:
                self._normalise(layer, work, rows, **names)
            if train and hidden and self._dropout.rates[layer]:
                self._drop(layer, work, rows)

    def _copy_weights(self, parameters: Any, copy: Copy) -> None:
        """Before the first products of a batch."""
        n, kernel = self._network.n_parameters, self._kernel_of_rows(kernels.copy_weights)
        self._by_threads(kernel, n, parameters, n, copy.lines, copy.buffer)

    def _weights(self, layer: int, parameters: Any) -> tuple[Any, int, int]:
        """Of a product's operand: buffer, place in it, elements between rows."""
        copy = self._buffers.copy
        if copy:
            return copy.buffer, copy.places[layer], copy.strides[layer]
        return parameters, self._network.offsets[layer], self._network.widths[layer + 1]

    def _normalise(
        self, layer: int, work: Workspace, rows: MicroBatch, *, aux: Any = None, **names: Any
    ) -> None:
        """Layer normalisation and activation of a hidden layer's scores."""
        epsilon = self._dtype.type(LAYER_NORM_EPSILON)
        self._by_warps(
            self._kernel_of_rows(kernels.normalise, **names), rows, work.activations, work.kept,
            work.places[layer + 1], work.strides[layer + 1], self._network.widths[layer + 1],
            epsilon, work.activations if aux is None else aux,
        )  # fmt: skip

    def _drop(self, layer: int, work: Workspace, rows: MicroBatch) -> None:
        """Dropout of a hidden layer."""
        rate, width = self._dropout.rates[layer], self._network.widths[layer + 1]
        self._by_threads(
            self._kernel_of_rows(kernels.drop), rows.most * width, *rows, work.activations,
            work.deltas, work.places[layer + 1], work.strides[layer + 1], width,
            self._dropout.seed, layer, threshold(rate), self._dtype.type(1 / (1 - rate)),
        )  # fmt: skip

    def _activation(self, layer: int, work: Workspace, train: bool) -> dict[str, Any]:
        """What ends the product of a hidden layer."""
        row = self._network.hidden[layer]
        if not (train and (row.of_score or self._dropout.rates[layer])):
            return {"STORE": kernels.activate, "FORMULA": _formula(row, row.value)}
        return {
            "STORE": kernels.activate_and_keep_derivative if row.of_score
            else kernels.activate_and_keep_derivative_of_output,
            "FORMULA": _formula(row, row.value),
            "GRADIENT": _formula(row, row.derivative), "aux": work.deltas,
        }  # fmt: skip

    def _head(self, call: Pass, data: Data, rows: MicroBatch) -> None:
        """Gradients of scores, and losses."""
        objective, work, kind = self._objective, call.workspace, self._dtype.type
        assert objective is not None
        row = objective.row
        head = self._kernel_of_rows(_head(row, kernels), **_loss(row))
        self._by_warps(head, rows, call.order, work.scores, work.strides[-1],
                       self._network.n_outputs, work.deltas, work.places[-1], data.targets,
                       data.weights, data.weighted, call.scales, call.losses,
                       kind(objective.divisor), np.finfo(kind).eps, self._buffers.constants,
                       kind(objective.label_smoothing))  # fmt: skip

    def _link(self, call: Pass, rows: MicroBatch, out: Any) -> None:
        """Scores become outputs, which go to ``out``."""
        work = call.workspace
        if self._network.out_activation == "softmax":
            link = self._kernel(kernels.softmax_link)
        else:
            formula = LINKS[self._network.out_activation]
            link = self._kernel(kernels.link, FORMULA=formula)
        self._by_warps(link, rows, work.scores, work.strides[-1], self._network.n_outputs, out)

    def _backward(self, call: Pass, rows: MicroBatch) -> None:
        """Gradients of all layers, into the workspace's splits."""
        work, widths, offsets = call.workspace, self._network.widths, self._network.offsets
        accumulate = kernels.put if rows.first == 0 else kernels.add
        for layer in range(len(widths) - 2, -1, -1):
            fan_in, fan_out = widths[layer], widths[layer + 1]
            place, stride = work.places[layer + 1], work.strides[layer + 1]
            self._product(
                rows, (fan_in + 1, fan_out, 0),
                (work.activations, work.places[layer], work.strides[layer], False),
                (work.deltas, place, stride, False),
                (work.partial, offsets[layer], fan_out), n_splits=work.n_splits,
                STORE=accumulate,
            )  # fmt: skip
            if layer > 0:
                self._product(
                    rows, (0, fan_in, fan_out), (work.deltas, place, stride, True),
                    (*self._weights(layer, self._buffers.parameters), True),
                    (work.deltas, work.places[layer], work.strides[layer]),
                    aux=work.activations, **self._derivative(layer - 1),
                )  # fmt: skip
                if self._network.layer_norm:
                    self._by_warps(
                        self._kernel_of_rows(kernels.normalise_delta), rows, work.deltas, work.kept,
                        work.places[layer], work.strides[layer], fan_in,
                    )  # fmt: skip

    def _derivative(self, layer: int) -> dict[str, Any]:
        """What ends the product that makes the gradient of a hidden layer's outputs."""
        row = self._network.hidden[layer]
        if row.of_score or self._dropout.rates[layer]:
            return {"STORE": kernels.multiply_by}
        return {"STORE": kernels.apply_derivative, "FORMULA": _formula(row, row.derivative)}

    def _update(self, call: Pass, optimizer: Optimizer | None) -> None:
        """Sum the gradient's splits and update, or without an optimizer leave the gradient."""
        buffers, work = self._buffers, call.workspace
        n, kind = self._network.n_parameters, self._dtype.type
        max_norm = None if optimizer is None else optimizer.max_grad_norm
        if optimizer is None or max_norm is not None:
            kernel = self._kernel(kernels.complete_gradient)
        else:
            kernel = self._kernel(kernels.update, **_rule(optimizer))
        places = buffers.layers, len(self._network.widths) - 1
        self._by_threads(
            kernel, n, buffers.parameters, work.partial, work.n_splits, buffers.slots, n, *places,
            kind(self._alpha), call.scales, call.numbers, buffers.squares, buffers.average,
            buffers.average_rate,
        )  # fmt: skip
        if optimizer is None or max_norm is None:
            return
        n_blocks = self._blocks_for(n)
        norms = call.buffer_for_norms(n_blocks)
        self._by_threads(self._kernel(kernels.sum_squares), n, work.partial, n, norms)
        self._by_threads(self._kernel(kernels.finish_norm), 1, norms, n_blocks)
        self._by_threads(
            self._kernel(kernels.clipped_update, **_rule(optimizer)), n, buffers.parameters,
            work.partial, buffers.slots, n, *places, call.scales, call.numbers, norms, n_blocks,
            float(max_norm), buffers.average, buffers.average_rate,
        )  # fmt: skip

    def _finish_step(self, call: Pass, n_squares: int) -> None:
        """Sum losses and squares of weights, and go on to the next step."""
        finish = self._kernel(kernels.finish_step)
        self._by_threads(finish, 1, call.losses, self._buffers.squares, n_squares, call.results)


def _formula(row: Activation, function: Callable) -> Callable | UserFormula:
    return UserFormula(function) if row.by_user else function


def _loss(row: Loss) -> dict[str, Any]:
    """What a head's formulas are."""
    value: Any = row.value
    gradient: Any = row.gradient or identity
    if row.by_user:
        value = UserFormula(value, lambda compiled: with_our_arguments(row, compiled, compiled)[0])
        gradient = UserFormula(
            gradient, lambda compiled: with_our_arguments(row, compiled, compiled)[1]
        )
    return {
        "FORMULA": value, "GRADIENT": gradient,
        "LOSS": kernels.logistic_loss if row.of_probability else kernels.plain_loss,
    }  # fmt: skip


def _head(row: Loss, module: ModuleType) -> Callable:
    """The head of either path that works out a loss."""
    if not row.per_row:
        return module.head
    return module.probability_head if row.of_probability else module.softmax_head


def _rule(optimizer: Optimizer) -> dict[str, Any]:
    """What an optimizer's formulas are."""
    return {
        "UPDATE": OPTIMIZERS[optimizer.name].update,
        "DECAY": decay_weight if optimizer.weight_decay else keep_weight,
        "N_NUMBERS": N_NUMBERS,
        "AVERAGE": kernels.no_average if optimizer.ema_decay is None else kernels.move_average,
    }
