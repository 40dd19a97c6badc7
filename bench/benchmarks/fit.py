"""Training through the public ``fit``."""

from .common import WORKLOADS, make_data, make_estimator


class Fit:
    params = (list(WORKLOADS), ["float32", "float64"], ["adam", "sgd"])
    param_names = ("workload", "dtype", "solver")
    epochs = 5

    def setup(self, workload, dtype, solver):
        self.data = make_data(workload, dtype)
        make_estimator(workload, 1, solver=solver).fit(*self.data)

    def time_five_epochs(self, workload, dtype, solver):
        make_estimator(workload, self.epochs, solver=solver).fit(*self.data)


class Activations:
    params = ["identity", "logistic", "tanh", "relu"]
    param_names = ("activation",)

    def setup(self, activation):
        self.data = make_data("digits", "float32")
        make_estimator("digits", 1, activation=activation).fit(*self.data)

    def time_twenty_epochs(self, activation):
        make_estimator("digits", 20, activation=activation).fit(*self.data)


class EarlyStopping:
    def setup(self):
        self.data = make_data("digits", "float32")
        make_estimator("digits", 1, early_stopping=True).fit(*self.data)

    def time_twenty_epochs(self):
        make_estimator("digits", 20, early_stopping=True).fit(*self.data)


class PartialFit:
    def setup(self):
        self.X, self.y = make_data("digits", "float32")
        self.model = make_estimator("digits", 1).fit(self.X, self.y)

    def time_one_batch(self):
        self.model.partial_fit(self.X[:200], self.y[:200])
