"""The kernels' sources: the only modules of the CPU target that import Numba.

They are imported to compile (`compiler`), in a process of its own unless a function of the
user's is involved, and by `fastmlp.jit_predictor`, which serves compiled code of the user's.
"""
