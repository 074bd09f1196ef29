"""Artifacts: networks as programs and params in a folder, which run where fnn is not."""

from fnn.export.artifact import Artifact, Program, Step, load
from fnn.export.writer import save

__all__ = ["Artifact", "Program", "Step", "load", "save"]
