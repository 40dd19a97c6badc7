"""The CPU target: kernels compiled ahead of use, run by plain threads.

`engine` answers the contract's questions; `program` says what a network needs of the kernels, whose
sources are in `kernels`.
"""

from fastmlp.engine import objects, processor
from fastmlp.engine.cpu import pieces
from fastmlp.engine.cpu.engine import CpuEngine
from fastmlp.engine.cpu.samples import Samples
from fastmlp.engine.cpu.threads import available_threads

__all__ = ["CpuEngine", "Samples", "describe", "warmup"]

_FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "neon", "sve")  # worth reporting


def describe() -> dict[str, str]:
    """The processor as this engine sees it."""
    from llvmlite import binding

    there = processor.features()
    found = [f"{n} from the {origin}" for origin, n in objects.origins().items() if n]
    return {
        "target": f"{processor.LEVEL} ({binding.get_host_cpu_name()}), "
        f"vectors of {8 * processor.VECTOR_BYTES} bits",
        "features": " ".join(name for name in _FEATURES if name in there) or "unknown",
        "threads": str(available_threads(None)),
        "kernels": ", ".join(found) or "none used yet",
        "kernel cache": str(objects.cache_folder() or "no place to write to"),
    }


def warmup() -> None:
    """Compile every kernel that is not there compiled, in several processes."""
    objects.require(pieces.everything())
