"""numba-cuda, as `numba.cuda`: the only file that imports it while fastmlp is being imported.

numba comes with a CUDA target of its own under this name, in whose place numba-cuda puts itself
when Python starts.  That fails where Python does not look for such files, as in a folder of
``pip install --target`` and where pip builds wheels; so it is asked for here, before anything else.
"""

from importlib import import_module
from typing import Any

_INSTALL = 'install it with: pip install "fastmlp[cuda]"'
try:
    import _numba_cuda_redirector  # noqa: F401
except ImportError:
    raise ValueError(f"device='cuda' needs numba-cuda; {_INSTALL}.") from None
cuda: Any = import_module("numba.cuda")
if getattr(cuda, "implementation", "Built-in") != "NVIDIA":
    raise ValueError(
        "device='cuda' needs numba-cuda, but numba's own CUDA target was imported first; "
        f"{_INSTALL}, and use device='cuda' before anything imports numba.cuda."
    )
types: Any = cuda.types
intrinsic: Any = import_module("numba.cuda.extending").intrinsic
