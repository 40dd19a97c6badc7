"""Every CUDA kernel compiles for real GPUs, within limits; needs the ``cuda-ci`` extra.

Limits are a little above what was measured when they were set; a kernel that needs more has changed
its nature.
"""

import itertools

import numpy as np
import pytest
from gate import GateDevice, find_tools
from problems import make_network, make_problem, place_for
from scipy import sparse

from fastmlp.dropout import Dropout
from fastmlp.engine.cuda import CudaEngine
from fastmlp.engine.cuda import engine as target
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.optimizers import OPTIMIZERS, Optimizer

pytestmark = [
    pytest.mark.gate,
    pytest.mark.skipif(
        None in find_tools().values(),
        reason="the CUDA compile gate needs the cuda-ci extra: pip install -e '.[test,cuda-ci]'",
    ),
]
CAPABILITIES = [(8, 0), (9, 0, "a")]
REGISTERS = {  # per thread, float32 and float64
    "product": (176, 168),
    "product, tensor cores": (248, 0),
    "softmax_head": (48, 72),
    "head": (64, 72),
    "probability_head": (72, 80),
    "resident_epoch": (168, 176),
}
OTHERS = (48, 64)
MAX_SHARED = 48 * 1024


def use(device, described, dtype, X, y, *, rule="adam", precision="highest", dropout=None,
        **options):  # fmt: skip
    """Launch all kernels that a network of this kind needs."""
    network, objective = described
    constants = (0.9, 0.999, 1e-8)
    engine = CudaEngine(
        network, dtype=dtype, device=device, matmul_precision=precision, batch_size=200,
        optimizer=Optimizer(rule, constants, **options), alpha=0.1, objective=objective,
        dropout=dropout,
    )  # fmt: skip
    engine.load(place_for(engine, X, y, np.ones(X.shape[0])))
    engine.run_epoch(np.arange(400), np.full(2, 1e-3))
    engine.loss_and_gradient()
    engine.predict(X)


def reports(capability, dtype, monkeypatch):
    """{kernel: resources} over both paths, small and large tiles, all formulas, dense and sparse
    input.
    """
    device = GateDevice(capability)
    # everything once, scikit-learn's formulas for both element types and both capabilities
    all_of_them = dtype == "float32" and capability[0] == 9
    n = max(len(ACTIVATIONS), len(LOSSES)) if all_of_them else 4
    pairs = zip(itertools.cycle(LOSSES), itertools.cycle(ACTIVATIONS), strict=False)
    for i, (loss, activation) in enumerate(itertools.islice(pairs, n)):
        X, y = make_problem(loss, 400, 300, 3)
        X = X.astype(dtype)
        monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", 2**17)
        use(device, make_network((300, 50, 12, 3), activation, loss), dtype, X, y)
        monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", 0)
        hidden = (260, 12) if i < 4 or activation == "mish" else (12,)  # large tiles, or small
        network = make_network((300, *hidden, 3), activation, loss)
        use(device, network, dtype, X, y)
    use(device, network, dtype, sparse.csr_matrix(X), y)
    for rule in OPTIMIZERS:
        use(device, network, dtype, X, y, rule=rule)
    dropped = make_network((300, 12, 3), "relu", "log_loss", layer_norm=True)
    options = {"max_grad_norm": 1.0, "ema_decay": 0.9, "dropout": Dropout((0.5,), 0)}
    use(device, dropped, dtype, *make_problem("log_loss", 400, 300, 3), **options)
    if dtype == "float32":
        for precision in ("high", "medium"):
            use(device, network, dtype, X, y, precision=precision)
    return device.reports


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_kernels_stay_within_their_limits(capability, dtype, monkeypatch):
    found = reports(capability, dtype, monkeypatch)
    assert {key[0] for key in found} >= {
        "gather",
        "gather_sparse",
        "product",
        "update",
        "resident_epoch",
    }
    for key, used in found.items():
        name = f"{key[0]}, tensor cores" if used["HMMA"] else key[0]
        limit = REGISTERS.get(name, OTHERS)[dtype == "float64"]
        assert used["REG"] <= limit, (key, used)
        assert used["STACK"] == used["LOCAL"] == used["STL"] == used["LDL"] == 0, (key, used)
        assert used["SHARED"] <= MAX_SHARED, (key, used)
        if key[0] == "product":
            assert used["LDGSTS"] > 0, (key, used)
        if name == "product":
            assert used["FFMA" if dtype == "float32" else "DFMA"] >= 8, (key, used)
        on_tensor_cores = ("MULTIPLY", "multiply_mma") in key
        assert (used["HMMA"] >= 2) == on_tensor_cores, (key, used)
