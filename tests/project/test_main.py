"""``python -m fastmlp``: the report and the self-check."""

import sys

import numpy as np
from processes import run_command, run_python

import fastmlp
from fastmlp import __main__ as report


def test_it_reports_and_passes():
    out = run_command(sys.executable, "-m", "fastmlp")
    for word in ("numba", "scikit-learn", "features", "threads", "GPU", "kernel cache", "passed"):
        assert word in out
    assert "FAILED" not in out


def test_without_what_a_gpu_needs():
    program = """
import sys
sys.modules["_numba_cuda_redirector"] = None
import fastmlp
fastmlp.show_versions()
try:
    fastmlp.MLPClassifier(device="cuda").fit([[0.0], [1.0]], [0, 1])
except ValueError as error:
    print("refused:", error)
"""
    out = run_python(program)
    assert out.count("device='cuda' needs numba-cuda; install it with: pip install") == 2
    assert "refused:" in out


def test_what_is_wrong_is_reported(monkeypatch, capsys):
    proper = fastmlp.MLPClassifier.fit

    def worse(model, X, y):
        model = proper(model, X, y)
        model.loss_curve_ = list(np.array(model.loss_curve_) * 1.01)
        return model

    monkeypatch.setattr(report.MLPClassifier, "fit", worse)
    assert report.main() == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if "FAILED" in line]
    assert len(failed) == 3  # both element types, and the last line
    assert "within 1e-02" in failed[0]
