"""What a user waits for before anything happens, each in a process of its own."""

import os
import subprocess
import sys
import tempfile

FIRST_FIT = """
import time, warnings, numpy as np
warnings.simplefilter("ignore")
import fastmlp
X = np.random.RandomState(0).normal(size=(100, 5))
start = time.perf_counter()
fastmlp.MLPClassifier(max_iter=1).fit(X, X[:, 0] > 0)
print(time.perf_counter() - start)
"""


def _run(code, **env):
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=os.environ | env, check=True, capture_output=True, text=True
    ).stdout


class Startup:
    timeout = 300

    def setup_cache(self):
        _run(FIRST_FIT)

    def time_import(self, *_):
        _run("import fastmlp")

    def time_import_scikit_learn(self, *_):
        _run("import sklearn.neural_network")

    def track_first_fit_with_cache(self, *_):
        return min(float(_run(FIRST_FIT)) for _ in range(3))

    def track_first_fit_without_cache(self, *_):
        with tempfile.TemporaryDirectory() as folder:
            return float(_run(FIRST_FIT, FASTMLP_CACHE_DIR=folder))

    track_first_fit_with_cache.unit = track_first_fit_without_cache.unit = "s"
