"""What an engine allocates once, when it is made: parameters and state, packed as `Layout` says."""

import numpy as np

from fastmlp.engine import objects
from fastmlp.engine.cpu.blocks import Packing
from fastmlp.engine.cpu.layout import STEPS, Layout, aligned
from fastmlp.engine.cpu.source import address
from fastmlp.optimizers import N_SLOTS, Optimizer

_NO_CLASS = -1e30  # a score that softmax turns into exactly 0
_WORDS = 64  # int64s that threads share: cache lines of their own


class Memory:
    """Packed parameters and state, and the words that the threads of a call share.

    Attributes
    ----------
    parameters, transposed : ndarray
        Those that are trained, and the copy of the weights for the input gradient.
    averages : bool
        Whether the optimizer averages the parameters.
    average, average_transposed : ndarray
        Like ``parameters`` and ``transposed``; empty unless ``averages``.
    slots : list of ndarray
        The optimizer's; empty without one.
    gradient : ndarray
        Empty until `reserve_gradient`.
    control : ndarray
        See `fastmlp.engine.cpu.layout` for its words.
    barrier : ndarray
        Its first word counts the threads that have come to the barriers of a call.
    transposed_is_stale : bool
    """

    def __init__(self, layout: Layout, optimizer: Optimizer | None):
        self._layout, self._dtype = layout, layout.dtype
        self._type = str(layout.dtype.name)
        n_packed = int(layout.weights[-1])
        self.parameters = self._zeros(n_packed)
        self.slots = [self._zeros(n_packed if optimizer else 0) for _ in range(N_SLOTS)]
        self.transposed = self._zeros(int(layout.transposed[-1]))
        self.averages = optimizer is not None and optimizer.ema_decay is not None
        self.average = self._zeros(n_packed * self.averages)
        self.average_transposed = self._zeros(self.transposed.size * self.averages)
        self.gradient = self._zeros(0)
        self.control = aligned(_WORDS, np.int64)
        self.barrier = aligned(_WORDS, np.int64)
        self.transposed_is_stale = True
        self._packing = Packing(
            n_layers=layout.rows.size, widths=address(layout.widths),
            columns=address(layout.columns), panel_widths=address(layout.panel_widths),
            rows=address(layout.rows), weights=address(layout.weights),
        )  # fmt: skip

    def _zeros(self, size: int) -> np.ndarray:
        return aligned(size, self._dtype)

    def reserve_gradient(self) -> None:
        """For tasks that keep the gradient in memory."""
        if not self.gradient.size:
            self.gradient = self._zeros(self.parameters.size)

    def set_gradient(self, flat: np.ndarray) -> None:
        """Put a gradient where kernels would have left it; room must be reserved."""
        self._pack(flat, self.gradient)

    # --- flat vectors in and out

    def get_parameters(self) -> np.ndarray:
        return self.unpack(self.average if self.averages else self.parameters)

    def set_parameters(self, flat: np.ndarray) -> None:
        self._set_trained(flat)
        if self.averages:
            self.average[:] = self.parameters

    def get_slots(self) -> np.ndarray:
        packed = [*self.slots, *[self.parameters] * self.averages]
        slots = np.empty((len(packed), self._layout.network.n_parameters), self._dtype)
        for flat, slot in zip(slots, packed, strict=True):
            self._repack("unpack", flat, slot, 0.0)
        return slots

    def set_state(self, slots: np.ndarray, step: int) -> None:
        for slot, values in zip(self.slots, slots[:N_SLOTS], strict=True):
            self._pack(values, slot)
        if self.averages:
            self._set_trained(slots[N_SLOTS])
        self.control[STEPS] = step

    def _set_trained(self, flat: np.ndarray) -> None:
        bias = _NO_CLASS if self._layout.network.out_activation == "softmax" else 0.0
        self._pack(flat, self.parameters, padding_bias=bias)
        self.transposed_is_stale = True

    def _pack(self, flat: np.ndarray, packed: np.ndarray, *, padding_bias: float = 0.0) -> None:
        flat = np.ascontiguousarray(flat, self._dtype)
        self._repack("pack", flat, packed, padding_bias)

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        """The flat vector of packed parameters, a slot, or the gradient."""
        flat = np.empty(self._layout.network.n_parameters, self._dtype)
        self._repack("unpack", flat, packed, 0.0)
        return flat

    def _repack(self, name: str, flat: np.ndarray, packed: np.ndarray, padding_bias: float) -> None:
        packing = self._packing
        packing.flat, packing.packed = address(flat), address(packed)
        packing.padding_bias = padding_bias
        objects.entry(name, self._type)(0, packing.address)
