"""The GPU report from end to end in emulation, what it does when a section hangs, and its marks."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from simt import EmulatedDevice, to_bf16, to_tf32

BENCH = Path(__file__).parents[2] / "bench"
PRECISIONS = ("highest", "high", "medium")


@pytest.fixture(scope="module")
def bench():
    """The modules of the report."""
    former = sys.path[:]
    sys.path.insert(0, str(BENCH))
    import cuda_ladder
    import cuda_report

    yield SimpleNamespace(report=cuda_report, ladder=cuda_ladder)
    sys.path[:] = former


def emulate(folder, *options):
    """(what the command did, the report, its tables)."""
    command = [sys.executable, str(BENCH / "cuda_report.py"), "--emulate", "--out-dir", str(folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=400)
    return (
        done,
        json.loads((folder / "emulated.json").read_text()),
        (folder / "emulated.md").read_text(),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of all sections."""
    return emulate(tmp_path_factory.mktemp("report"))


def test_every_section_ends_and_every_rung_holds(whole, bench):
    done, report, _ = whole
    assert done.returncode == 0, done.stderr
    statuses = {name: each["status"] for name, each in report["sections"].items()}
    assert statuses == dict.fromkeys(bench.report.sections(bench.report.TOY), "done"), done.stdout
    rungs = bench.report.records(report, "", "rungs")
    assert len(rungs) >= 20
    assert [rung for rung in rungs if rung["status"] != "passed"] == []
    assert bench.report.records(report, "system", "failures") == []


def test_all_networks_are_measured_beside_all_rivals(whole, bench):
    cells = bench.report.records(whole[1], "", "cells")
    assert {cell["precision"] for cell in cells} == set(PRECISIONS)
    try:
        import torch  # noqa: F401
    except ImportError:
        expected = {"fastmlp"}
    else:
        expected = {"fastmlp", "PyTorch", "CUDA graphs", "torch.compile"}
    assert set().union(*(cell["step_us"] for cell in cells)) == expected
    for cell in cells:
        assert set(cell["errors"].values()) <= {"NotImplementedError: PyTorch is not installed"}


def test_no_figure_of_the_emulator_is_in_the_tables(whole):
    done, report, tables = whole
    assert report["emulated"]
    assert "no speed" in tables
    assert isinstance(report["sections"]["barrier"]["results"]["barrier_us"], float)
    assert "| grid barrier | emulated |" in tables
    assert "_us" not in done.stdout
    assert all(mark["met"] is None and mark["lowest"] is None for mark in report["marks"])


def test_a_section_that_hangs_costs_only_itself(tmp_path):
    _, report, tables = emulate(tmp_path, "--only", "system", "barrier", "--hang", "system")
    hung = report["sections"]["system"]
    assert hung["status"] == "killed after 3 s"
    assert "be_child" in hung["text"]  # where it hung
    assert report["sections"]["barrier"]["status"] == "done"
    assert "system: killed after 3 s" in tables


def test_sections_are_dropped_when_time_is_over(tmp_path):
    _, report, _ = emulate(tmp_path, "--minutes", "0.1")
    assert {each["status"] for each in report["sections"].values()} == {"not reached"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--emulate"], "--emulate needs --out-dir"),
        (["--emulate", "--out-dir", ".", "--readme"], "leave out --emulate"),
        (["--only", "barier"], "--only does not know ['barier']"),
    ],
)
def test_the_door(bench, capsys, options, message):
    with pytest.raises(SystemExit):
        bench.report.parse(options)
    assert message in capsys.readouterr().err


# --- the ladder -------------------------------------------------------------------------------


class Listed:
    """Stands in for a job."""

    emulated = True

    def __init__(self):
        self.device, self.rungs = EmulatedDevice(), []

    def add(self, key, record):
        assert key == "rungs"
        self.rungs.append(record)

    def time_left(self):
        return 1


def wrong_put(value, C, at, aux):
    C[at] = value * 1.001


def wrong_derivative(value, C, at, aux):
    C[at] = value


def wrong_sum(shared, value):
    return value


def wrong_link(control, first, most, Z, lda, n_outputs, out):
    i = cuda.blockIdx.x * THREADS // 32  # noqa: F821
    if i < most and cuda.threadIdx.x == 0:  # noqa: F821
        for k in range(n_outputs):
            out[i * n_outputs + k] = 1 / n_outputs


WRONG = {
    "put": wrong_put,
    "apply_derivative": wrong_derivative,
    "add_over_block": wrong_sum,
    "softmax_link": wrong_link,
}


@pytest.mark.parametrize(
    ("rung", "case", "kernel"),
    [
        ("product", ("float32", "highest", "small", "A B", "vectors"), "put"),
        ("gradient", ("tiled", "float64", "log_loss", "relu"), "apply_derivative"),
        ("training", ("tiled", "float64", "squared_error", "adam"), "add_over_block"),
        ("outputs", ("float64", "log_loss"), "softmax_link"),
    ],
)
def test_a_rung_fails_when_a_kernel_is_wrong(bench, monkeypatch, rung, case, kernel):
    from simt import EMULATED_SIZES

    from fastmlp.engine.cuda import kernels, tiles

    sizes = dict.fromkeys(("float32", "float64"), EMULATED_SIZES)
    monkeypatch.setattr(tiles, "SIZES", sizes)
    job = Listed()
    bench.ladder.climb(job, [(getattr(bench.ladder, rung), [case])])
    monkeypatch.setattr(kernels, kernel, WRONG[kernel])
    job.device = EmulatedDevice()
    bench.ladder.climb(job, [(getattr(bench.ladder, rung), [case])])
    assert [each["status"] for each in job.rungs] == ["passed", "failed"]
    assert job.rungs[1]["error"] > 10 * job.rungs[1]["tolerance"]


def one_term_less(n, part, shift):
    return max(0, n - part + (1 << shift) - 2) >> shift


def test_the_rung_of_row_tiles_fails_when_their_kernel_is_wrong(bench, monkeypatch):
    from simt import EMULATED_SIZES

    from fastmlp.engine.cuda import resident, tiles

    monkeypatch.setattr(tiles, "SIZES", {"float64": EMULATED_SIZES})
    job, rung = Listed(), (bench.ladder.row_tiles, [("float64", 32)])
    bench.ladder.climb(job, [rung])
    monkeypatch.setattr(resident, "count_terms", one_term_less)
    job.device = EmulatedDevice()
    bench.ladder.climb(job, [rung])
    assert [each["status"] for each in job.rungs] == ["passed", "failed"]
    assert job.rungs[1]["error"] > 10 * job.rungs[1]["tolerance"]


def test_a_rung_that_raises_stops_no_other(bench):
    def raises(job):
        raise RuntimeError("an illegal address")

    def gives_nan(job):
        return np.nan, 1.0

    def holds(job):
        return 0.5, 1.0

    job = Listed()
    bench.ladder.climb(job, [(rung, [()]) for rung in (raises, gives_nan, holds)])
    assert [each["status"] for each in job.rungs] == ["failed", "failed", "passed"]
    assert "an illegal address" in job.rungs[0]["text"]
    json.dumps(job.rungs, allow_nan=False)


def test_rounding_is_that_of_the_emulator(bench):
    """Whose own is tested against arithmetic."""
    values = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    values.flat[:3] = 1 + 2**-11, 1 + 2**-8, 1 + 3 * 2**-8  # ties
    for precision, twin in (("high", to_tf32), ("medium", lambda x: to_bf16(x) << 16)):
        bits = np.array([twin(x) for x in values.ravel()], np.uint32).reshape(7, 9)
        np.testing.assert_array_equal(
            bench.ladder.rounded(values, precision), bits.view(np.float32).astype(float)
        )
    stored = np.array([to_bf16(x) for x in values.ravel()]).reshape(7, 9)
    np.testing.assert_array_equal(bench.ladder.as_bf16(values), stored)


# --- the marks --------------------------------------------------------------------------------


def report_with(networks=(), compiled=(), rates=()):
    """A report in which some cells were measured."""
    matmul = [{"precision": name, "product": "A B", "tflops": {"PyTorch": x}} for name, x in rates]
    return {
        "gpu": "G", "driver": "1", "commit": "c", "date": "d", "emulated": False,
        "sections": {
            "network a": {"status": "done", "results": {"cells": list(networks)}},
            "compiled": {"status": "done", "results": {"cells": list(compiled)}},
            "roofline": {"status": "done", "results": {"matmul": matmul, "bandwidth": 4000.0}},
        },
    }  # fmt: skip


def cell(network, batch, precision, **measured):
    return {"network": network, "batch": batch, "precision": precision, "flop": 1e12,
            "path": "tiled", **measured}  # fmt: skip


def test_marks_of_small_networks(bench):
    cells = [
        cell(name, batch, "highest", step_us={"fastmlp": 10, "PyTorch": 250, "CUDA graphs": 60})
        for name in bench.report.SMALL for batch in (128, 2048)
    ]  # fmt: skip
    graphs, eager, *others = bench.report.marks(report_with(cells))
    assert (graphs["lowest"], graphs["met"]) == (6, True)
    assert (eager["lowest"], eager["met"]) == (25, True)
    assert [each["met"] for each in others] == [None] * 3
    cells[3]["step_us"]["CUDA graphs"] = 40
    assert bench.report.marks(report_with(cells))[0]["met"] is False
    assert bench.report.marks(report_with(cells[:3]))[0]["met"] is None
    assert bench.report.marks(report_with(cells[3:4]))[0]["met"] is False


def test_marks_of_large_networks(bench):
    cells = [cell("4096x4", 16384, name, step_us={"fastmlp": 2e4}) for name in PRECISIONS]
    rates = dict.fromkeys(PRECISIONS, 60.0)  # 1e12 flop in 20 ms are 50 TFLOP/s
    share = bench.report.marks(report_with(cells, rates=rates.items()))[2]
    assert share["lowest"] == pytest.approx(50 / 60)
    assert share["met"] is True
    rates["medium"] = 600.0
    assert bench.report.marks(report_with(cells, rates=rates.items()))[2]["met"] is False
    slower = cell("a", 16384, "high", step_us={"fastmlp": 10, "torch.compile": 9})
    assert bench.report.marks(report_with(compiled=[slower]))[3]["met"] is False


def test_mark_of_inference(bench):
    measured = {"predict_us": {"fastmlp": 1262.0}, "copy_out_us": {"fastmlp": 1000.0}}
    cells = [cell("32-64x4-8", 262144, "medium", **measured)]
    mark = bench.report.marks(report_with(cells))[4]
    assert mark["lowest"] == pytest.approx(262144 / 262e-6)
    assert mark["met"] is True


def test_tables(bench):
    measured = {"step_us": {"fastmlp": 2e4, "PyTorch": 5e4}, "epoch_us": {"fastmlp": 1e6}}
    cells = [cell("4096x4", 16384, "highest", **measured), cell("4096x4", 128, "highest",
             errors={"fastmlp": "a\nMemoryError: none left"})]  # fmt: skip
    compiled = [cell("4096x4", 16384, "highest", step_us={"fastmlp": 2e4, "torch.compile": 3e4})]
    report = report_with(cells, compiled, [("highest", 100.0)])
    report["marks"] = bench.report.marks(report)
    tables = bench.report.markdown(report)
    row = "| 4096x4 | 16384 | highest | tiled | 20000 us | 50 % | 2.5 | - | 1.5 | 1000 ms | - | - |"
    assert row in tables
    assert "- 4096x4, batch 128, highest, fastmlp: MemoryError: none left" in tables


def test_no_folder_of_a_machine_is_in_a_report(bench):
    text = 'File "/some/where/x.py", 5 TFLOP/s, /usr/lib/a-1.2/libx.so.4'
    assert bench.report.without_folders(text) == 'File "x.py", 5 TFLOP/s, libx.so.4'
