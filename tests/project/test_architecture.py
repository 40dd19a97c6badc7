"""Who may import whom (DESIGN's arrows), what import costs, and who owns Numba's flags."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_python
from quick import QUICK

import fastmlp

PACKAGE = Path(fastmlp.__file__).parent
TESTS = Path(__file__).parents[1]
ALLOWED = {
    "__init__": {
        "_random",
        "_skl2onnx",
        "_versions",
        "c99",
        "engine",
        "estimators",
        "io",
        "tabular",
    },
    "__main__": {"engine", "fastmlp"},
    "_versions": {"engine"},
    "_export": {"fastmlp", "_sklearn", "estimators", "functions", "network"},
    "c99": {"_export", "_safetensors", "functions"},
    "onnx": {"_export", "_safetensors", "estimators", "functions", "tabular"},
    "estimators": {
        "fastmlp",
        "prediction",
        "engine.idle",
        "_arrays",
        "_sklearn",
        "checkpoints",
        "dropout",
        "engine",
        "functions",
        "initialisers",
        "network",
        "objective",
        "optimizers",
        "schedules",
        "training",
    },
    "checkpoints": {"_json", "_safetensors", "engine", "training"},
    "io": {
        "_json",
        "_safetensors",
        "_sklearn",
        "estimators",
        "fastmlp",  # its version
        "functions",
        "network",
        "optimizers",
        "schedules",
        "training",
    },
    "training": {"_random", "_sklearn", "engine", "schedules"},
    "inspect": {
        "_arrays",
        "_sklearn",
        "engine",
        "estimators",
        "functions",
        "network",
        "objective",
    },
    "plotting": {"_sklearn", "estimators", "inspect"},
    "tabular": {"_sklearn", "estimators"},
    "_random": {"engine.cpu.blocks", "engine.cpu.layout", "engine.objects"},
    "_interrupts": set(),
    "_compile": {
        "engine.objects",
        "engine.processor",
        "engine.cpu.pieces",
        "engine.cpu.kernels.compiler",
    },
    "prediction": {"engine", "engine.idle", "network"},
    "network": {"functions", "initialisers"},
    "initialisers": set(),
    "objective": {"functions"},
    "dropout": set(),
    "engine": {
        "_interrupts",
        "dropout",
        "network",
        "objective",
        "optimizers",
        "engine.cpu.rows",
        "engine.cpu.threads",
        "engine.cuda.device",
    },
    "engine.idle": set(),
    "engine.processor": set(),
    "engine.images": set(),
    "engine.objects": {"engine.images", "engine.processor"},
    "engine.cpu": {
        "engine.objects",
        "engine.processor",
        "engine.cpu.pieces",
        *(f"engine.cpu.{name}" for name in ("blocks", "layout", "samples", "source")),
        *(f"engine.cpu.{name}" for name in ("stations", "threads")),
        "dropout",
        "functions",
        "network",
        "objective",
        "optimizers",
    },
    "engine.cpu.blocks": set(),
    "engine.cpu.layout": {"engine.processor", "network"},
    "engine.cpu.pieces": {
        "_interrupts",
        "engine.images",
        "engine.objects",
        "engine.cpu.kernels.jit",
        "engine.cpu.kernels.loops",
        "functions",
        "network",
        "optimizers",
    },
    "engine.cpu.rows": {
        "engine.cpu.pieces",
        "engine.cpu.blocks",
        "engine.cpu.kernels.rows",
        "engine.cpu.source",
        "engine.objects",
        "functions",
        "network",
    },
    "engine.cpu.samples": {"engine.cpu.source", "functions", "objective"},
    "engine.cpu.source": set(),
    "engine.cpu.stations": {"engine.cpu.blocks", "engine.cpu.layout", "engine.objects"},
    "engine.cpu.threads": {"engine.cpu.stations"},
    "engine.cpu.kernels": set(),
    "engine.cpu.kernels.compiler": {
        *(
            f"engine.cpu.kernels.{name}"
            for name in ("jit", "loops", "rows", "shuffle", "stations", "tiles", "training")
        ),
        "engine.objects",
    },
    "engine.cpu.kernels.jit": {"engine.images", "engine.processor"},
    "engine.cpu.kernels.vector": set(),
    "engine.cpu.kernels.tiles": {
        "engine.cpu.kernels.jit",
        "engine.cpu.kernels.vector",
        "engine.cpu.layout",
        "engine.processor",
    },
    "engine.cpu.kernels.loops": {
        "engine.cpu.kernels.jit",
        "engine.cpu.kernels.vector",
        "dropout",
        "functions",
        "optimizers",
    },
    "engine.cpu.kernels.training": {
        *(f"engine.cpu.kernels.{name}" for name in ("jit", "stations", "tiles", "vector")),
        "engine.cpu.blocks",
        "engine.cpu.layout",
        "engine.processor",
        "optimizers",
    },
    "engine.cpu.kernels.rows": {
        "engine.cpu.blocks",
        "engine.cpu.kernels.jit",
        "engine.cpu.kernels.vector",
    },
    "engine.cpu.kernels.stations": {
        "engine.cpu.blocks",
        "engine.cpu.kernels.jit",
        "engine.cpu.kernels.vector",
        "engine.cpu.stations",
    },
    "engine.cpu.kernels.shuffle": {
        "engine.cpu.blocks",
        "engine.cpu.kernels.jit",
        "engine.cpu.kernels.vector",
        "engine.cpu.layout",
    },
    "engine.cuda": {
        *(f"engine.cuda.{name}" for name in ("device", "kernels", "resident", "samples", "tiles")),
        "_arrays",
        "dropout",
        "functions",
        "network",
        "objective",
        "optimizers",
    },
    "engine.cuda.device": set(),
    "engine.cuda.kernels": {"dropout", "engine.cuda.ptx"},
    "engine.cuda.ptx": set(),
    "engine.cuda.samples": {"objective"},
    "engine.cuda.tiles": {"engine.cuda.kernels", "engine.cuda.ptx"},
    "engine.cuda.resident": {"engine.cuda.kernels", "engine.cuda.ptx"},
    "functions": set(),
    "optimizers": set(),
    "schedules": set(),
    "_arrays": set(),
    "_json": set(),
    "_safetensors": {"_json"},
    "_skl2onnx": {"onnx"},
    "_sklearn": set(),
}
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


def test_every_module_is_on_the_map():
    assert set(MODULES) == set(ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_arrows(module):
    ours = {
        name.removeprefix("fastmlp.")
        for name in imports(MODULES[module])
        if name.startswith("fastmlp")
    }
    assert ours <= ALLOWED[module]


@pytest.mark.parametrize("module", ["dropout", "functions", "optimizers", "schedules"])
def test_formulas_need_numpy_only(module):
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    assert roots <= {"math", "numpy", "collections", "functools", "typing"}


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
