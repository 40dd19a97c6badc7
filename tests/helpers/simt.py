"""A CUDA device in Python: runs kernel templates thread by thread, and is hard on their mistakes.

Each CUDA thread is a greenlet.  A warp runs ahead until all of its threads wait at a barrier of the
block, and a block until it waits for others, so that a missing barrier is not hidden by threads
that happen to keep step; the order of blocks, warps and threads is forward, reverse, or random, and
must not matter.  Shared and local arrays start as NaN (or nonsense), each read and write is checked
for its range, asynchronous copies arrive as late as they may, or at once, and are checked for their
types.  All blocks of a launch are alive together, so grid-wide barriers work.

The functions of `fastmlp.engine.cuda.ptx` have twins here of the same names.  Fragment layouts are
written down again from the PTX ISA, not taken over from the kernels.

Arithmetic is Python's, in float64, and rounded to an array's type when the host reads it, and all
blocks see the same memory; `checked` has devices that look closer.  What the compiler would refuse
is not seen here but by the compile gate.
"""

import itertools
import random
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
from greenlet import getcurrent, greenlet

from fastmlp.engine.cuda.compiler import bind
from fastmlp.engine.cuda.device import Launch, Sequence
from fastmlp.engine.cuda.tiles import MmaTile, RowTile, Sizes, Tile

WARP = 32
NONSENSE = 0x7BAD
MOST_SPINS = 1000
EMULATED_SIZES = Sizes(
    (Tile(16, 16, 8, 4, 4, slices=2), Tile(8, 8, 8, 4, 4, slices=2, stages=2)),
    (MmaTile(32, 32, 16, 16, 16), MmaTile(16, 16, 32, 16, 16, slices=2)),
    (MmaTile(32, 32, 32, 16, 16), MmaTile(16, 16, 32, 16, 16, slices=2)),
    (RowTile(4, 4, 1, 128), RowTile(8, 4, 1, 128), RowTile(32, 8, 4, 128)),
    32,
)


class Fault(Exception):
    """What a GPU would answer with an error, or with rubbish."""


def _dtype(kind) -> np.dtype:
    return np.dtype(kind if isinstance(kind, type | np.dtype | str) else str(kind))


def _poison(kind):
    return float("nan") if _dtype(kind).kind == "f" else NONSENSE


class Memory(list):
    """One-dimensional memory; indices out of range are faults, negative ones too."""

    def __init__(self, values, dtype: np.dtype, space: str, alignment: int | None = None):
        super().__init__(values)
        self.dtype, self.space, self.alignment = dtype, space, alignment or dtype.itemsize
        self.others: list[Memory] = []  # of another type, in the same place

    def check(self, i):
        if not 0 <= i < len(self):
            raise Fault(f"{self.space} array of {len(self)} elements at {i}")

    def __getitem__(self, i):
        if i < 0 or i >= len(self):
            self.check(i)
        return list.__getitem__(self, i)

    def __setitem__(self, i, value):
        if i < 0 or i >= len(self):
            self.check(i)
        self.put(i, value)

    def put(self, i, value):
        """Write; what else is in the same place is rubbish then."""
        list.__setitem__(self, i, value)
        for other in self.others:
            size = other.dtype.itemsize
            first, end = i * self.dtype.itemsize, (i + 1) * self.dtype.itemsize
            for k in range(first // size, -(-end // size)):
                list.__setitem__(other, k, _poison(other.dtype))

    def vector(self, i, n):
        """``n`` elements that one instruction reads."""
        return [self[i + k] for k in range(n)]

    def set_vector(self, i, values):
        """The same that one instruction writes."""
        for k, value in enumerate(values):
            self[i + k] = value

    def copied(self, i, n):
        """What an asynchronous copy of ``n`` elements reads."""
        return self.vector(i, n)

    def expect(self, i, n):
        """An asynchronous copy will put ``n`` elements here."""
        self.check(i)
        self.check(i + n - 1)


class _Real:
    """A floating-point type: makes Python floats, and says which type it is for arrays."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def __call__(self, x):
        return float(x)

    def __str__(self):
        return self.dtype.name


class Block:
    """A block of threads, and what they share."""

    def __init__(self, index, grid, shared_bytes: int):
        self.index, self.grid, self.shared_bytes = index, grid, shared_bytes
        self.shared: list[Memory] = []
        self.dynamic: dict[np.dtype, Memory] = {}
        self.products: dict = {}  # the last of tensor cores, by warp
        self.boards: dict = defaultdict(dict)


class Thread(greenlet):
    """One CUDA thread: where it is, and what it waits for."""

    def __init__(self, run, block, index: int):
        super().__init__(run)
        self.block, self.index = block, index
        self.warp = (id(block), index // WARP)
        self.waits_for: str | None = None
        self.copies: list[list] = [[]]
        self.seen = None  # by the last load_acquire
        self.n_shared = 0  # shared arrays asked for
        self.n_meetings = 0  # with its warp or block


def _wait(what: str) -> None:
    thread = getcurrent()
    thread.waits_for = what
    thread.n_meetings += what != "spin"
    thread.parent.switch()


def _exchange(value) -> dict[int, object]:
    """Every lane's value."""
    thread = getcurrent()
    board = thread.block.boards[thread.index // WARP]
    board[thread.index % WARP] = value
    _wait("warp")
    values = dict(board)
    _wait("warp")
    return values


class Cuda:
    """In the place of the module ``numba.cuda``."""

    def __init__(self, shared_memory=Memory, local_memory=Memory):
        self._shared_memory, self._local_memory = shared_memory, local_memory
        self.shared = SimpleNamespace(array=self._shared_array)
        self.local = SimpleNamespace(array=self._local_array)

    def _local_array(self, shape, kind):
        return self._local_memory([_poison(kind)] * shape, _dtype(kind), "local")

    def _shared_array(self, shape, kind, alignment=None):
        if shape == 0:
            return self._dynamic_array(getcurrent().block, _dtype(kind), alignment)
        thread = getcurrent()
        arrays, made = thread.block.shared, thread.n_shared
        thread.n_shared += 1
        if made == len(arrays):
            values = [_poison(kind)] * shape
            arrays.append(self._shared_memory(values, _dtype(kind), "shared", alignment))
        if (len(arrays[made]), arrays[made].dtype) != (shape, _dtype(kind)):
            raise Fault("threads of a block disagree about a shared array")
        return arrays[made]

    def _dynamic_array(self, block, dtype, alignment):
        """All of them are in the same place."""
        if dtype not in block.dynamic:
            values = [_poison(dtype)] * (block.shared_bytes // dtype.itemsize)
            array = self._shared_memory(values, dtype, "shared", alignment)
            array.others = list(block.dynamic.values())
            for other in array.others:
                other.others.append(array)
            block.dynamic[dtype] = array
        return block.dynamic[dtype]

    @property
    def threadIdx(self):
        return SimpleNamespace(x=getcurrent().index)

    @property
    def blockIdx(self):
        return getcurrent().block.index

    @property
    def gridDim(self):
        return getcurrent().block.grid

    def syncthreads(self):
        _wait("block")

    def syncwarp(self):
        _wait("warp")

    def shfl_sync(self, mask, value, lane):
        return _exchange(value)[lane]

    def shfl_xor_sync(self, mask, value, distance):
        return _exchange(value)[getcurrent().index % WARP ^ distance]


# --- twins of fastmlp.engine.cuda.ptx ---------------------------------------------------------


def _copied(target, i, source, j, valid, n):
    """[(index, value)] of an asynchronous copy of ``n`` elements."""
    if n * target.dtype.itemsize not in (4, 8, 16) or source.dtype != target.dtype:
        raise Fault(f"asynchronous copy of {source.dtype} to {target.dtype}")
    if i % n or (valid and j % n) or target.alignment < n * target.dtype.itemsize:
        raise Fault(f"asynchronous copy of {n} elements from {j} to {i}")
    target.expect(i, n)
    values = source.copied(j, n) if valid else [target.dtype.type(0).item()] * n
    return [(i + k, value) for k, value in enumerate(values)]


def _copy_late(*args):
    target = args[0]
    for i, value in _copied(*args):
        target.put(i, _poison(target.dtype))
        getcurrent().copies[-1].append((target, i, value))


def _copy_at_once(*args):
    for i, value in _copied(*args):
        args[0].put(i, value)


def _copies(copy):
    """The twins of all asynchronous copies."""
    return {
        "copy_element_async": lambda *args: copy(*args, 1),
        "copy_vector_async": lambda *args: copy(*args, 16 // args[0].dtype.itemsize),
    }


def quotient(a, b):
    if not (0 <= a < 2**31 and 0 < b < 2**31):
        raise Fault(f"quotient of {a} and {b}")
    return a // b


def load_shared(source, i):
    return source[i]


def _aligned(array, i) -> int:
    """How many elements from there on are 16 bytes."""
    n = 16 // array.dtype.itemsize
    if i % n or array.alignment < 16:
        raise Fault(f"{n} elements from {i} are not aligned")
    return n


def _vector(source, j):
    """16 bytes of it."""
    return source.vector(j, _aligned(source, j))


def load_vector(target, i, source, j):
    for k, value in enumerate(_vector(source, j)):
        target[i + k] = value


def store_vector(target, i, source, j):
    target.set_vector(i, [source[j + k] for k in range(_aligned(target, i))])


def _load_matrices(n, transposed):
    """The twin of one of the intrinsics that load matrices."""

    def load_matrices(target, i, source, j):
        if source.dtype.itemsize != 2 or source.space != "shared":
            raise Fault(f"matrices of {source.dtype} in {source.space} memory")
        lane = getcurrent().index % WARP
        rows = _exchange(_vector(source, j) if lane < 8 * n else None)
        row, column = lane // 4, lane % 4 * 2
        for m in range(n):
            if transposed:
                pair = rows[8 * m + column][row], rows[8 * m + column + 1][row]
            else:
                pair = rows[8 * m + row][column : column + 2]
            target[i + m] = pair[0] | pair[1] << 16

    return load_matrices


MATRICES = {
    "load_2_matrices": _load_matrices(2, False), "load_4_matrices": _load_matrices(4, False),
    "load_2_transposed": _load_matrices(2, True), "load_4_transposed": _load_matrices(4, True),
}  # fmt: skip


def commit_copies():
    getcurrent().copies.append([])


def _wait_for_copies(n_open):
    groups = getcurrent().copies
    while len(groups) - 1 > n_open:
        for target, i, value in groups.pop(0):
            target.put(i, value)


def wait_for_all_copies():
    _wait_for_copies(0)


def wait_for_all_but_one():
    _wait_for_copies(1)


def wait_for_all_but_two():
    _wait_for_copies(2)


def wait_for_all_but_six():
    _wait_for_copies(6)


def to_tf32(x) -> int:
    """Round to 10 bits of mantissa, ties away from zero."""
    bits = int(np.float32(x).view(np.uint32))
    return (bits + 0x1000) & 0xFFFFE000 if np.isfinite(x) else bits


def to_bf16(x) -> int:
    """Round to 7 bits of mantissa, ties to even."""
    bits = int(np.float32(x).view(np.uint32))
    if not np.isfinite(x):
        return bits >> 16 | np.isnan(x) << 6  # what is not a number stays none
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def from_bf16(bits) -> float:
    return float(_float_of(bits << 16))


def _float_of(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def _mma(registers, elements):
    """``elements(registers of each lane)`` are A and B, which undoes the packing of fragments."""
    lanes, thread = _exchange(registers), getcurrent()
    found, C = thread.block.products.get(thread.warp, (None, None))
    if found != lanes:  # by the first lane, for all
        A, B = elements(lanes)
        C = (A.astype(float) @ B.astype(float)).tolist()
        thread.block.products[thread.warp] = lanes, C
    lane = thread.index % WARP
    row, column = lane // 4, lane % 4 * 2
    places = (row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1)
    return tuple(
        np.float32(float(c) + C[i][j]) for c, (i, j) in zip(registers[6:], places, strict=True)
    )


def _tf32_matrices(lanes):
    A, B = np.empty((16, 8), np.float32), np.empty((8, 8), np.float32)
    for lane, registers in lanes.items():
        g, t = lane // 4, lane % 4
        A[g, t], A[g + 8, t], A[g, t + 4], A[g + 8, t + 4] = map(_float_of, registers[:4])
        B[t, g], B[t + 4, g] = map(_float_of, registers[4:6])
    return A, B


def _bf16_matrices(lanes):
    A, B = np.empty((16, 16), np.float32), np.empty((16, 8), np.float32)
    for lane, registers in lanes.items():
        g, t = lane // 4, lane % 4
        halves = [(from_bf16(r & 0xFFFF), from_bf16(r >> 16)) for r in registers[:6]]
        for (row, term), pair in zip(
            [(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)], halves, strict=False
        ):
            A[row, term : term + 2] = pair
        for term, pair in zip((2 * t, 2 * t + 8), halves[4:], strict=True):
            B[term : term + 2, g] = pair
    return A, B


def mma_tf32(*registers):
    return _mma(registers, _tf32_matrices)


def mma_bf16(*registers):
    return _mma(registers, _bf16_matrices)


def add_release(array, i, value):
    array.check(i)
    list.__setitem__(array, i, list.__getitem__(array, i) + value)


def load_acquire(array, i):
    """Gives way only when it sees what it saw before: not to wait is a bug that must show."""
    array.check(i)
    thread = getcurrent()
    if thread.seen == list.__getitem__(array, i):
        _wait("spin")
    thread.seen = list.__getitem__(array, i)
    return thread.seen


TWINS = {
    function.__name__: function
    for function in (
        commit_copies, wait_for_all_copies, wait_for_all_but_one, wait_for_all_but_two,
        wait_for_all_but_six, quotient, load_shared, load_vector, store_vector, to_tf32, to_bf16,
        from_bf16, mma_tf32, mma_bf16, add_release, load_acquire,
    )
} | MATRICES  # fmt: skip
# What planted bugs use: here, where all see the same memory, nothing depends on its order.
TWINS |= {"add_relaxed": add_release, "load_relaxed": load_acquire}


def _name_of(value):
    """Of an intrinsic."""
    return getattr(value, "__name__", None)


# --- the device -------------------------------------------------------------------------------


class EmulatedDevice:
    """Has the methods of `fastmlp.engine.cuda.device.Device`.

    Launches wait in a queue until the host asks for a result.  A copy of `send` happens as late as
    it may, just before the next launch, or as early as it may, before launches that it was not told
    to wait for.

    Parameters
    ----------
    schedule : {'forward', 'reverse', 'random'}
        In which order warps and threads run.
    late_copies : bool
        Whether copies, those of `send` and the kernels' own, arrive when they are waited for, or at
        once.
    free_bytes : int
        Memory that it says is free.
    """

    name = "emulated"
    n_multiprocessors = 2
    shared_bytes = 48 * 1024
    global_memory = shared_memory = local_memory = Memory
    real = _Real

    def __init__(self, schedule="forward", late_copies=True, free_bytes=2**40):
        self._schedule, self._late = schedule, late_copies
        self._free_bytes = free_bytes
        self._queue: list = []
        self._sent: list = []
        self._spins = 0
        self._random = random.Random(0)
        copies = _copies(_copy_late if late_copies else _copy_at_once)
        self._twins = TWINS | copies
        self._names = self._twins | {
            "cuda": Cuda(self.shared_memory, self.local_memory),
            "float64": _Real(np.dtype("float64")),
            "int32": int, "int64": int,
        }  # fmt: skip

    # --- memory

    def free_bytes(self):
        return self._free_bytes

    def empty(self, n, dtype):
        values = [_poison(np.dtype(dtype))] * max(n, 1)
        return self.global_memory(values, np.dtype(dtype), "global")

    def zeros(self, n, dtype):
        return self.upload(np.zeros(n, dtype))

    def upload(self, array):
        values = np.ascontiguousarray(array).reshape(-1).tolist()
        return self.global_memory(values or [0], array.dtype, "global")

    def adopt(self, array):
        return array.memory, array.shape

    def write(self, buffer, array):
        assert (len(buffer),) == array.shape
        values = array.tolist()
        self._queue.append(lambda: list.__setitem__(buffer, slice(None), values))

    def read(self, buffer, n=None):
        self.synchronize()
        return np.array(list(buffer)[:n], buffer.dtype)

    def synchronize(self):
        self._flush(len(self._queue))

    # --- copies beside launches

    def pinned(self, shape, dtype):
        return np.empty(shape, dtype)

    def mark(self):
        """What must have run before: everything that is in the queue now."""
        return self._queue[-1] if self._queue else None

    def send(self, buffer, array, after):
        def copy():
            if copy in self._sent:
                self._sent.remove(copy)
                list.__setitem__(buffer, slice(array.size), array.reshape(-1).tolist())

        copy.after = after
        self._sent.append(copy)
        self._queue.append(copy)
        if not self._late:
            self.wait(copy)
        return copy

    def wait(self, event):
        while event in self._sent:
            copy = self._sent[0]
            if copy.after in self._queue:
                self._flush(self._queue.index(copy.after) + 1)
            copy()

    # --- kernels

    def kernel(self, template, **names):
        twins = {
            name: self._twins[_name_of(value)]
            for name, value in names.items()
            if _name_of(value) in self._twins
        }
        real = {"REAL": self.real(_dtype(names["REAL"]))}
        return bind(template, names, lambda function: function, self._names | twins | real)

    def sequence(self, launches):
        return Sequence(self, launches)

    def capture(self, launches):
        return list(launches)

    def replay(self, graph):
        for launch in graph:
            self.launch(launch)

    def launch(self, launch: Launch):
        self._queue.append(lambda: self._start(launch))

    def _flush(self, n):
        for _ in range(n):
            self._queue.pop(0)()

    def _start(self, launch: Launch):
        grid = SimpleNamespace(**dict(zip("xyz", launch.blocks, strict=True)))
        live = []
        for z, y, x in itertools.product(*map(range, reversed(launch.blocks))):
            block = Block(SimpleNamespace(x=x, y=y, z=z), grid, launch.shared_bytes)
            live += [
                Thread(lambda: launch.kernel(*launch.args), block, i) for i in range(launch.threads)
            ]
        with np.errstate(all="ignore"):
            self._run(live)

    def _run(self, live: list[Thread]) -> None:
        warps = defaultdict(list)
        for thread in live:
            warps[thread.warp].append(thread)
        while warps:
            for key in self._in_order(list(warps)):
                warps[key] = self._run_warp(warps[key])
                if not warps[key]:
                    del warps[key]
            self._release(warps)

    def _in_order(self, things: list) -> list:
        if self._schedule == "random":
            self._random.shuffle(things)
        return things[::-1] if self._schedule == "reverse" else things

    def _run_warp(self, threads: list[Thread]) -> list[Thread]:
        """Run a warp until each thread has ended or waits for more than its warp."""
        while True:
            for thread in self._in_order(list(threads)):
                if thread.waits_for is None:
                    thread.switch()
            threads = [thread for thread in threads if not thread.dead]
            if {thread.waits_for for thread in threads} != {"warp"}:
                break
            for thread in threads:
                thread.waits_for = None
        if any(thread.waits_for == "warp" for thread in threads):
            raise Fault("some threads of a warp wait for others that will not come")
        return threads

    def _release(self, warps) -> None:
        """Let one block go on whose threads have all reached a barrier, or whoever spins."""
        waiting = [thread for threads in warps.values() for thread in threads]
        blocks = defaultdict(list)
        for thread in waiting:
            blocks[id(thread.block)].append(thread)
        groups = self._in_order(list(blocks.values()))
        complete = [g for g in groups if {thread.waits_for for thread in g} == {"block"}]
        spinning = [thread for thread in waiting if thread.waits_for == "spin"]
        released = complete[0] if complete else spinning
        self._spins = 0 if released is not spinning else self._spins + 1
        if self._spins > MOST_SPINS:
            raise Fault("threads spin, and nobody comes")
        if waiting and not released:
            raise Fault(f"deadlock: {sorted({str(thread.waits_for) for thread in waiting})}")
        for thread in released:
            thread.waits_for = None
