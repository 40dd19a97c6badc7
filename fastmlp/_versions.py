"""What this installation consists of, for reports of problems."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from fastmlp import engine

_LIBRARIES = ("fastmlp", "numpy", "scipy", "numba", "llvmlite", "scikit-learn", "joblib")
_GPU_LIBRARIES = ("numba-cuda", "cuda-core", "cuda-bindings", "nvidia-nvjitlink")


def describe() -> dict[str, dict[str, str]]:
    """Names and values, by section."""
    return {
        "System": {
            "python": sys.version.replace("\n", " "),
            "platform": platform.platform(),
        },
        "Libraries": {name: _version(name) for name in _LIBRARIES},
        "CPU": engine.describe("cpu"),
        "GPU": {name: _version(name) for name in _GPU_LIBRARIES} | engine.describe("cuda"),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
