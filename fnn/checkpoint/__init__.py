"""Checkpoints: a tree in a folder that is complete or absent, and a keeper of a run's newest.

saving = fnn.checkpoint.save(path, tree, meta={"run": 3})
tree = fnn.checkpoint.restore(path, like)
params = fnn.checkpoint.restore(path, params, at="params")
print(fnn.checkpoint.inspect(path))
"""

from fnn.checkpoint.keeper import Keeper
from fnn.checkpoint.restoring import Contents, inspect, restore
from fnn.checkpoint.saving import Saving, save

__all__ = ["Contents", "Keeper", "Saving", "inspect", "restore", "save"]
