"""The engine without an estimator around it: one epoch, one gradient, on one thread."""

import numpy as np

from .common import WORKLOADS, make_data


class Epoch:
    params = (list(WORKLOADS), ["float32", "float64"])
    param_names = ("workload", "dtype")

    def setup(self, workload, dtype):
        from fastmlp.engine import get_engine, place
        from fastmlp.network import Network
        from fastmlp.objective import Objective
        from fastmlp.optimizers import Optimizer

        n, widths, batch = WORKLOADS[workload]
        X, y = make_data(workload, dtype)
        loss = "binary_log_loss" if widths[-1] == 1 else "log_loss"
        if widths[-1] == 1:
            y = y[:, None].astype(dtype)
        objective = Objective(loss, widths[-1])
        network = Network(widths, "relu", objective.out_activation)
        optimizer = Optimizer("adam", (0.9, 0.999, 1e-8))
        self.engine = get_engine(
            "cpu", network, dtype=dtype, objective=objective, optimizer=optimizer,
            batch_size=batch, n_threads=1,
        )  # fmt: skip
        self.engine.load(place("cpu", X, y, dtype=dtype, objective=objective))
        self.engine.set_parameters(network.initialise(np.random.RandomState(0), dtype))
        self.order, self.rates = np.arange(n), np.full(-(-n // batch), 1e-3)
        self.engine.run_epoch(self.order, self.rates)
        self.engine.loss_and_gradient()

    def time_epoch(self, workload, dtype):
        self.engine.run_epoch(self.order, self.rates)

    def time_gradient(self, workload, dtype):
        self.engine.loss_and_gradient()
