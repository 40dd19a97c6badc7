"""Compile kernels: a program, and the hook that builds wheels with compiled kernels in them.

Compiling takes Numba and the modules that kernels are made of.  To start fast, and to run where a
wheel is built and nothing else is installed, this file leaves out the rest of the package, and with
it scikit-learn and SciPy.

``FASTMLP_PREBUILD`` says for which processor levels a build compiles: ``native`` (the default), the
building machine's; ``all``, those that are in use of its architecture; ``none``.  With ``,cuda``
after it (``native,cuda``) a build compiles for GPUs as well, which takes the packages of the extra
``cuda``, where NVIDIA's libraries look for each other: not in the folder that pip builds in.
"""

import os
import subprocess
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
_FOR_GPUS = ",cuda"


def _leave_out_the_rest() -> None:
    """Let modules of the package be imported without running its ``__init__`` files."""
    for name in (
        "fastmlp",
        *(f"fastmlp.{part}" for part in ("engine", "engine.cpu", "engine.cuda")),
    ):
        module = types.ModuleType(name)
        module.__path__ = [str(PACKAGE.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module


def prebuild(choice: str, report: Callable[[str], object] = print) -> list[Path]:
    """Compile all kernels into the package, as far as they are not there, and remove others.

    Parameters
    ----------
    choice : {'native', 'all', 'none'}, and ',cuda'
    report : callable
        Is told what happens.

    Returns
    -------
    list of Path
        The object files.

    Raises
    ------
    RuntimeError
        If kernels cannot be compiled.
    ValueError
        If the choice is another.
    """
    from fastmlp.engine import objects, processor
    from fastmlp.engine.cpu import pieces

    of_cpu = choice.removesuffix(_FOR_GPUS)
    levels = {"native": [processor.LEVEL], "all": processor.IN_USE, "none": []}.get(of_cpu)
    if levels is None:
        raise ValueError(
            f"FASTMLP_PREBUILD={choice!r} is not known; use native, all or none, and {_FOR_GPUS} "
            "after it for kernels of GPUs."
        )
    wanted = [key._replace(level=level) for level in levels for key in pieces.everything()]
    paths = {objects.PREBUILT / key.path: key for key in wanted}
    cubins = set(_prebuild_for_gpus(report) if of_cpu != choice else ())
    for path in set(objects.PREBUILT.rglob("*.o")) - cubins:
        if path not in paths or objects.read(objects.PREBUILT, paths[path]) is None:
            path.unlink()
    for level in levels:
        missing = [key for path, key in paths.items() if key.level == level and not path.exists()]
        if missing:
            report(f"compiling {len(missing)} kernels for {level}")
        for key, code in zip(missing, objects.compile_pieces(missing), strict=True):
            objects.write(objects.PREBUILT, key, code)
    return [*paths, *sorted(cubins)]


def _prebuild_for_gpus(report: Callable[[str], object]) -> list[Path]:
    """The same for GPUs, those of each major version in a process of its own, and of PTX."""
    from fastmlp.engine import objects, processor
    from fastmlp.engine.cuda import compiler

    names = list(map(compiler.name_of, compiler.TARGETS.values()))
    names.append(compiler.name_of(compiler.PTX_TARGET, "ptx"))
    report(f"compiling kernels for GPUs ({', '.join(names)}), which takes minutes")

    def build(which: int | str) -> None:
        command = [sys.executable, "-P", "-W", "ignore", __file__, "cuda", str(which)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                "FASTMLP_PREBUILD: kernels for GPUs could not be compiled; install fastmlp[cuda] "
                f"and hatchling, and build with --no-build-isolation. {done.stderr.strip()[-2000:]}"
            )

    with ThreadPoolExecutor(processor.n_processors()) as pool:
        list(pool.map(build, [*compiler.TARGETS, "ptx"]))
    return [path for name in names for path in (objects.PREBUILT / name).glob("*.o")]


def get_build_hook() -> type[Any]:
    """For hatchling."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    from packaging.tags import platform_tags

    class KernelBuildHook(BuildHookInterface):
        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            _leave_out_the_rest()
            choice = os.environ.get("FASTMLP_PREBUILD", "native")
            if prebuild(choice, self.app.display_info):
                tags = list(platform_tags())
                oldest = [tag for tag in tags if tag.startswith("manylinux_2_17_")]
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{(oldest or tags)[0]}"

    return KernelBuildHook


if __name__ == "__main__":
    _leave_out_the_rest()
    if sys.argv[1] == "cuda":
        from fastmlp.engine.cuda.shipped import main
    else:
        from fastmlp.engine.cpu.kernels.compiler import main
    main()
