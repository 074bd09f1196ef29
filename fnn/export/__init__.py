"""Artifacts: networks as programs and params in a folder, which run where fnn is not; and ONNX."""

from fnn.export.artifact import Artifact, Program, Step, load
from fnn.export.onnx_file import onnx
from fnn.export.writer import save

__all__ = ["Artifact", "Program", "Step", "load", "onnx", "save"]
