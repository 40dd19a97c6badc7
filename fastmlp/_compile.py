"""Compile kernels: a program, and the hook that builds wheels with compiled kernels in them.

Compiling takes Numba and the modules that kernels are made of.  To start fast, and to run where a
wheel is built and nothing else is installed, this file leaves out the rest of the package, and with
it scikit-learn and SciPy.

``FASTMLP_PREBUILD`` says for which processor levels a build compiles: ``native`` (the default), the
building machine's; ``all``, those that are in use of its architecture; ``none``.
"""

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent


def _leave_out_the_rest() -> None:
    """Let modules of the package be imported without running its ``__init__`` files."""
    for name in ("fastmlp", "fastmlp.engine", "fastmlp.engine.cpu"):
        module = types.ModuleType(name)
        module.__path__ = [str(PACKAGE.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module


def prebuild(choice: str, report: Callable[[str], object] = print) -> list[Path]:
    """Compile all kernels into the package, as far as they are not there, and remove others.

    Parameters
    ----------
    choice : {'native', 'all', 'none'}
    report : callable
        Is told what happens.

    Returns
    -------
    list of Path
        The object files.

    Raises
    ------
    ValueError
        If the choice is another.
    """
    from fastmlp.engine import objects, processor
    from fastmlp.engine.cpu import pieces

    levels = {"native": [processor.LEVEL], "all": processor.IN_USE, "none": []}.get(choice)
    if levels is None:
        raise ValueError(f"FASTMLP_PREBUILD={choice!r} is not known; use native, all or none.")
    wanted = [key._replace(level=level) for level in levels for key in pieces.everything()]
    paths = {objects.PREBUILT / key.path: key for key in wanted}
    for path in objects.PREBUILT.rglob("*.o"):
        if path not in paths or objects.read(objects.PREBUILT, paths[path]) is None:
            path.unlink()
    for level in levels:
        missing = [key for path, key in paths.items() if key.level == level and not path.exists()]
        if missing:
            report(f"compiling {len(missing)} kernels for {level}")
        for key, code in zip(missing, objects.compile_pieces(missing), strict=True):
            objects.write(objects.PREBUILT, key, code)
    return list(paths)


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
    from fastmlp.engine.cpu.kernels.compiler import main

    main()
