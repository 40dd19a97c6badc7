"""Compiles CUDA kernels for GPUs that are not there, and reads what became of them.

`GateDevice` stands in for `fastmlp.engine.cuda.device.Device`.  It computes nothing: each launch
compiles its kernel, for the types of that launch, as `Device` would on a GPU, and the machine code
is taken apart.  Needs the ``cuda-ci`` extra.
"""

import re
import subprocess
import tempfile
from collections import Counter

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


def loops(code: str) -> list[Counter]:
    """How often each opcode, with its modifiers, occurs in each loop that holds no other.

    The padding around asynchronous copies, which is never executed, does not count.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif "@!PT" not in line and (found := _INSTRUCTION.match(line)):
            lines.append(found[1])
    ends = {}
    for n, text in enumerate(lines):
        if (found := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", text)) and labels[found[1]] <= n:
            ends[labels[found[1]], n] = lines[labels[found[1]] : n + 1]
    inner = [
        body for (first, last), body in ends.items()
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in ends)
    ]  # fmt: skip
    return [Counter(text.split()[0] for text in body) for body in inner]


def count(loop: Counter, opcode: str) -> int:
    """Instructions of a loop with an opcode, whatever its modifiers."""
    return sum(n for name, n in loop.items() if name.split(".")[0] == opcode)


class GateDevice(Recorder):
    """Compiles what an engine launches, for one compute capability.

    Attributes
    ----------
    reports : dict
        (kernel, its names) -> `resources`.
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
            self.reports[key] = resources(*disassemble(cubin))
