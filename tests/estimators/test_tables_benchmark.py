"""bench/tables.py runs from end to end, and its summary says what it should."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import run_command

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import tables

    return tables


def test_it_runs_from_end_to_end(tmp_path):
    out = tmp_path / "tables.json"
    methods = ["TabularMLP fast", "fastmlp MLP", "HistGradientBoosting"]
    command = [sys.executable, BENCH / "tables.py", "--sets", "breast cancer", "--splits", "1",
               "--methods", *methods, "--out", out]  # fmt: skip
    printed = run_command(*command, timeout=400)
    results = json.loads(out.read_text())["results"]
    assert set(results) == {f"breast cancer/0/{method}" for method in methods}
    for found in results.values():
        assert found["score"] > 0.95
        assert 0 < found["seconds"] < 100
    assert "| at most 11,000 rows | rank, 1 sets tuning |" in printed
    assert (tmp_path / "tables.png").stat().st_size > 1000
    assert "| breast cancer |" in (tmp_path / "tables.md").read_text()
    assert run_command(*command, timeout=400).count("breast cancer/0") == 0  # it is known


def test_a_fit_that_takes_too_long_is_killed(tmp_path):
    out = tmp_path / "tables.json"
    run_command(
        sys.executable, BENCH / "tables.py", "--sets", "digits", "--splits", "1", "--limit", "0.1",
        "--methods", "HistGradientBoosting", "--out", out, timeout=400,
    )  # fmt: skip
    results = json.loads(out.read_text())["results"]
    killed = results["digits/0/HistGradientBoosting"]["error"]
    assert killed == "killed after 0.1 processor seconds"


@pytest.mark.oracle
def test_every_switch_of_the_ablation_trains(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is in the bench extra")
    out = tmp_path / "ablation.json"
    command = [sys.executable, BENCH / "tables_ablation.py", "--seeds", "1", "--out", out, "--sets"]
    printed = run_command(*command, "breast cancer", timeout=400)
    results = json.loads(out.read_text())["results"]
    for name in ("preset", "fastmlp", "input scaling", "TabM-mini of 8", "NTK"):
        assert 0 < results[f"breast cancer/0/{name}"]["error"] < 0.03
    assert len(results) == printed.count("breast cancer/0/") + 1  # clamping trains nothing
    assert all(f"| {key.split('/')[2]} |" in printed for key in results if "preset" not in key)
    with pytest.raises(AssertionError, match="car_prices"):
        run_command(*command, "car_prices", timeout=400)  # it is held out


def test_ranks_and_normalised_scores(tables):
    score = np.array([[0.9, 0.7, np.nan, 0.8], [0.5, 0.5, 0.1, 0.3]])
    np.testing.assert_array_equal(tables.ranks(score), [[1, 3, 4, 2], [1.5, 1.5, 4, 3]])
    np.testing.assert_allclose(
        tables.normalised(score), [[1, 0, 0, 1 / 3], [1, 1, 0, 0]], atol=1e-12
    )


def test_a_third_is_held_out(tables):
    held_out = [data.name for data in tables.DATA_SETS if data.held_out]
    assert len(held_out) == len(tables.DATA_SETS) / 3
    assert sum(data.quick for data in tables.DATA_SETS) == 5
    assert not any(data.quick for data in tables.DATA_SETS if data.held_out)


def test_names_of_points_hide_none_of_each_other(tables):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    points = np.array([[1.0, 0.50], [9.0, 0.51], [10.0, 0.52]])
    axes.plot(*points.T, "o")
    axes.set(xscale="log", xlim=(0.1, 11))
    figure.draw_without_rendering()
    tables.put_names(axes, ["at the left", "in the middle", "at the right"], points, None)
    boxes = [text.get_window_extent() for text in axes.texts]
    plt.close(figure)
    assert [text.get_text() for text in axes.texts] == [
        "at the left", "in the middle", "at the right"
    ]  # fmt: skip
    for i, box in enumerate(boxes):
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1
        assert all(tables.shared_area(box, other) == 0 for other in boxes[:i])
