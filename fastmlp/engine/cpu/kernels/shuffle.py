"""NumPy's legacy shuffle; see `fastmlp.training.shuffle`."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastmlp.engine.cpu.blocks import Shuffle
from fastmlp.engine.cpu.kernels.jit import Piece, record
from fastmlp.engine.cpu.kernels.vector import load, store
from fastmlp.engine.cpu.layout import AHEAD

_shuffle = record(Shuffle)


@intrinsic
def _next_uint32(typingctx, function, state):
    """Call the bit generator's ``next_uint32``."""

    def codegen(context, builder, signature, args):
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [pointer])
        function = builder.inttoptr(args[0], kind.as_pointer())
        return builder.call(function, [builder.inttoptr(args[1], pointer)])

    return types.uint32(types.int64, types.int64), codegen


def shuffle(thread, task):
    """Fisher and Yates, each index drawn by masking and rejection, as in NumPy's C code."""
    t, none = _shuffle(task, 0), np.int64(0)
    values, drawn = t.values, t.drawn
    i = t.n - 1
    while i > 0:
        mask = np.uint32(i)
        for shift in (1, 2, 4, 8, 16):
            mask |= mask >> np.uint32(shift)
        n = min(AHEAD, i - int(mask >> np.uint32(1)))  # so far the mask stays the same
        k = 0
        while k < n:
            index = np.int64(_next_uint32(t.function, t.state) & mask)
            store(drawn, k, index)
            k += int(index <= i - k)
        for k in range(n):
            index = load(drawn, k, none)
            value = load(values, i - k, none)
            store(values, i - k, load(values, index, none))
            store(values, index, value)
        i -= n
    return 0.0


PIECES = {"shuffle": Piece(shuffle, "iid")}
