"""What the engine of a device can do is known before anything of the device is loaded."""

import pytest
from processes import run_python

from fastmlp.engine import DEVICES, MATMUL_PRECISIONS, capabilities, check_device


def test_capabilities_of_every_device():
    for device in DEVICES:
        assert set(capabilities(device).matmul_precisions) <= set(MATMUL_PRECISIONS)
        assert "highest" in capabilities(device).matmul_precisions
    assert [capabilities(device).arrays_on_device for device in ("cpu", "cuda")] == [False, True]


@pytest.mark.parametrize("precision", MATMUL_PRECISIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_supported_is_let_through(device, precision):
    if precision in capabilities(device).matmul_precisions:
        check_device(device, precision)
        return
    with pytest.raises(ValueError, match="does not support matmul_precision") as refused:
        check_device(device, precision)
    assert str(refused.value) == (
        f"device='cpu' does not support matmul_precision={precision!r}; use 'highest', "
        "or device='cuda'."
    )


def test_what_no_device_knows_is_refused():
    with pytest.raises(ValueError, match=r"device='tpu' is not supported; use one of \('cpu', "):
        check_device("tpu")
    with pytest.raises(ValueError, match=r"precision='low'; use 'highest', 'high', 'medium'\.$"):
        check_device("cuda", "low")


def test_to_ask_imports_no_target():
    found = run_python("""
        import sys
        from fastmlp.engine import check_device
        before = set(sys.modules)
        check_device("cuda", "medium")
        print(sorted(set(sys.modules) - before), "numba" in sys.modules)
        print([name for name in sys.modules if name.startswith("fastmlp.engine.cuda")])
    """)
    assert found.split() == ["[]", "False", "[]"]
