"""Emulated GPUs that look closer than `EmulatedDevice`, each at one thing, and are slower.

`CachedDevice` has each block see global memory through a cache of its own.
"""

from greenlet import getcurrent
from simt import EmulatedDevice, Memory, add_release, load_acquire

SECTOR = 32  # bytes that a load brings into the cache


# --- what blocks see of each other's writes -----------------------------------------------------


class CachedMemory(Memory):
    """Global memory behind a cache of each block: the list holds what is in L2.

    A plain read brings a sector into the cache and sees it again, however old, until the block
    acquires; what a block writes is its own until it releases.  A copy of 16 bytes reads beside the
    cache, as cp.async.cg does, a smaller one through it.
    """

    def __getitem__(self, i):
        self.check(i)
        block, key = getcurrent().block, (id(self), i)
        if key in block.written:
            return block.written[key][1]
        if key not in block.lines:
            n = SECTOR // self.dtype.itemsize
            for k in range(i // n * n, min(i // n * n + n, len(self))):
                block.lines.setdefault((id(self), k), list.__getitem__(self, k))
        return block.lines[key]

    def __setitem__(self, i, value):
        self.check(i)
        block, key = getcurrent().block, (id(self), i)
        block.written[key] = self, value
        block.lines[key] = value

    def copied(self, i, n):
        if n * self.dtype.itemsize < 16:
            return super().copied(i, n)
        self.check(i)
        self.check(i + n - 1)
        written = getcurrent().block.written
        return [
            written[id(self), k][1] if (id(self), k) in written else list.__getitem__(self, k)
            for k in range(i, i + n)
        ]


def _publish(block) -> None:
    for (_, i), (memory, value) in block.written.items():
        list.__setitem__(memory, i, value)
    block.written.clear()


def _add_after_all(array, i, value):
    _publish(getcurrent().block)
    add_release(array, i, value)


def _load_before_all(array, i):
    value = load_acquire(array, i)
    getcurrent().block.lines.clear()
    return value


class CachedDevice(EmulatedDevice):
    """A GPU whose blocks see each other's writes only where memory is ordered."""

    global_memory = CachedMemory

    def __init__(self, *options):
        super().__init__(*options)
        self._names |= {"add_release": _add_after_all, "load_acquire": _load_before_all}

    def _run(self, live):
        blocks = dict.fromkeys(thread.block for thread in live)
        for block in blocks:
            block.lines, block.written = {}, {}
        super()._run(live)
        for block in blocks:
            _publish(block)
