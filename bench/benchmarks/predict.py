"""Prediction: one row, many rows, and inside compiled code."""

import numba

from .common import WORKLOADS, make_data, make_estimator


class Predict:
    params = (list(WORKLOADS), ["float32", "float64"])
    param_names = ("workload", "dtype")

    def setup(self, workload, dtype):
        self.X, y = make_data(workload, dtype)
        self.model = make_estimator(workload, 1).fit(self.X, y)
        self.row = self.X[:1]
        self.model.predict_proba(self.row)

    def time_all_rows(self, workload, dtype):
        self.model.predict_proba(self.X)

    def time_one_row(self, workload, dtype):
        self.model.predict_proba(self.row)


class InsideCompiledCode:
    def setup(self):
        import fastmlp

        X, y = make_data("digits", "float32")
        predict = fastmlp.jit_predictor(make_estimator("digits", 1).fit(X, y))

        @numba.njit
        def loop(row, n):
            total = 0.0
            for i in range(n):
                total += predict(row)[i % 10]
            return total

        self.loop, self.row = loop, X[0]
        loop(self.row, 1)

    def time_thousand_rows(self):
        self.loop(self.row, 1000)
