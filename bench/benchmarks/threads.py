"""One and two threads, and several fits at once."""

from concurrent.futures import ThreadPoolExecutor

from .common import make_data, make_estimator


class Threads:
    params = (["digits", "california", "mnist-like", "wide"], [1, 2])
    param_names = ("workload", "n_threads")

    def setup(self, workload, n_threads):
        self.data = make_data(workload, "float32")
        make_estimator(workload, 1).fit(*self.data)

    def time_ten_epochs(self, workload, n_threads):
        make_estimator(workload, 10, n_threads=n_threads).fit(*self.data)


class AtOnce:
    params = [1, 2, 8]
    param_names = ("fits",)

    def setup(self, fits):
        self.data = make_data("digits", "float32")
        make_estimator("digits", 1).fit(*self.data)

    def time_fits(self, fits):
        with ThreadPoolExecutor(fits) as pool:
            jobs = [pool.submit(make_estimator("digits", 50).fit, *self.data) for _ in range(fits)]
            for job in jobs:
                job.result()
