"""Who may import whom (DESIGN's arrows), what import costs, who owns Numba's flags, and words."""

import ast
import re
import subprocess
import sys
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from processes import run_python
from quick import QUICK

import fastmlp

PACKAGE = Path(fastmlp.__file__).parent
TESTS = Path(__file__).parents[1]
# from the top: a module may import what stands below it, and what is in its own package
LAYERS = (
    {"__main__"},
    {"__init__"},
    {"_versions", "onnx"},
    {"export", "plotting"},
    {"dask", "inspect", "io", "model_selection", "tabular"},
    {"ensemble"},
    {"estimators"},
    {"training"},
    {"_compile"},
    {"engine"},
    {"formulas", "network", "objective", "optimizers"},
    {"dropout", "functions", "initialisers", "schedules"},
    {"_arrays", "_interrupts", "_safetensors", "_sklearn"},
    {"_json", "_version"},
)
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(path):
    """Full dotted names that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("fastmlp.")
                yield f"fastmlp.{inner}" if inner in MODULES else node.module


def ours(module):
    """Modules of fastmlp that a module imports."""
    names = (name for name in imports(MODULES[module]) if name.split(".")[0] == "fastmlp")
    return {name.removeprefix("fastmlp.") for name in names} & set(MODULES)


def layer_of(module):
    return next(i for i, layer in enumerate(LAYERS) if module.split(".")[0] in layer)


def test_every_module_is_on_the_map():
    roots = {module.split(".")[0] for module in MODULES}
    assert sum(len(layer) for layer in LAYERS) == len(set.union(*LAYERS))
    assert roots == set.union(*LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module):
    root = module.split(".")[0]
    for other in ours(module):
        assert other.split(".")[0] == root or layer_of(module) < layer_of(other), other


def test_no_circles():
    """Of what is imported when a module is, not later inside of a function."""
    graph = {module: set(ours_at_once(module)) for module in MODULES}
    assert graph["estimators.base"] > {"training.run", "network"}
    TopologicalSorter(graph).prepare()


def ours_at_once(module):
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("fastmlp."):
            name = node.module.removeprefix("fastmlp.")
            for alias in node.names:
                inner = f"{name}.{alias.name}"
                yield inner if inner in MODULES else name


def test_nobody_outside_reads_what_is_private_to_estimators():
    kinds = [fastmlp.MLPClassifier, *fastmlp.MLPClassifier.__mro__, fastmlp.MLPRegressor]
    own = [kind for kind in kinds if kind.__module__.startswith("fastmlp")]
    private = {name for kind in own for name in vars(kind) if re.match("_[a-z]", name)}
    private |= {"_model", "_optimizer_state", "_label_binarizer", "_random_state"}
    private -= {"_get_param_names", "_optimizer", "_parameter_constraints"}  # scikit-learn's
    assert "_fit" in private
    for module, path in MODULES.items():
        if module.startswith(("estimators", "_sklearn")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in private:
                assert ast.unparse(node.value) == "self", f"{module} reads {ast.unparse(node)}"


@pytest.mark.parametrize("module", ["dropout", "functions", "optimizers", "schedules"])
def test_formulas_need_numpy_only(module):
    roots = {name.split(".")[0] for name in imports(MODULES[module])} - {"fastmlp"}
    assert roots <= {"math", "numpy", "collections", "dataclasses", "functools", "typing"}
    assert ours(module) <= {"schedules"}


def test_only_jit_sets_numba_flags():
    for module, path in MODULES.items():
        source = path.read_text()
        allowed = module == "engine.cpu.kernels.jit"
        assert allowed or ("njit(" not in source and "fastmath" not in source)


def test_only_kernels_import_numba():
    """But for the report on a user's function that Numba refuses."""
    kernels = ("engine.cpu.kernels", "engine.cuda")
    for module, path in MODULES.items():
        found = {name for name in imports(path) if name.split(".")[0] == "numba"}
        if module == "engine.cpu.pieces":
            assert found == {"numba.core.errors"}
        elif not module.startswith(kernels):
            assert not found, module


def test_packages_define_no_classes():
    """They say what is in them, and may have functions that choose."""
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            nodes = ast.walk(ast.parse(path.read_text()))
            assert not [node.name for node in nodes if isinstance(node, ast.ClassDef)], module


OLD_WORDS = r"(?i:(?<![a-z])(?:station|crowd|keeper|slab)s?(?![a-z]))|FINISH|OUT_ACTIVATIONS"


def test_old_words_do_not_come_back():
    """In texts and in names, which may not be ``room`` either."""
    for module, path in MODULES.items():
        assert not re.findall(OLD_WORDS, path.read_text()), module
        with path.open("rb") as file:
            tokens = [token.string for token in tokenize.tokenize(file.readline)]
        assert "room" not in tokens, module


def test_import_compiles_nothing_and_loads_no_optional_package():
    code = (
        "import sys, sklearn.neural_network; before = set(sys.modules); import fastmlp;"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}"
        "- sys.stdlib_module_names), 'fastmlp.tabular' in sys.modules)"
    )
    assert run_python(code).strip() == "['fastmlp'] False"


def test_only_the_cuda_target_imports_numba_cuda():
    for module, path in MODULES.items():
        if not module.startswith("engine.cuda"):
            assert "numba_cuda" not in path.read_text()
            assert not any(name.startswith("numba.cuda") for name in imports(path)), module


IMPORT_TESTS = """
    import contextlib, importlib, pathlib, pytest, sys
    helpers, *folders = sys.path[:0] = sys.argv[1:]
    for folder in folders:
        for path in pathlib.Path(folder).glob("test_*.py"):
            with contextlib.suppress(pytest.skip.Exception):
                importlib.import_module(path.stem)
    print(*{"numba.cuda", "greenlet"} & set(sys.modules))
"""


def test_only_tests_of_the_gpu_import_numba_cuda_or_greenlet():
    """Nor does a helper that the others import; behind the fixture ``device`` the emulator may."""
    folders = [folder for folder in TESTS.iterdir() if list(folder.glob("test_*.py"))]
    folders.remove(TESTS / "gpu")
    assert len(folders) > 4
    assert run_python(IMPORT_TESTS, TESTS / "helpers", *folders).strip() == ""


def test_every_folder_has_quick_tests(request):
    """Those of `quick.QUICK`, which all exist; this module is one of them."""
    folders = {path.parent.name for path in TESTS.glob("*/test_*.py")}
    assert folders == set(QUICK)
    for folder, modules in QUICK.items():
        assert modules
        for module in modules:
            assert "def test_" in (TESTS / folder / f"test_{module}.py").read_text()
    assert request.node.get_closest_marker("quick")


WARNING_CAUSED_BY = {
    "third_party_import": "import noisy",
    "third_party_work": "import noisy; noisy.work()",
    "third_party_file": "warnings.warn_explicit('', UserWarning, '/fastmlp/site-packages/a.py', 1)",
    "our_call": "import noisy; noisy.deprecated()",
    "our_import": "import fastmlp.cause",
    "our_warning": "warnings.warn('ours')",
    "our_kernel": "warnings.warn_explicit('', UserWarning, '/x/fastmlp/engine/a.py', 1)",
    "our_thread": "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
}


def test_warnings_are_errors_where_we_cause_them(tmp_path):
    """A third party may warn while it is imported or works, but not of how it is called."""
    noisy = "import warnings\nwarnings.warn('old', DeprecationWarning)\n"
    noisy += "def work():\n    warnings.warn('slow')\n"
    noisy += "def deprecated():\n    warnings.warn('old', DeprecationWarning, stacklevel=2)\n"
    (tmp_path / "noisy.py").write_text(noisy)
    (tmp_path / "fastmlp").mkdir()
    (tmp_path / "fastmlp" / "cause.py").write_text("import noisy\nnoisy.deprecated()\n")
    cases = [f"def test_{name}():\n    {line}\n" for name, line in WARNING_CAUSED_BY.items()]
    (tmp_path / "test_it.py").write_text("\n".join(["import threading, warnings", *cases]))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider",
               "-c", PACKAGE.parent / "pyproject.toml", "--rootdir", tmp_path, "."]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    failed = re.findall(r"^FAILED .*::test_(\w+)", done.stdout, re.MULTILINE)
    assert failed == [name for name in WARNING_CAUSED_BY if name.startswith("our_")], done.stdout
    assert re.search(r"\b3 passed", done.stdout), done.stdout
