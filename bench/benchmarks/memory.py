"""Peak memory of a fit; the data alone are the floor."""

import numpy as np
from scipy import sparse

from .common import make_data, make_estimator


class Memory:
    params = ["mnist-like", "wide"]
    param_names = ("workload",)

    def setup(self, workload):
        self.data = make_data(workload, "float32")

    def peakmem_data(self, workload):
        return self.data

    def peakmem_fit(self, workload):
        make_estimator(workload, 2).fit(*self.data)


class SparseMemory:
    """10000 x 50000, of which 50000 are not zero; dense it would take 4 GB."""

    def setup(self):
        generator = np.random.default_rng(0)
        self.X = sparse.random(10_000, 50_000, 1e-4, "csr", random_state=generator)
        self.y = np.arange(10_000) % 2

    def peakmem_fit(self):
        make_estimator("tiny", 1).set_params(hidden_layer_sizes=(8,)).fit(self.X, self.y)
