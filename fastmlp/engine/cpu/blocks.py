"""Argument blocks: what kernels are called with, as records in memory.

A compiled kernel takes a thread's number and the address of one block.  Its fields are stated here
once: Python writes them as attributes of a `ctypes.Structure`, and the kernels read them through a
record type made from the same class (`fastmlp.engine.cpu.jit.record`).

Everything is an int64 (a size, an offset in elements, a flag, or an address, 0 if there is none)
but for the few numbers that are floats.
"""

import ctypes
from collections.abc import Mapping
from typing import Any


class Block(ctypes.Structure):
    """A record, and with it whatever its addresses belong to.

    Attributes
    ----------
    keep : object
        Kept alive as long as the block is.
    """

    keep: Any = None

    @property
    def address(self) -> int:
        """For the kernel."""
        return ctypes.addressof(self)

    def update(self, fields: Mapping[str, Any]) -> None:
        """Set some fields."""
        for name, value in fields.items():
            setattr(self, name, value)


def _integers(names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names.split()]


def _floats(names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_double) for name in names.split()]


class Layer(Block):
    """One layer of a `Task`, which has one for the input as well.

    Sizes and places are those of `fastmlp.engine.cpu.layout.Layout`; ``activations``,
    ``kept_derivatives``, ``normalised`` (scores after layer normalisation) and ``deltas`` are
    places in the workspace.  The output layer's deltas take the place of its activations.  A
    derivative is kept from the forward pass if it is a function of the score, or the layer has
    dropout; otherwise its place is that of the activations, of which it is made.

    What leads from this layer to the next hidden one: whether ``relu`` is fused into the tiles; the
    addresses of the loops of ``activation``, ``derivative`` and ``dropout``; its ``threshold`` and
    ``dropout_scale``.
    """

    _fields_ = [
        *_integers("width stride columns panel_width rows rows_transposed weights transposed"),
        *_integers("activations kept_derivatives normalised deltas"),
        *_integers("relu activation derivative dropout threshold"),
        *_floats("dropout_scale"),
    ]


class Task(Block):
    """What `epoch`, `outputs` and `refresh_transposed` work on.

    - The call: ``n_threads`` that run it at once, ``n_samples``, ``batch_size``, ``micro_batch``
      (rows that the workspace holds), the epoch's steps from ``first_step`` to ``stop_step``, and
      the loss of those before; ``numbers`` of all its steps (see
      `fastmlp.optimizers.Optimizer.step_numbers`), ``gradient_blocks``, ``bounds``, ``n_parts``
      and, of the parts' blocks, ``part_bounds`` (see `Layout`), ``prefetch`` (whether parameters
      are worth asking for early), ``standby`` (the threads' flags, or 0), ``alpha``.
    - The samples: ``values`` are dense rows ``row_stride`` bytes apart or, if ``sparse``, the
      values of a CSR matrix with ``columns`` (int32) and ``row_starts`` (int64); ``targets``,
      ``classes`` and ``weights``; ``order`` (int64) lists the rows to visit.
    - The network: ``n_layers`` without the input, ``layers`` (an array of `Layer`),
      ``dropout_seed``, whether outputs go through ``softmax``, ``loss_divisor`` (averages a loss
      over outputs).
    - Memory: packed ``parameters`` and their ``transposed`` copy, slots of state, ``average``,
      ``gradient``, and those of ``parts``, of ``n_packed`` elements each; workspace ``work``;
      ``zeros``; ``control`` words, which threads share (see `fastmlp.engine.cpu.layout`), and a
      ``barrier``. Softmax needs ``sums`` and ``peaks``, one number per row; losses other than
      `log_loss` need ``scores``, ``true`` targets, ``constants`` and ``per_output`` losses, one per
      row and output; each row has one of ``scales`` and ``losses``, each thread a ``scratch`` and
      ``micro_panels``, each gradient block one of ``squares`` and ``norms``.
    - Where results of `outputs` go: ``out``, or if that is 0, sums of losses to
      ``row_block_losses``; whether it ``checks`` that samples are finite.
    - The update: address of its ``loop``, which is that of the optimizer if ``training``, else the
      one that only completes the gradient; ``clipped``, the optimizer's loop if it has to wait for
      the norm of the whole gradient, with ``sum_squares``, ``scale`` and ``max_norm``; ``averager``
      and ``average_rate``, one minus the average's decay.
    - Addresses of the other pieces, 0 for those that this task does not need.
    """

    _fields_ = [
        *_integers("n_threads n_samples batch_size micro_batch first_step stop_step"),
        *_integers("numbers"),
        *_integers("gradient_blocks n_gradient_blocks bounds n_parts part_bounds n_packed parts"),
        *_integers("prefetch standby"),
        *_floats("alpha loss_before"),
        *_integers("sparse values row_stride columns row_starts targets classes weights order"),
        *_integers("n_layers layers dropout_seed softmax loss_divisor"),
        *_integers("parameters transposed first_slot second_slot average gradient work zeros"),
        *_integers("control barrier sums peaks scores true constants per_output scales losses"),
        *_integers("scratch micro_panels squares norms out row_block_losses checks"),
        *_integers("loop training clipped sum_squares scale averager"),
        *_floats("max_norm average_rate"),
        *_integers("tiles dots transpose softmax_rows forward forward_sparse forward_narrow head"),
        *_integers("loss link normalise normalise_derivative backward gradient_block"),
        *_integers("gradient_sparse gradient_narrow update_clipped"),
    ]


class Packing(Block):
    """Addresses of a ``flat`` vector, of the ``packed`` one, and of `Layout`'s tables."""

    _fields_ = [
        *_integers("flat packed n_layers widths columns panel_widths rows weights"),
        *_floats("padding_bias"),
    ]


class Rows(Block):
    """A few rows to predict straight from a user's arrays.

    ``arrays`` holds the addresses of weights and biases in turn, ``activations`` those of loops.
    The samples are as in `Task`; ``n_rows`` of them.  ``work`` has room for two layers.
    """

    _fields_ = [
        *_integers("one_row arrays n_layers widths activations normalise link softmax"),
        *_integers("sparse values row_stride columns row_starts n_rows work out"),
    ]


class Pairs(Block):
    """``n`` pairs of arrays: addresses of ``arrays`` and ``copies``, ``sizes`` in 4 bytes."""

    _fields_ = _integers("n arrays copies sizes")


class Shuffle(Block):
    """``n`` int64 ``values``, a bit generator's function and state, room for `AHEAD` indices."""

    _fields_ = _integers("values n function state drawn")


class Watch(Block):
    """``flags`` of ``n_threads`` threads; the ``word`` to tell, or ``most`` looks to take."""

    _fields_ = _integers("flags n_threads word most")
