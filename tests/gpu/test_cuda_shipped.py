"""Kernels that come compiled: which they are, how they are found, that they need no compiler."""

import warnings

import numpy as np
import pytest
from processes import run_python

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.engine import objects
from fastmlp.engine.cuda import compiler, kernels, shipped
from fastmlp.engine.cuda.compiler import TARGETS, target_of

core = pytest.importorskip("cuda.core", reason="cuda.core comes with numba-cuda")


@pytest.fixture
def recorder(monkeypatch):
    recorder = shipped.Recorder()
    monkeypatch.setattr("fastmlp.engine.cuda.device.open_device", lambda: recorder)
    return recorder


def fit(recorder, seed):
    """An estimator with default parameters on data and a GPU of random sizes."""
    rng = np.random.default_rng(seed)
    recorder.n_multiprocessors = int(rng.integers(14, 150))
    n, n_features = int(rng.integers(50, 3000)), int(rng.integers(1, 300))
    is_float64 = bool(seed % 5 == 4)
    X = rng.normal(size=(n, n_features)).astype("float64" if is_float64 else "float32")
    widths = tuple(rng.choice([10, 32, 50, 100, 256, 300], int(rng.integers(1, 4))).tolist())
    options = {} if is_float64 else {
        "hidden_layer_sizes": widths, "batch_size": min(n, int(rng.choice([50, 200, 700, 3000]))),
        "matmul_precision": str(rng.choice(["highest", "high", "medium"])),
    }  # fmt: skip
    kinds = [
        (MLPClassifier, np.arange(n) % int(rng.choice([2, 3, 10, 16]))),
        (MLPClassifier, np.arange(2 * n).reshape(n, 2) // 3 % 2),
        (MLPRegressor, rng.normal(size=(n, int(rng.integers(1, 5))))),
    ]
    estimator, y = kinds[seed % 3]
    model = estimator(device="cuda", max_iter=1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        model.fit(X, y.ravel() if y.shape[1:] == (1,) else y)
    model.predict(X[:20])


def digests(launches):
    return {compiler.key_of(*each.kernel, each.args, each.threads, ()).name for each in launches}


def test_default_fits_ask_for_nothing_else(recorder):
    for seed in range(30):
        fit(recorder, seed)
    asked = digests(recorder.launches)
    assert len(asked) > 40
    assert asked <= digests(shipped.shipped())


def test_other_fits_ask_for_more(recorder):
    MLPRegressor(device="cuda", activation="tanh", n_iter_no_change=1).fit(
        np.zeros((30, 3), np.float32), np.zeros(30)
    )
    assert not digests(recorder.launches) <= digests(shipped.shipped())


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 3), (11, 0), (12, 1)])
def test_a_gpu_runs_what_is_compiled_for_it(capability):
    """NVIDIA's rule: of the same major version, and of no newer minor one."""
    major, minor, *letter = target_of(*capability)
    assert major == capability[0]
    assert minor <= capability[1]
    assert not letter or minor == capability[1]
    assert target_of(*TARGETS.get(capability[0], capability)[:2]) == target_of(*capability)


DIGESTS = """
from fastmlp.engine.cuda import compiler, shipped
for each in shipped.shipped():
    print(compiler.key_of(*each.kernel, each.args, each.threads, (8, 0)).name)
"""


def test_names_do_not_depend_on_the_machine(package_copy, tmp_path, monkeypatch):
    """Nor on the folder, on hashing, or on the versions of what compiles."""
    expected = digests(shipped.shipped())
    copied = package_copy(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "another")
    assert digests(shipped.shipped()) == expected
    found = run_python(DIGESTS, PYTHONPATH=str(copied), PYTHONHASHSEED="5")
    assert set(found.split()) == expected


def test_what_came_compiled_needs_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(objects, "PREBUILT", tmp_path)
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "assemble", lambda *_: pytest.fail("it is compiled"))
    asked = kernels.rewind, {"THREADS": 32}, (np.zeros(4, np.int64), 1, 2, 3), 32, (9, 0, "a")
    key = compiler.key_of(*asked)
    objects.write(objects.PREBUILT, key, compiler.pack("entry", b"\x7fELF machine code"))
    code, entry = compiler.compile_kernel(None, *asked)
    assert (code.code, code.code_type, entry) == (b"\x7fELF machine code", "cubin", "entry")
    path = objects.PREBUILT / key.path
    path.write_bytes(path.read_bytes() + b"damage")
    with pytest.raises(pytest.fail.Exception):
        compiler.compile_kernel(None, *asked)


@pytest.mark.parametrize("capability", [(8, 6), (10, 3), (11, 0), (12, 1), (13, 0)])
@pytest.mark.parametrize("there", [("cubin", "ptx"), ("ptx",), ("cubin",), ()], ids=str)
def test_machine_code_that_fits_comes_first_then_ptx(capability, there, monkeypatch, tmp_path):
    """Then what is compiled here; PTX only for GPUs that a wheel has no machine code for."""
    monkeypatch.setattr(objects, "PREBUILT", tmp_path)
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "assemble", lambda *_: ("entry", b"compiled here"))
    asked = kernels.rewind, {"THREADS": 32}, (np.zeros(4, np.int64), 1, 2, 3), 32
    for target in TARGETS.values() if "cubin" in there else ():
        code = compiler.pack("entry", compiler.name_of(target).encode())
        objects.write(objects.PREBUILT, compiler.key_of(*asked, target), code)
    if "ptx" in there:
        key = compiler.key_of(*asked, compiler.PTX_TARGET, "ptx")
        objects.write(objects.PREBUILT, key, compiler.pack("entry", b"for compute_100"))
    code, entry = compiler.compile_kernel(None, *asked, target_of(*capability))
    assert entry == "entry"
    is_known = capability[0] in TARGETS
    if "cubin" in there and is_known:
        expected = "cubin", compiler.name_of(target_of(*capability)).encode()
    elif "ptx" in there and not is_known:
        expected = "ptx", b"for compute_100"
    else:
        expected = "cubin", b"compiled here"
    assert (code.code_type, code.code) == expected


def test_a_compiler_that_is_missing(monkeypatch, tmp_path):
    from cuda.pathfinder import DynamicLibNotFoundError
    from numba import cuda

    def fail(*_, **__):
        raise DynamicLibNotFoundError("no libnvvm.so\nsearched there")

    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda, "compile_ptx", fail)
    told = r"'cuda': the kernel rewind .* for sm_80, .*missing \(no libnvvm.so\); install .*cuda\]"
    with pytest.raises(ValueError, match=told):
        compiler.compile_kernel(cuda, kernels.rewind, {"THREADS": 32}, (1, 2), 32, (8, 0))


# --- the build of a wheel -----------------------------------------------------------------------


def test_a_build_without_the_compiler_says_so(package_copy, tmp_path):
    """Which is not there, or is hidden: it must not compile for minutes."""
    package = package_copy(tmp_path / "package")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "_numba_cuda_redirector.py").write_text("raise ImportError")
    program = """
    import runpy, sys
    build = runpy.run_path(sys.argv[1])
    build["_leave_out_the_rest"]()
    try:
        build["prebuild"]("none,cuda")
    except RuntimeError as error:
        print(error)
    """
    told = run_python(
        program, package / "fastmlp" / "_compile.py", PYTHONPATH=str(hidden)
    ).splitlines()
    names = "sm_80, sm_90a, sm_100, sm_120, compute_100"
    assert told[0].startswith(f"compiling kernels for GPUs ({names})")
    assert told[1].startswith("FASTMLP_PREBUILD: kernels for GPUs could not be compiled; install")
    assert told[-1].startswith("ValueError: device='cuda' needs numba-cuda; install it with")


def test_a_build_without_kernels_for_gpus_removes_them(package_copy, tmp_path):
    package = package_copy(tmp_path)
    cubin = package / "fastmlp" / "_prebuilt" / "sm_80" / "some-cubin.o"
    cubin.parent.mkdir(parents=True)
    cubin.touch()
    run_python(
        "from fastmlp._compile import prebuild; prebuild('none')", PYTHONPATH=str(package)
    )  # fmt: skip
    assert not cubin.exists()
