"""Checkpoints: trees in folders that are complete or absent, and a keeper of a run's newest."""

from fnn.checkpoint.keeper import Keeper
from fnn.checkpoint.network import Loaded, load
from fnn.checkpoint.restore import Contents, inspect, restore
from fnn.checkpoint.save import Saving, save

__all__ = ["Contents", "Keeper", "Loaded", "Saving", "inspect", "load", "restore", "save"]
