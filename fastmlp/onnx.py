"""ONNX under its public name; see `fastmlp.export.onnx`."""

from fastmlp.export.onnx import register, to_onnx

__all__ = ["register", "to_onnx"]
