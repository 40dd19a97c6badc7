"""skl2onnx knows this package's estimators as soon as both are imported, in whichever order.

skl2onnx looks converters up in tables and asks nobody for more, so whoever is imported second must
fill them.  If that is skl2onnx, its loader is wrapped once; nothing here imports it.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_NAME = "skl2onnx"


def register_when_imported() -> None:
    """Teach skl2onnx now if it is imported, else when it is."""
    if _is_imported():
        _register()
    else:
        sys.meta_path.insert(0, _Finder())


def _is_imported() -> bool:
    return hasattr(sys.modules.get(_NAME), "update_registered_converter")


def _register() -> None:
    from fastmlp.export.onnx import register

    register()


class _Finder(MetaPathFinder):
    """Finds skl2onnx as Python does, until it is imported and not merely looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _NAME:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    """Another loader, and a word to fastmlp when the module is there."""

    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register()
