"""What ``pytest -m quick`` runs: under a minute on two processors, once kernels are compiled."""

QUICK = {
    "dask": ("data",),
    "engine": ("engine", "vector"),
    "estimators": (
        "behaviour", "callbacks", "choices", "class_weight", "ensemble", "inspect", "parity",
        "prediction", "restarts", "validation",
    ),
    "export": ("c99", "onnx"),
    "gpu": ("cuda_device",),
    "model_selection": ("halving", "search"),
    "persistence": ("io", "io_ensemble", "safetensors", "written"),
    "project": ("architecture", "documentation"),
    "unit": ("functions", "initialise", "shuffle", "schedules"),
}  # fmt: skip
"""Modules by folder, without their ``test_``."""


def is_quick(item) -> bool:
    """Whether a test is of these modules, on the processor; of trajectories, some stand for all."""
    if item.path.stem.removeprefix("test_") not in QUICK.get(item.path.parent.name, ()):
        return False
    if item.name.startswith("test_trajectory"):
        return "-tanh-" in item.name and "-weights" in item.name
    return "emulated" not in item.name
