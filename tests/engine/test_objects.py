"""Compiled kernels: found, checked, compiled where they are missing; Numba is for that only."""

import logging
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from fastmlp.engine import objects, processor
from fastmlp.engine.cpu import pieces
from fastmlp.engine.objects import Key

PREDICTION = """
    import numpy as np
    from fastmlp.engine import get_engine, objects
    from fastmlp.network import Network
    engine = get_engine("cpu", Network((1, 1), "relu", "exp"), dtype="float64")
    engine.set_parameters(np.array([1.0, -1.0]))
    print(engine.predict(np.array([[1.0]]))[0, 0], objects.origins()["compiled"])
"""
E = 1.0  # what it predicts: exp(0), exactly
SMALL = Key("scale", "float64")


def run(package, program, **env):
    """Run a program on a copy of the package, with a cache beside it; what it prints."""
    env = {"FASTMLP_CACHE_DIR": str(package / "cache")} | env
    env = os.environ | {"PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"} | env
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=package)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def predict(package, program=PREDICTION, **env):
    value, n_compiled = run(package, program, **env)
    return float(value), int(n_compiled)


def files(folder):
    return sorted(folder.rglob("*.o"))


@pytest.fixture(scope="module")
def full_package(package_copy, tmp_path_factory):
    """A copy of the package as a wheel has it: with every kernel in it, for this processor."""
    package = package_copy(tmp_path_factory.mktemp("full"))
    program = "from fastmlp._compile import prebuild; print(len(prebuild('native', str)))"
    assert run(package, program) == [str(len(pieces.everything()))]
    return package


# --- the store --------------------------------------------------------------------------------


def test_every_piece_has_its_name():
    from fastmlp.engine.cpu.kernels import compiler, loops

    named = {key.name for key in pieces.everything()}
    assert {name for name in named if "/" not in name} == set(compiler.PIECES)
    assert {name.split("/")[0] for name in named if "/" in name} == set(loops.FAMILIES)
    for name in named:
        assert compiler.piece(name).function.__doc__


def test_the_cache_is_used_and_never_stale(package):
    value, n_compiled = predict(package)
    assert value == E
    assert n_compiled > 0
    assert predict(package) == (E, 0)
    functions = package / "fastmlp" / "functions.py"
    text = functions.read_text()
    assert "    return exp(z)\n" in text
    functions.write_text(text.replace("    return exp(z)\n", "    return 2 * exp(z)\n"))
    value, n_compiled = predict(package)
    assert value == pytest.approx(2 * E)
    assert n_compiled > 0


def test_damage_is_seen_wherever_it_is(tmp_path):
    """Every single byte, and every length: what is read is never run."""
    code = objects.compile_pieces([SMALL])[0]
    objects.write(tmp_path, SMALL, code)
    path = tmp_path / SMALL.path
    content = path.read_bytes()
    assert objects.read(tmp_path, SMALL) == code
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :])
        assert objects.read(tmp_path, SMALL) is None
    for n in range(len(content)):
        path.write_bytes(content[:n])
        assert objects.read(tmp_path, SMALL) is None
    path.write_bytes(content + b"\0")
    assert objects.read(tmp_path, SMALL) is None


@pytest.mark.parametrize("other", [
    Key("average", "float64"), Key("scale", "float32"), Key("scale", "float64", "x86-64"),
])  # fmt: skip
def test_an_object_in_anothers_place_is_not_used(tmp_path, other):
    objects.write(tmp_path, SMALL, b"code")
    (tmp_path / other.path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / SMALL.path).rename(tmp_path / other.path)
    assert objects.read(tmp_path, other) is None


def test_a_damaged_cache_costs_a_compilation(package):
    _, n_compiled = predict(package)
    for damage in (
        lambda content: b"",
        lambda content: b"rubbish",
        lambda content: content[: len(content) // 4096 * 4096],
        lambda content: content[:-1],
    ):
        for path in files(package / "cache"):
            path.write_bytes(damage(path.read_bytes()))
        assert predict(package) == (E, n_compiled)
    path = next((package / "cache").rglob("outputs-float64.o"))
    path.unlink()
    path.mkdir()
    assert predict(package) == (E, 1)


def test_two_processes_fill_an_empty_cache(package):
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: predict(package), range(2)))
    assert [value for value, _ in results] == [E, E]
    assert predict(package) == (E, 0)


@pytest.mark.parametrize("variables", [
    {"FASTMLP_CACHE_DIR": "a-file/cache"},
    {"FASTMLP_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "a-file/home"},
])  # fmt: skip
def test_no_place_to_write_to(package, variables):
    (package / "a-file").write_text("")
    given = {name: str(package / value) if value else "" for name, value in variables.items()}
    assert predict(package, **given)[0] == E
    assert not files(package)


def test_no_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for variable in ("FASTMLP_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    assert objects.cache_folder() is None


def test_a_full_disk(package):
    """Writing fails when the code is compiled."""
    program = f"""
    import fastmlp.engine.objects
    def full(folder, key, code):
        raise OSError(28, "No space left on device")
    fastmlp.engine.objects.write = full
    {PREDICTION}"""
    assert predict(package, program)[0] == E


def test_half_a_file_never_appears(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("the machine stops here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="stops here"):
        objects.write(tmp_path, SMALL, b"code")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and nothing in the package."""
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "PREBUILT", tmp_path / "nothing")
    return tmp_path / "cache"


def unused_for(path, days):
    os.utime(path, (time.time() - days * 24 * 3600,) * 2)


def test_a_new_version_removes_what_old_ones_left(cache):
    """Folders that were not used for 60 days, and nothing else; only when its own is new."""
    code = objects.compile_pieces([SMALL])[0]
    others = [cache / name for name in ("0123456789abcdef", "fedcba9876543210", "letters")]
    for folder in others:
        (folder / "level").mkdir(parents=True)
        (folder / "level" / "piece.o").touch()
    unused, used, not_ours = others
    a_file, a_link = cache / "0000000000000000", cache / "1111111111111111"
    a_file.touch()
    a_link.symlink_to(not_ours)
    unused_for(a_file, 100)
    unused_for(unused, 61)
    unused_for(used, 59)
    unused_for(not_ours, 100)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: objects._Loaded().keep(SMALL, code), range(8)))
    assert set(cache.iterdir()) == {used, not_ours, a_file, a_link, cache / objects.STAMP}
    assert objects.read(cache / objects.STAMP, SMALL) == code
    unused_for(used, 61)
    objects._Loaded().keep(SMALL, code)
    assert used.exists()


def test_a_version_is_in_use_when_its_pieces_are_loaded(cache):
    objects._Loaded().keep(SMALL, objects.compile_pieces([SMALL])[0])
    folder, loaded = cache / objects.STAMP, objects._Loaded()
    unused_for(folder, 61)
    assert loaded.find(SMALL)
    assert time.time() - folder.stat().st_mtime < 3600
    unused_for(folder, 61)  # once per process is enough
    loaded.addresses.clear()
    assert loaded.find(SMALL)
    assert time.time() - folder.stat().st_mtime > 3600


# --- compilation ------------------------------------------------------------------------------


def test_who_waits_is_told_once_and_what_to_do(monkeypatch, caplog):
    loaded = objects._Loaded()
    keys = [Key(f"update/{name}", "float64") for name in ("adam", "sgd")] * 20
    with caplog.at_level(logging.WARNING, logger="fastmlp"):
        loaded._announce(keys)
        loaded._announce(keys)
    [message] = caplog.messages
    assert "compiles 40 kernels" in message
    assert "python -m fastmlp" in message


def test_a_failure_is_reported_with_its_reason():
    with pytest.raises(RuntimeError, match=r"(?s)could not compile its kernels.*nothing"):
        objects.compile_pieces([Key("update/nothing", "float64")])


def test_an_application_without_python_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(RuntimeError, match=r"call fastmlp\.warmup\(\) where"):
        objects.compile_pieces([SMALL])


def test_settings_of_numba_do_not_reach_the_kernels(monkeypatch):
    plain = objects.compile_pieces([SMALL])
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert objects.compile_pieces([SMALL]) == plain


def test_an_unknown_level_is_refused(package):
    program = """
    try:
        import fastmlp.engine.processor
    except ValueError as error:
        print(error)
    """
    assert "'vax'" in " ".join(run(package, program, FASTMLP_CPU_LEVEL="vax"))


def test_a_level_that_the_processor_lacks_is_refused(package):
    program = f"""
    from fastmlp.engine import objects, processor
    objects.features = lambda: processor.features() - {{"sse4.2"}}
    try:
        {PREDICTION.strip().replace(chr(10), chr(10) + "    ")}
    except ValueError as error:
        print(error)
    """
    words = " ".join(run(package, program, FASTMLP_CPU_LEVEL="x86-64-v2"))
    assert words.startswith("FASTMLP_CPU_LEVEL='x86-64-v2' is more than this processor has")
    assert "lacks sse4.2;" in words


def test_the_best_level_is_one_that_the_processor_has():
    there = processor.features()
    levels = list(processor.LEVELS)
    best = next(name for name in levels if processor.LEVELS[name].features <= there)
    assert levels.index(processor.LEVEL) >= levels.index(best)


# --- a package with its kernels ---------------------------------------------------------------

EVERYTHING = """
    import sys, warnings
    warnings.simplefilter("ignore")

    class NoNumba:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("numba", "llvmlite"):
                raise ImportError("there is no Numba here")

    sys.meta_path.insert(0, NoNumba())
    import numpy as np
    from scipy.sparse import csr_matrix
    from fastmlp import MLPClassifier, MLPRegressor
    from fastmlp.engine import objects
    from fastmlp.functions import ACTIVATIONS, LOSSES
    from fastmlp.optimizers import OPTIMIZERS

    rng = np.random.RandomState(0)

    def Regressor(**settings):
        return MLPRegressor(hidden_layer_sizes=(5,), **settings)

    quick = {"max_iter": 2, "random_state": 0, "batch_size": 100}
    for dtype in (np.float32, np.float64):
        X = rng.normal(size=(400, 6)).astype(dtype)
        target, label = np.exp(X[:, 0]), (X[:, :3] ** 2).argmax(axis=1)

        def use(model, y, X=X):
            for part in (X, X[:3]):
                assert np.isfinite(model.fit(X, y).predict(part)).all()
            if model.solver != "lbfgs" and not model.early_stopping:
                model.partial_fit(X[:50], y[:50])
            getattr(model, "predict_proba", model.predict)(X)

        for activation in ACTIVATIONS:
            use(Regressor(activation=activation, **quick), target)
            use(MLPClassifier((5, 5), activation, dropout=0.1, **quick), label)
            use(MLPClassifier((5,), activation, layer_norm=True, **quick), label)
        for loss, row in LOSSES.items():
            if row.out_activation in ("identity", "exp"):
                use(Regressor(loss=loss, **quick), target)
        for loss in ("log_loss", "squared_error", "focal"):
            use(MLPClassifier((5,), loss=loss, **quick), label)
            use(MLPClassifier((5,), loss=loss, **quick), label > 0)
        use(MLPClassifier((5,), label_smoothing=0.1, **quick), label)
        for solver in [*(set(OPTIMIZERS) - {"nesterov"}), "lbfgs"]:
            use(Regressor(solver=solver, **quick), target)
            if solver != "lbfgs":
                use(Regressor(solver=solver, weight_decay=0.1, **quick), target)
        use(Regressor(solver="sgd", nesterovs_momentum=False, **quick), target)
        more = {"max_grad_norm": 0.1, "ema_decay": 0.9, "early_stopping": True}
        use(Regressor(**more, **quick), target)
        use(MLPClassifier((40, 40), n_threads=2, **quick), label)
        for hidden in ((), (5,)):
            use(MLPClassifier(hidden, **quick), label, csr_matrix(X))
    print("numba" in sys.modules, objects.origins()["package"], objects.origins()["compiled"])
"""


def test_a_wheel_with_kernels_needs_no_numba(full_package):
    numba, n_from_package, n_compiled = run(full_package, EVERYTHING)
    assert (numba, n_compiled) == ("False", "0")
    assert int(n_from_package) > 100
    assert not files(full_package / "cache")


def test_warmup_leaves_nothing_to_compile(package, full_package):
    program = """
    import fastmlp
    fastmlp.warmup()
    """
    run(package, program)
    assert len(files(package / "cache")) == len(pieces.everything())
    numba, n_from_package, n_compiled = run(package, EVERYTHING)
    assert (numba, n_from_package, n_compiled) == ("False", "0", "0")
    built = {path.name: path.read_bytes() for path in files(full_package / "fastmlp")}
    assert built == {path.name: path.read_bytes() for path in files(package / "cache")}


def test_a_build_compiles_what_is_asked_for(full_package):
    program = """
    from fastmlp import _compile
    from fastmlp.engine import objects
    told = []
    path = _compile.prebuild("native", told.append)[0]
    assert not told, "all of it was there"
    path.write_bytes(b"damaged")
    stranger = path.with_name("stranger.o")
    stranger.touch()
    _compile.prebuild("native", told.append)
    assert told == [f"compiling 1 kernels for {objects.LEVEL}"], told
    assert path.exists() and not stranger.exists()
    try:
        _compile.prebuild("some")
    except ValueError as error:
        print(error)
    """
    words = " ".join(run(full_package, program))
    assert words == (
        "FASTMLP_PREBUILD='some' is not known; use native, all or none, and ,cuda after it for "
        "kernels of GPUs."
    )


# --- functions of the user's ------------------------------------------------------------------

OWN = """
    import sys, warnings
    warnings.simplefilter("ignore")
    import numpy as np
    from fastmlp import MLPRegressor
    from fastmlp.engine import objects

    X = np.random.RandomState(0).normal(size=(50, 2))
    FACTOR = {factor}

    def square(z):
        return FACTOR * z * z

    def slope(z):
        return {body}

    settings = {"hidden_layer_sizes": (3,), "max_iter": 3, "random_state": 0}
    model = MLPRegressor(activation=(square, slope), **settings)
    print(model.fit(X, X[:, 0]).loss_, objects.origins()["compiled"], "numba" in sys.modules)
"""


def test_functions_of_the_users_are_compiled_once(package):
    def loss_of(factor, body):
        loss, n_compiled, numba = run(
            package, OWN.replace("{factor}", str(factor)).replace("{body}", body)
        )
        return float(loss), int(n_compiled), numba

    half = loss_of(0.5, "2 * FACTOR * z")
    assert half[1] > 0
    assert half[2] == "True"
    assert loss_of(0.5, "2 * FACTOR * z") == (half[0], 0, "False")
    for factor, body in ((0.25, "2 * FACTOR * z"), (0.5, "FACTOR * z")):
        loss, n_compiled, _ = loss_of(factor, body)
        assert loss != half[0]
        assert n_compiled > 0


@pytest.mark.parametrize("function", [
    "lambda z: z if z > 0 else TABLE[0] * z",  # of an array, which could change
    "lambda z: z if z == z else 1 // (z > 0)",
])  # fmt: skip
def test_functions_that_cannot_be_cached_work(function):
    from fastmlp import MLPRegressor

    X = np.random.default_rng(0).normal(size=(50, 2))
    own = eval(function, {"TABLE": np.zeros(1)})
    settings = {"hidden_layer_sizes": (3,), "max_iter": 3, "random_state": 0, "tol": 0}
    for _ in range(2):
        model = MLPRegressor(activation=(own, lambda z: 1.0), **settings)
        with pytest.warns(ConvergenceWarning):
            model.fit(X, X[:, 0])
        assert np.isfinite(model.loss_)
