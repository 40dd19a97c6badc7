"""Emulated GPUs that look closer than `EmulatedDevice`, each at one thing, and are slower.

`CachedDevice` has each block see global memory through a cache of its own.  `CountingDevice` counts
what memory has to do for the loads and stores of whole warps.  `SingleDevice` rounds every
operation to float32 where its operands are.
"""

import sys
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
from greenlet import getcurrent
from simt import WARP, EmulatedDevice, Memory, _Real, add_release, from_bf16, load_acquire

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


# --- loads and stores of whole warps ------------------------------------------------------------

BANKS, WORD = 32, 4  # of shared memory; bytes of a bank's word


class Counts(NamedTuple):
    """Of instructions of warps: how many, the turns that memory takes for them (wavefronts of
    shared memory, sectors of global memory), and the turns that as many bytes need.
    """

    instructions: int
    turns: int
    least: int


class CountedMemory(Memory):
    """Notes which thread reads or writes what, and where in the kernel."""

    def __getitem__(self, i):
        _note(self, i, 1)
        return super().__getitem__(i)

    def __setitem__(self, i, value):
        _note(self, i, 1)
        super().__setitem__(i, value)

    def vector(self, i, n):
        _note(self, i, n)
        return [super(CountedMemory, self).__getitem__(i + k) for k in range(n)]

    def set_vector(self, i, values):
        _note(self, i, len(values))
        for k, value in enumerate(values):
            super().__setitem__(i + k, value)

    def expect(self, i, n):
        _note(self, i, n)
        super().expect(i, n)


def _note(memory, i, n) -> None:
    """Lanes of a warp meet in an instruction if they came to the same place, by the same calls, as
    often since they last met.
    """
    thread, frame, calls = getcurrent(), sys._getframe(2), []
    while frame.f_code.co_filename.endswith(("simt.py", "checked.py")):
        frame = frame.f_back
    while not frame.f_code.co_filename.endswith("simt.py"):
        calls.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    kernel, *path = [code.co_name for code, _ in reversed(calls)]
    function = "/".join(path) or kernel
    place = (thread.n_meetings, memory.space, *calls)
    thread.visits[place] += 1
    size = memory.dtype.itemsize
    key = (*thread.warp, thread.visits[place], place)
    thread.accesses[memory.space, function, n * size][key].append((thread.index, i * size))


def _turns_of_banks(starts: list[tuple[int, int]], n_bytes: int) -> tuple[int, int]:
    """As many lanes at a time as 32 words make; in a bank each other word takes another turn."""
    groups = defaultdict(lambda: defaultdict(set))
    for index, start in starts:
        for word in range(start // WORD, (start + n_bytes) // WORD):
            groups[index % WARP * n_bytes // (WARP * WORD)][word % BANKS].add(word)
    return sum(max(map(len, banks.values())) for banks in groups.values()), len(groups)


def _turns_of_sectors(starts: list[tuple[int, int]], n_bytes: int) -> tuple[int, int]:
    read = {byte for _, start in starts for byte in range(start, start + n_bytes, WORD)}
    return len({byte // SECTOR for byte in read}), -(-len(read) * WORD // SECTOR)


class CountingDevice(EmulatedDevice):
    """A GPU that counts what its memory has to do; tensor cores give back what they are to add to.

    Attributes
    ----------
    accesses : dict
        (space, function, bytes of a lane) -> instruction of a warp -> [(thread, first byte)];
        functions by the way to them from the kernel.
    """

    global_memory = shared_memory = CountedMemory

    def __init__(self, *options):
        super().__init__(*options)
        self.accesses = defaultdict(lambda: defaultdict(list))
        cores = dict.fromkeys(("mma_tf32", "mma_bf16"), lambda *registers: registers[6:])
        self._twins |= cores
        self._names |= cores

    def _run(self, live):
        for thread in live:
            thread.visits, thread.accesses = Counter(), self.accesses
        super()._run(live)

    def counts(self) -> dict[tuple[str, str, int], Counts]:
        """By space, function and bytes of a lane."""
        found = {}
        for (space, function, n_bytes), warps in self.accesses.items():
            turns_of = _turns_of_banks if space == "shared" else _turns_of_sectors
            turns = [turns_of(starts, n_bytes) for starts in warps.values()]
            found[space, function, n_bytes] = Counts(
                len(turns), *map(sum, zip(*turns, strict=True))
            )
        return found


# --- arithmetic in float32 ----------------------------------------------------------------------


class Single(float):
    """A float32: operations with another round; with a float64 or an integer, the literals among
    them too, they are done in float64, as Numba does, and noted.  (The compiler makes one operation
    of a product that is added; here the product is rounded, too.)
    """

    promoted: set[str] = set()
    """Functions that mixed them."""

    def __new__(cls, value=0.0):
        return float.__new__(cls, np.float32(value))

    def __neg__(self):
        return Single(-float(self))

    def __abs__(self):
        return Single(abs(float(self)))


def _operation(name):
    of_floats = getattr(float, name)

    def operation(self, other):
        result = of_floats(self, other)
        if type(other) is Single:
            return Single(result)
        Single.promoted.add(sys._getframe(1).f_code.co_name)
        return result

    return operation


for _name in ("add", "sub", "mul", "truediv", "pow"):
    for _side in ("", "r"):
        setattr(Single, f"__{_side}{_name}__", _operation(f"__{_side}{_name}__"))


def _of_single(function):
    """A function of `math` on the GPU: infinities where Python has errors."""

    def of_single(x):
        with np.errstate(all="ignore"):
            return type(x)(function(np.float64(x)))

    return of_single


def _stored(value, dtype):
    return Single(value) if dtype == np.float32 else value


class TypedMemory(Memory):
    """Arrays of float32 hold `Single`."""

    def __getitem__(self, i):
        return _stored(super().__getitem__(i), self.dtype)

    def __setitem__(self, i, value):
        super().__setitem__(i, _stored(value, self.dtype))


class _TypedReal(_Real):
    def __call__(self, x):
        return Single(x) if self.dtype == np.float32 else float(x)


class SingleDevice(EmulatedDevice):
    """A GPU whose arithmetic has the types of its operands."""

    global_memory = shared_memory = local_memory = TypedMemory
    real = _TypedReal

    def __init__(self, *options):
        super().__init__(*options)
        functions = ("exp", "log", "log1p", "tanh", "sqrt")
        self._names |= {name: _of_single(getattr(np, name)) for name in functions}
        self._names["from_bf16"] = lambda bits: Single(from_bf16(bits))
        Single.promoted = set()

    def launch(self, launch):
        args = tuple(Single(x) if isinstance(x, np.float32) else x for x in launch.args)
        super().launch(launch._replace(args=args))
