"""The CUDA target: kernels as templates, compiled by Numba when a network first needs them.

`engine` answers the contract's questions, `paths` launches the kernels of `kernels` and `resident`.
"""

from fastmlp.engine.cuda.device import describe
from fastmlp.engine.cuda.engine import CudaEngine
from fastmlp.engine.cuda.samples import place

__all__ = ["CudaEngine", "describe", "place"]
