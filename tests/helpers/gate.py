"""Compiles CUDA kernels for GPUs that are not there, and reads what became of them.

`GateDevice` stands in for `fastmlp.engine.cuda.device.Device`.  It computes nothing: each launch
compiles its kernel, for the types of that launch, as `Device` would on a GPU, and the machine code
is taken apart.  Needs the ``cuda-ci`` extra; one of the names used here is private to numba-cuda.
"""

import contextlib
import re
import subprocess
import tempfile
from collections import Counter
from types import SimpleNamespace

import numpy as np

from fastmlp.engine.cuda.compiler import compile_kernel
from fastmlp.engine.cuda.device import Sequence

OPCODES = ("HMMA", "LDGSTS", "FFMA", "DFMA", "STL", "LDL", "CALL")


def find_tools() -> dict[str, str | None]:
    """Paths of the disassemblers, None where the ``cuda-ci`` extra is missing."""
    try:
        from cuda import pathfinder
    except ImportError:
        return {"cuobjdump": None, "nvdisasm": None}
    return {name: pathfinder.find_nvidia_binary_utility(name) for name in ("cuobjdump", "nvdisasm")}


@contextlib.contextmanager
def assume_capability(capability):
    """Let device functions be compiled without a driver."""
    from numba.cuda import dispatcher

    found = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability[:2])
    try:
        yield
    finally:
        dispatcher.get_current_device = found


def compile_for(template, names, arguments, threads, capability) -> bytes:
    """The cubin of a kernel for the types of ``arguments``."""
    from numba import cuda

    with assume_capability(capability):
        code, _ = compile_kernel(cuda, template, names, arguments, threads, capability)
    return code.code


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, bytes of stack, shared and local memory, and how often some opcodes occur."""
    tools = find_tools()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def run(*command):
            return subprocess.run(
                [*command, file.name], capture_output=True, text=True, check=True
            ).stdout

        usage = run(tools["cuobjdump"], "-res-usage")
        code = run(tools["nvdisasm"], "-c")
    names = ("REG", "STACK", "SHARED", "LOCAL")
    # of the kernel and of what it calls
    found = {name: max(map(int, re.findall(rf"\b{name}:(\d+)", usage))) for name in names}
    counts = Counter(re.findall(r"\b[A-Z]+[A-Z0-9]*", code))
    return found | {opcode: counts[opcode] for opcode in OPCODES}


class GateDevice:
    """Compiles what an engine launches, for one compute capability.

    Attributes
    ----------
    reports : dict
        (kernel, its names) -> `resources`.
    """

    name = "compile gate"
    n_multiprocessors = 132
    shared_bytes = 99 * 1024

    def __init__(self, capability):
        self._capability = capability
        self.reports: dict[tuple, dict[str, int]] = {}

    def upload(self, array):
        flat = np.ascontiguousarray(array).reshape(-1)
        return flat.copy() if flat.size else np.zeros(1, flat.dtype)

    def empty(self, n, dtype):
        return np.zeros(max(n, 1), dtype)

    zeros = empty

    def free_bytes(self):
        return 2**40

    def write(self, buffer, array):
        assert buffer.shape == array.shape

    def read(self, buffer, n=None):
        return buffer[:n].copy()

    def synchronize(self):
        pass

    def kernel(self, template, **names):
        return template, names

    def sequence(self, launches):
        return Sequence(self, launches)

    def capture(self, launches):
        return launches

    def replay(self, graph):
        pass

    def launch(self, launch):
        template, names = launch.kernel
        shown = tuple((name, getattr(value, "__name__", value)) for name, value in names.items())
        key = (template.__name__, launch.threads, *shown)
        if key not in self.reports:
            cubin = compile_for(template, names, launch.args, launch.threads, self._capability)
            self.reports[key] = resources(cubin)
