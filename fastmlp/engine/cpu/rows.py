"""Prediction of a few rows, straight from `coefs_` and `intercepts_`.

One row of a small network is a microsecond of arithmetic.  Packing parameters for the tiles, or any
Python around the call, would cost many times that, so these kernels read the user's arrays where
they lie: each layer is ``fan_in`` scaled additions of a row of ``W``.  `jit_function` is the same
code for use inside the user's own compiled functions.

Measured on one Zen 5 core, 64-100-10 in float32: 0.5 us inside compiled code, 6 us through
`predict_proba`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastmlp.engine.cpu import pieces
from fastmlp.engine.cpu.blocks import Pairs, Rows
from fastmlp.engine.cpu.source import Source, address
from fastmlp.engine.objects import address as piece
from fastmlp.engine.objects import entry, require
from fastmlp.functions import Activation
from fastmlp.network import Network


def _activation(row: Activation, dtype: str) -> int:
    if row.by_user:
        return pieces.user_activation(row, dtype, keep_derivative=False)
    return piece(pieces.activation(row), dtype)


class Comparison:
    """Tells whether arrays still hold the bits of their copies.

    Parameters
    ----------
    arrays, copies : list of ndarray
    """

    def __init__(self, arrays: list[np.ndarray], copies: list[np.ndarray]):
        tables = [np.array([address(a) for a in some], np.int64) for some in (arrays, copies)]
        tables.append(np.array([a.nbytes // 4 for a in arrays], np.int64))
        self._pairs = Pairs(
            n=len(arrays), arrays=address(tables[0]), copies=address(tables[1]),
            sizes=address(tables[2]),
        )  # fmt: skip
        self._pairs.keep = tables, arrays, copies
        self._same = entry("same")

    @staticmethod
    def accepts(arrays: Sequence[np.ndarray], copies: Sequence[np.ndarray]) -> bool:
        """Whether the kernel can read these arrays."""
        return all(
            a.dtype == b.dtype and a.shape == b.shape and a.flags.c_contiguous
            for a, b in zip(arrays, copies, strict=True)
        )

    def __call__(self) -> bool:
        return bool(self._same(0, self._pairs.address))


class RowPredictor:
    """Predicts a few rows from the arrays it was made with, edits in place included.

    Parameters
    ----------
    network : Network
    coefs, intercepts : list of ndarray
        C-contiguous, of one float type.
    """

    def __init__(
        self, network: Network, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray]
    ):
        self.arrays = [array for pair in zip(coefs, intercepts, strict=True) for array in pair]
        self.dtype = self.arrays[0].dtype
        self.network = network
        name = self.dtype.name
        require(pieces.keys(["few_rows", "one_row"], name))
        self._kernel = entry("few_rows", name)
        self._n_work = 2 * max(network.widths[1:])
        self._fields = self._describe(self.arrays)
        self.n_features = network.widths[0]

    def _describe(self, arrays: list[np.ndarray]) -> dict[str, int]:
        """What a block says of network and parameters."""
        network, name = self.network, self.dtype.name
        activations = [_activation(row, name) for row in network.hidden]
        tables = [np.array(table, np.int64) for table in (network.widths, activations)]
        tables.append(np.array([address(array) for array in arrays], np.int64))
        self._keep = (*tables, arrays)
        return {
            "one_row": piece("one_row", name),
            "n_layers": len(network.widths) - 1,
            "widths": address(tables[0]),
            "activations": address(tables[1]),
            "arrays": address(tables[2]),
            "normalise": piece("normalise" if network.layer_norm else None, name),
            "link": piece(pieces.link(network.out_activation), name),
            "softmax": network.out_activation == "softmax",
        }

    @staticmethod
    def accepts(coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray]) -> bool:
        """Whether the kernels can read these arrays as they are."""
        dtypes = {array.dtype for array in (*coefs, *intercepts)}
        return dtypes in ({np.dtype(np.float32)}, {np.dtype(np.float64)}) and all(
            array.flags.c_contiguous and array.flags.aligned for array in (*coefs, *intercepts)
        )

    def __call__(self, X: Any) -> np.ndarray | None:
        """Outputs (n_rows, n_outputs), or None if ``X`` is not finite.

        ``X`` must have this predictor's type, and contiguous rows or the form of CSR.
        """
        out = np.empty((X.shape[0], self.network.n_outputs), self.dtype)
        work = np.empty(self._n_work, self.dtype)
        return out if self._run(Source(X, self.dtype), address(work), address(out)) else None

    @staticmethod
    def each(predictors: "Sequence[RowPredictor]", X: np.ndarray) -> np.ndarray | None:
        """Outputs (n_predictors, n_rows, n_outputs) of networks with the same widths and type.

        ``X`` is read once for all, and is otherwise as for one of them.
        """
        first = predictors[0]
        out = np.empty((len(predictors), len(X), first.network.n_outputs), first.dtype)
        work, source = np.empty(first._n_work, first.dtype), Source(X, first.dtype)
        at_work, at_out = address(work), address(out)
        for i, predictor in enumerate(predictors):
            if not predictor._run(source, at_work, at_out + i * out.strides[0]):
                return None
        return out

    def _run(self, source: Source, work: int, out: int) -> bool:
        """Write outputs to an address; False if the rows are not finite."""
        task = Rows(**self._fields, **source.fields, n_rows=source.n_samples, work=work, out=out)
        return bool(self._kernel(0, task.address))

    def compiled(self) -> Callable[[np.ndarray], np.ndarray]:
        """A compiled function from one sample to its outputs, over a copy of the parameters."""
        from fastmlp.engine.cpu.kernels.rows import compiled_predictor

        own = RowPredictor(self.network, *self._copies())
        task = Rows(**own._fields)
        predict = compiled_predictor(
            task.address, own._fields["one_row"], self.n_features, self.network.n_outputs,
            self._n_work, self.dtype,
        )  # fmt: skip
        predict.py_func.__dict__["parameters"] = own, task  # the machine code has their addresses
        return predict

    def _copies(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        copies = [np.array(array) for array in self.arrays]
        return copies[::2], copies[1::2]
