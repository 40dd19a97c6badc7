"""What helper threads on standby and their caller do; see `fastmlp.engine.cpu.standby`."""

from fastmlp.engine.cpu.blocks import Watch
from fastmlp.engine.cpu.kernels.jit import Piece, jit, record
from fastmlp.engine.cpu.kernels.vector import atomic_load, compare_and_swap, pause, yield_thread
from fastmlp.engine.cpu.standby import BUSY, GO, GONE, LOOKS, SPINS, WAITING, WORDS

_record = record(Watch)


@jit
def _watch(flag, word, most):
    """Wait until the flag says something else; False if it takes too long."""
    i = 0
    while atomic_load(flag) == word:
        if i == most:
            return False
        if i < SPINS:
            pause()
        else:
            yield_thread()
        i += 1
    return True


@jit
def stand_by(flags, thread):
    """Wait for the caller's next epoch, as ``thread``; whether it came."""
    if not flags:
        return False
    flag = flags + 8 * WORDS * thread
    compare_and_swap(flag, BUSY, WAITING)
    if not _watch(flag, WAITING, LOOKS):
        compare_and_swap(flag, WAITING, GONE)
    return compare_and_swap(flag, GO, BUSY)


def settle(thread, watch):
    """Whether no helper is at work, after ``most`` looks at each."""
    w = _record(watch, 0)
    settled = 1.0
    for helper in range(1, w.n_threads):
        if not _watch(w.flags + 8 * WORDS * helper, BUSY, w.most):
            settled = 0.0
    return settled


def tell(thread, watch):
    """Tell a word to the helpers that wait."""
    w = _record(watch, 0)
    for helper in range(1, w.n_threads):
        compare_and_swap(w.flags + 8 * WORDS * helper, WAITING, w.word)
    return 0.0


PIECES = {"settle": Piece(settle, "iid"), "tell": Piece(tell, "iid")}
