"""Every piece by its name, and the program that compiles some of them in a process of its own."""

import pickle
import sys

from fastmlp.engine.cpu.kernels import loops, rows, shuffle, standby, tiles, training
from fastmlp.engine.cpu.kernels.jit import Piece, emit, translate
from fastmlp.engine.objects import Key

PIECES = {
    **training.PIECES,
    **tiles.PIECES,
    **loops.PIECES,
    **rows.PIECES,
    **standby.PIECES,
    **shuffle.PIECES,
}


def piece(name: str) -> Piece:
    """The piece of that name: one of `PIECES`, or ``family/key`` for a formula of a table."""
    family, _, key = name.partition("/")
    return loops.FAMILIES[family](key) if key else PIECES[name]


def compile_named(key: Key) -> bytes:
    """Object code of a piece of the library."""
    return emit(translate(piece(key.name), key.dtype, key.symbol), key.level, key.symbol)


def main() -> None:
    """Compile what the arguments name, ``name:dtype:level``; a pickle goes to standard output."""
    keys = [Key(*argument.split(":")) for argument in sys.argv[1:]]
    pickle.dump([compile_named(key) for key in keys], sys.stdout.buffer)
