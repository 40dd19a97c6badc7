"""Compiles CUDA kernels for GPUs that are not there, and reads what became of them.

`GateDevice` stands in for `fastmlp.engine.cuda.device.Device`.  It computes nothing: each launch
compiles its kernel, for the types of that launch, as `Device` would on a GPU, and the machine code
is taken apart.  Needs the ``cuda-ci`` extra.
"""

import re
import subprocess
import tempfile
from collections import Counter
from typing import NamedTuple

from fastmlp.engine.cuda.compiler import compile_kernel
from fastmlp.engine.cuda.shipped import Recorder, assume_target

OPCODES = ("HMMA", "LDGSTS", "FFMA", "DFMA", "STL", "LDL", "CALL")


def find_tools() -> dict[str, str | None]:
    """Paths of the disassemblers, None where the ``cuda-ci`` extra is missing."""
    try:
        from cuda import pathfinder
    except ImportError:
        return {"cuobjdump": None, "nvdisasm": None}
    return {name: pathfinder.find_nvidia_binary_utility(name) for name in ("cuobjdump", "nvdisasm")}


def compile_for(template, names, arguments, threads, capability) -> bytes:
    """The cubin of a kernel for the types of ``arguments``."""
    from numba import cuda

    with assume_target(capability):
        code, _ = compile_kernel(cuda, template, names, arguments, threads, capability)
    return code.code


def disassemble(cubin: bytes) -> tuple[str, str]:
    """(resource usage, machine code) as text."""
    tools = find_tools()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = [tools["cuobjdump"], "-res-usage"], [tools["nvdisasm"], "-c"]
        usage, code = (
            subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    return usage, code


def resources(usage: str, code: str) -> dict[str, int]:
    """Registers, bytes of stack, shared and local memory, and how often some opcodes occur."""
    names = ("REG", "STACK", "SHARED", "LOCAL")
    # of the kernel and of what it calls
    found = {name: max(map(int, re.findall(rf"\b{name}:(\d+)", usage))) for name in names}
    counts = Counter(re.findall(r"\b[A-Z]+[A-Z0-9]*", code))
    return found | {opcode: counts[opcode] for opcode in OPCODES}


_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;")


class Loop(NamedTuple):
    """How often each opcode, with its modifiers, occurs in a loop that holds no other, and in the
    loop around it, if there is one, beside all loops that this one holds.
    """

    body: Counter
    around: Counter


def loops(code: str) -> list[Loop]:
    """All loops that hold no other.

    The padding around asynchronous copies, which is never executed, does not count.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif "@!PT" not in line and (found := _INSTRUCTION.match(line)):
            lines.append(found[1])
    ends = set()
    for n, text in enumerate(lines):
        if (found := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", text)) and labels[found[1]] <= n:
            ends.add((labels[found[1]], n))

    def within(outer: tuple[int, int]) -> list[tuple[int, int]]:
        return [each for each in ends
                if each != outer and outer[0] <= each[0] and each[1] <= outer[1]]  # fmt: skip

    def opcodes(loop: tuple[int, int]) -> Counter:
        inner = {n for first, last in within(loop) for n in range(first, last + 1)}
        here = range(loop[0], loop[1] + 1)
        return Counter(lines[n].split()[0] for n in here if n not in inner)

    found = []
    for loop in sorted(ends):
        if not within(loop):
            around = min((each for each in ends if loop in within(each)),
                         key=lambda each: each[1] - each[0], default=None)  # fmt: skip
            found.append(Loop(opcodes(loop), opcodes(around) if around else Counter()))
    return found


def count(loop: Counter, opcode: str) -> int:
    """Instructions of a loop with an opcode, whatever its modifiers."""
    return sum(n for name, n in loop.items() if name.split(".")[0] == opcode)


def count_spills(code: str) -> int:
    """Loads and stores of local memory in the loops of products."""
    bodies = [loop.body for loop in loops(code) if loop.body["LDS.128"]]
    return sum(count(body, opcode) for body in bodies for opcode in ("LDL", "STL"))


class GateDevice(Recorder):
    """Compiles what an engine launches, for one compute capability.

    Attributes
    ----------
    reports : dict
        (kernel, its names) -> `resources`, and ``SPILLED``, see `count_spills`.
    """

    name = "compile gate"
    n_multiprocessors = 132

    def __init__(self, capability):
        super().__init__()
        self._capability = capability
        self.shared_bytes = {8: 163, 9: 227}[capability[0]] * 1024
        self.reports: dict[tuple, dict[str, int]] = {}

    def launch(self, launch):
        template, names = launch.kernel
        shown = tuple((name, getattr(value, "__name__", value)) for name, value in names.items())
        key = (template.__name__, launch.threads, *shown)
        if key not in self.reports:
            cubin = compile_for(template, names, launch.args, launch.threads, self._capability)
            usage, code = disassemble(cubin)
            self.reports[key] = resources(usage, code) | {"SPILLED": count_spills(code)}
