"""The processor that kernels are compiled for: a level of its architecture, not its exact model.

A level is a set of instructions that many processors share (x86-64-v2, -v3 and -v4 are those of
the psABI).  So kernels that were compiled elsewhere fit, and a folder of compiled kernels may serve
several machines.  The environment variable ``FASTMLP_CPU_LEVEL`` asks for another level than the
best one.
"""

import os
import platform
import sys
from functools import cache
from typing import NamedTuple


class Level(NamedTuple):
    """What LLVM calls the processor, the features it must have, and bytes of a vector register.

    ``extra`` is what LLVM may use beside them.
    """

    cpu: str
    features: frozenset[str]
    vector_bytes: int
    extra: str = ""


_V2 = frozenset({"cx16", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"})
_V3 = _V2 | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_ANY_X86 = "+prfchw"  # prefetchw, which does nothing on processors that do not know it
# LLVM would take half of each register in loops, lest the clock be lowered; tiles take all of it.
_V4_EXTRA = _ANY_X86 + ",-prefer-256-bit"
_X86 = {
    "x86-64-v4": Level("x86-64-v4", _V4, 64, _V4_EXTRA),
    "x86-64-v3": Level("x86-64-v3", _V3, 32, _ANY_X86),
    "x86-64-v2": Level("x86-64-v2", _V2, 16, _ANY_X86),
    "x86-64": Level("x86-64", frozenset(), 16, _ANY_X86),
}
_MACHINE = platform.machine().lower()
LEVELS: dict[str, Level] = (
    _X86 if _MACHINE in ("x86_64", "amd64") else {_MACHINE: Level("generic", frozenset(), 16)}
)
"""Levels of this architecture by name, the best first."""
IN_USE = [name for name in LEVELS if name != "x86-64"]
"""Those worth shipping kernels for: every x86-64 processor since 2009 has the second level."""


_LINUX_NAMES = {
    "pni": "sse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "bmi1": "bmi", "abm": "lzcnt",
}  # fmt: skip


def features() -> set[str]:
    """What the processor has, in LLVM's words."""
    if sys.platform == "linux" and LEVELS is _X86:  # without loading LLVM
        with open("/proc/cpuinfo") as cpuinfo:
            for line in cpuinfo:
                if line.startswith("flags"):
                    return {_LINUX_NAMES.get(name, name) for name in line.split()}
    from llvmlite import binding

    return {name for name, there in binding.get_host_cpu_features().items() if there}


def _choose() -> str:
    wanted = os.environ.get("FASTMLP_CPU_LEVEL")
    if wanted is None:
        there = features()
        return next(name for name, level in LEVELS.items() if level.features <= there)
    if wanted not in LEVELS:
        raise ValueError(
            f"FASTMLP_CPU_LEVEL={wanted!r} is not known here; use one of {tuple(LEVELS)}."
        )
    return wanted


LEVEL = _choose()
VECTOR_BYTES = LEVELS[LEVEL].vector_bytes


def lanes(itemsize: int) -> int:
    """Elements per vector register."""
    return VECTOR_BYTES // itemsize


def n_processors() -> int:
    """Those that affinity and the container leave; its limits, in files, are read once."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return _n_processors_of(frozenset(affinity))


@cache
def _n_processors_of(affinity: frozenset[int]) -> int:
    try:
        from joblib import cpu_count
    except ImportError:  # where a wheel is built
        return len(affinity) or os.cpu_count() or 1
    return cpu_count()
