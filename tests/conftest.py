"""Shared data, and the list of engines that every rung of the ladder climbs."""

import os
import shutil
import signal
from pathlib import Path

os.environ["SCIPY_ARRAY_API"] = "1"  # before SciPy: scikit-learn's array API checks then run

import pytest
from engines import no_thresholds  # noqa: F401
from problems import ENGINES
from quick import is_quick

import fastmlp


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"engines under test: {'; '.join(ENGINES)}")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        if is_quick(item):
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session", autouse=True)
def obey_ctrl_c():
    """Ctrl-C is a KeyboardInterrupt here and in processes that tests start.

    What a shell's script starts in the background ignores it, and so does all that this starts.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=ENGINES)
def device(request, monkeypatch):
    """A name for `fastmlp.engine.get_engine`; behind 'cuda' is the emulator."""
    if request.param == "cpu":
        return "cpu"
    from simt import EMULATED_SIZES, EmulatedDevice  # needs numba-cuda and greenlet

    monkeypatch.setattr("fastmlp.engine.cuda.device.open_device", EmulatedDevice)
    sizes = dict.fromkeys(("float32", "float64"), EMULATED_SIZES)
    monkeypatch.setattr("fastmlp.engine.cuda.tiles.SIZES", sizes)
    return "cuda"


@pytest.fixture(scope="session")
def package_copy():
    """A function that copies the package to a folder, without any compiled kernel."""

    def copy(folder):
        ignore = shutil.ignore_patterns("__pycache__", "_prebuilt")
        shutil.copytree(Path(fastmlp.__file__).parent, folder / "fastmlp", ignore=ignore)
        return folder

    return copy


@pytest.fixture
def package(package_copy, tmp_path):
    """A folder with such a copy."""
    return package_copy(tmp_path)
