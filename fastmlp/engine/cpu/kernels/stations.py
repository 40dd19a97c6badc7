"""What helper threads and their caller do at stations; see `fastmlp.engine.cpu.stations`."""

from fastmlp.engine.cpu.blocks import Watch
from fastmlp.engine.cpu.kernels.jit import Piece, jit, record
from fastmlp.engine.cpu.kernels.vector import atomic_load, compare_and_swap, pause, yield_thread
from fastmlp.engine.cpu.stations import BUSY, GO, GONE, LOOKS, SPINS, WAITING, WORDS

_stations = record(Watch)


@jit
def _watch(station, word, most):
    """Wait until the station says something else; False if it takes too long."""
    i = 0
    while atomic_load(station) == word:
        if i == most:
            return False
        if i < SPINS:
            pause()
        else:
            yield_thread()
        i += 1
    return True


@jit
def stand_by(stations, thread):
    """Wait for the caller's next epoch, as ``thread``; whether it came."""
    if not stations:
        return False
    station = stations + 8 * WORDS * thread
    compare_and_swap(station, BUSY, WAITING)
    if not _watch(station, WAITING, LOOKS):
        compare_and_swap(station, WAITING, GONE)
    return compare_and_swap(station, GO, BUSY)


def settle(thread, watch):
    """Whether no helper is at work, after ``most`` looks at each."""
    w = _stations(watch, 0)
    settled = 1.0
    for helper in range(1, w.n_threads):
        if not _watch(w.stations + 8 * WORDS * helper, BUSY, w.most):
            settled = 0.0
    return settled


def tell(thread, watch):
    """Tell a word to the helpers that wait."""
    w = _stations(watch, 0)
    for helper in range(1, w.n_threads):
        compare_and_swap(w.stations + 8 * WORDS * helper, WAITING, w.word)
    return 0.0


PIECES = {"settle": Piece(settle, "iid"), "tell": Piece(tell, "iid")}
