"""The README's Python runs as it stands, and it has its two commands and no more."""

import re
import warnings
from pathlib import Path

import pytest

import fastmlp

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks("python"):
            exec(block, namespace)
    labels = namespace["positive"](namespace["X_val"])
    assert labels == namespace["sklearn_model"].predict(namespace["X_val"]).astype(bool).tolist()
    assert {path.name for path in tmp_path.iterdir()} >= {"fit.safetensors", "model.onnx"}


def test_two_commands():
    main_job, tests = blocks("sh")
    assert main_job == "python -m pip install . && python examples/quickstart.py\n"
    assert tests == 'python -m pip install -e ".[test]" && python -m pytest\n'


def test_table_of_parameters_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import parameters

    section = README.partition("<!-- parameters -->")[2].partition("<!-- end parameters -->")[0]
    assert section.strip() == parameters.table(), "run python bench/parameters.py --readme"


def test_every_new_parameter_is_described(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import parameters

    for name in parameters.ESTIMATORS:
        described = parameters.documentation(getattr(fastmlp, name))
        new = parameters.new_parameters(name)
        assert new.keys() <= described.keys()
        assert {"n_threads", "weight_decay"} <= new.keys()
        assert not {"alpha", "solver", "random_state"} & new.keys()


def test_tables_are_put_between_their_marks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from readme import put_into_readme

    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- x -->\nold\n<!-- end x -->\nb\n")
    put_into_readme("new", "x", readme)
    assert readme.read_text() == "a\n<!-- x -->\nnew\n<!-- end x -->\nb\n"
    with pytest.raises(SystemExit, match="no section"):
        put_into_readme("new", "y", readme)
