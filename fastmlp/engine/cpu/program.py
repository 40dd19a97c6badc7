"""A network's program: which pieces it needs, and the argument blocks made of them.

A piece is a function that is compiled apart and called by address (`fastmlp.engine.cpu.pieces`).
A `Program` knows for one network, objective and optimizer which pieces take which part, has them
ready, and puts their addresses, with those of memory and workspace, into a `Task`.
"""

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from fastmlp.dropout import Dropout, threshold
from fastmlp.engine import objects
from fastmlp.engine.cpu import pieces
from fastmlp.engine.cpu.blocks import Layer, Task
from fastmlp.engine.cpu.layout import (
    MAX_GRADIENT_ROWS,
    MICRO_PANEL_COLUMNS,
    N_TILES,
    PACK_PANELS,
    PACK_ROWS,
    Layout,
    aligned,
)
from fastmlp.engine.cpu.memory import Memory
from fastmlp.engine.cpu.samples import is_fused
from fastmlp.engine.cpu.source import address
from fastmlp.functions import ACTIVATIONS
from fastmlp.objective import Objective
from fastmlp.optimizers import Optimizer


@cache
def _tile_table(dtype: str) -> np.ndarray:
    """Where kernels find the tiles."""
    table = np.zeros(N_TILES, np.int64)
    objects.entry("tiles", dtype)(0, address(table))
    return table


class Program:
    """What the kernels of one network are made of."""

    def __init__(
        self,
        layout: Layout,
        objective: Objective | None,
        dropout: Dropout,
        optimizer: Optimizer | None,
    ):
        self._layout, self._network = layout, layout.network
        self._objective, self._dropout, self._optimizer = objective, dropout, optimizer
        self._type = str(layout.dtype.name)

    # --- which pieces

    def require_first(self) -> None:
        """Make ready what every use needs and, with an optimizer, all that training will."""
        needed: list[Any] = list(pieces.PARAMETERS)
        if self._optimizer is not None:
            needed += ["epoch", *self._pieces(sparse=False, train=True, loss=True).values()]
            needed += self._update(self._optimizer)[0].values()
            for loop in self._loops(sparse=False, train=True):
                needed += [name for name in loop.values() if isinstance(name, str)]
        self._require(needed)

    def _require(self, names: Iterable[str | None]) -> None:
        likely = partial(pieces.likely, self._network, self._type)
        objects.require(pieces.keys(names, self._type), likely)

    def _address(self, piece: str | int | None) -> int:
        return piece if isinstance(piece, int) else objects.address(piece, self._type)

    def _pieces(self, *, sparse: bool, train: bool, loss: bool) -> dict[str, str | None]:
        """Names of pieces by the fields of a `Task` that is for this use of the network."""
        network, objective = self._network, self._objective if loss else None
        softmax = network.out_activation == "softmax"
        fused = objective is not None and is_fused(objective.row)
        names: dict[str, str | None] = {
            "tiles": "tiles",
            "forward": "forward",
            "forward_sparse": "forward_sparse" if sparse else None,
            "forward_narrow": "forward_narrow" if self._layout.is_narrow else None,
            "softmax_rows": "softmax_rows" if softmax and (fused or not loss) else None,
            "normalise": "normalise" if network.layer_norm else None,
        }
        if objective is not None:
            names["head"] = "head_softmax" if fused else "head_elementwise"
            if not objective.row.by_user:
                names["loss"] = pieces.loss(objective.row)
        else:
            names["link"] = pieces.link(network.out_activation)
        if self._layout.transposed[-1]:
            names["transpose"] = "transpose"
        if train:
            names |= {
                "backward": "backward",
                "gradient_block": "gradient_block",
                "gradient_sparse": "gradient_sparse" if sparse else None,
                "gradient_narrow": "gradient_narrow" if self._layout.is_narrow else None,
                "normalise_derivative": "normalise_derivative" if network.layer_norm else None,
            }
        return names

    def _update(self, optimizer: Optimizer | None) -> tuple[dict[str, str], dict[str, Any]]:
        """What happens once a block's gradient is complete: pieces, and numbers, of a `Task`."""
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
        rates, kept = self._dropout.rates, self._keeps_derivatives(train)
        for row, keeps, rate in zip(network.hidden, kept, rates, strict=True):
            drops = train and rate > 0
            fused = row == ACTIVATIONS["relu"] and not drops and not network.layer_norm
            own: dict[str, str | int | None] = {"relu": int(fused)}
            if row.by_user:
                own["activation"] = pieces.user_activation(row, self._type, keep_derivative=keeps)
            elif sparse or not fused:
                own["activation"] = pieces.activation(row, keep_derivative=keeps)
            if train and not fused:
                own["derivative"] = pieces.derivative(row, keep_derivative=keeps)
            if drops:
                own["dropout"] = "dropout"
            loops.append(own)
        return loops

    def _keeps_derivatives(self, train: bool) -> list[bool]:
        """Which hidden layers keep their derivative from the forward pass."""
        layers = zip(self._network.hidden, self._dropout.rates, strict=True)
        return [train and (row.of_score or rate > 0) for row, rate in layers]

    # --- argument blocks

    def forward_task(
        self, memory: Memory, rows: int, n_threads: int, *, sparse: bool, loss: bool
    ) -> Task:
        """A task for `outputs`, with workspace for ``rows`` rows."""
        return self._task(memory, rows, n_threads, sparse=sparse, train=False, loss=loss)

    def training_task(
        self,
        memory: Memory,
        rows: int,
        n_threads: int,
        optimizer: Optimizer | None,
        *,
        sparse: bool,
        accumulates: bool,
    ) -> Task:
        """A task for `epoch`, with workspace for ``rows`` rows.

        Without an optimizer it only leaves the gradient.  ``accumulates`` says that batches are
        larger than the workspace.
        """
        names, numbers = self._update(optimizer)
        self._require(names.values())
        if accumulates or sparse or not numbers["training"]:
            memory.reserve_gradient()
        task = self._task(memory, rows, n_threads, sparse=sparse, train=True, loss=True)
        task.update({name: self._address(piece) for name, piece in names.items()} | numbers)
        return task

    def step_task(self, memory: Memory, optimizer: Optimizer) -> Task:
        """A task for `step`; the caller fills its norms, if they are to be clipped."""
        task = self.training_task(memory, 1, 1, optimizer, sparse=False, accumulates=True)
        loop = pieces.update(optimizer.name, decays=optimizer.weight_decay > 0)
        names = {"clipped": loop, "update_clipped": "update_clipped", "scale": "scale"}
        self._require(["step", *names.values()])
        task.update({name: self._address(piece) for name, piece in names.items()})
        task.max_norm = np.inf if optimizer.max_grad_norm is None else optimizer.max_grad_norm
        return task

    def _layers(
        self, places: Sequence[list[int]], *, sparse: bool, train: bool
    ) -> ctypes.Array[Layer]:
        """The network's layers for kernels.

        ``places`` are those of activations, kept derivatives, normalised scores and deltas.
        """
        layout = self._layout
        columns: dict[str, Iterable[float]] = {
            "width": layout.widths, "stride": layout.strides, "columns": layout.columns,
            "panel_width": layout.panel_widths, "rows": layout.rows,
            "rows_transposed": layout.rows_transposed, "weights": layout.weights,
            "transposed": layout.transposed, "activations": places[0],
            "kept_derivatives": places[1], "normalised": places[2], "deltas": places[3],
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

    def _places(self, rows: int, *, sparse: bool, train: bool) -> tuple[int, Sequence[list[int]]]:
        """Elements of workspace for ``rows`` rows, and the places in it that `_layers` takes."""
        sizes = [stride * rows for stride in self._layout.strides.tolist()]
        if sparse:
            sizes[0] = 0
        hidden = [size * train for size in sizes[1:-1]]
        keeps = self._keeps_derivatives(train)
        end, places = 0, []
        for some in (
            sizes,
            hidden,
            [size * keep for size, keep in zip(hidden, keeps, strict=True)],
            [size * self._network.layer_norm for size in hidden],
        ):
            starts = []
            for size in some:
                starts.append(end)
                end += size
            places.append(starts)
        activations, deltas, kept, scores = places
        derivatives = [
            place if keep else activation
            for place, keep, activation in zip(kept, keeps, activations[1:-1], strict=True)
        ]
        first, last = activations[0], activations[-1]
        return end, (
            activations, [first, *derivatives, last], [first, *scores, last], [0, *deltas, 0]
        )  # fmt: skip

    def _workspace(
        self, size: int, rows: int, n_threads: int, *, sparse: bool, train: bool, loss: bool
    ) -> tuple[np.ndarray, dict[str, int]]:
        """A task's workspace, and where in it its fields are."""
        layout, network = self._layout, self._network
        objective = self._objective if loss else None
        softmax = network.out_activation == "softmax"
        elementwise = objective is not None and not is_fused(objective.row)
        n_elementwise = rows * network.n_outputs * elementwise
        is_wide = layout.widths[1:].max() >= PACK_PANELS * layout.panel
        packs = train and rows >= PACK_ROWS and is_wide
        n_blocks = len(layout.gradient_blocks(False))
        n_parts = layout.n_parts(rows, sparse=sparse) if train and n_threads > 1 else 1
        sizes = {
            "work": size + layout.vector,
            "zeros": layout.panel,
            **dict.fromkeys(("sums", "peaks"), rows * softmax),
            **dict.fromkeys(("scores", "true", "constants", "per_output"), n_elementwise),
            **dict.fromkeys(("scales", "losses"), rows),
            "scratch": 2 * MAX_GRADIENT_ROWS * layout.panel * n_threads,
            "parts": n_parts * int(layout.weights[-1]) * (n_parts > 1),
            "micro_panels": MICRO_PANEL_COLUMNS * rows * n_threads * packs,
            **dict.fromkeys(("squares", "norms"), n_blocks),
        }
        starts, end = {}, 0
        for name, n in sizes.items():
            starts[name] = end
            end += -(-n // layout.page) * layout.page
        memory = aligned(end, layout.dtype)
        if objective is not None:
            constants = memory[starts["constants"] :][:n_elementwise]
            constants[:] = np.resize(objective.constant_per_output, n_elementwise)
        begin, itemsize = address(memory), layout.dtype.itemsize
        return memory, {
            name: begin + starts[name] * itemsize if n else 0 for name, n in sizes.items()
        }

    def _task(
        self, memory: Memory, rows: int, n_threads: int, *, sparse: bool, train: bool, loss: bool
    ) -> Task:
        names = self._pieces(sparse=sparse, train=train, loss=loss)
        self._require(["outputs" if not train else "epoch", *names.values()])
        layout, network = self._layout, self._network
        size, places = self._places(rows, sparse=sparse, train=train)
        workspace, fields = self._workspace(
            size, rows, n_threads, sparse=sparse, train=train, loss=loss
        )
        objective = self._objective if loss else None
        shows_average = memory.averages and not train
        layers = self._layers(places, sparse=sparse, train=train)
        blocks = layout.gradient_blocks(sparse)
        task = Task(
            gradient_blocks=address(blocks), n_gradient_blocks=len(blocks),
            n_packed=int(layout.weights[-1]),
            n_layers=len(layout.widths) - 1, layers=address(layers),
            dropout_seed=self._dropout.seed, softmax=network.out_activation == "softmax",
            loss_divisor=1 if objective is None else objective.divisor,
            parameters=address(memory.average if shows_average else memory.parameters),
            transposed=address(memory.average_transposed if shows_average else memory.transposed),
            first_slot=address(memory.slots[0]), second_slot=address(memory.slots[1]),
            average=address(memory.average), gradient=address(memory.gradient),
            control=address(memory.control), barrier=address(memory.barrier),
            **fields,
            **{name: self._address(piece) for name, piece in names.items()},
        )  # fmt: skip
        task.tiles = address(_tile_table(self._type))
        if objective is not None and objective.row.by_user:
            task.loss = pieces.user_loss(objective.row, self._type)
        task.keep = layers, blocks, workspace  # and not the engine, which keeps the task
        return task
