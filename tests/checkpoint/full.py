"""Saves on a disk that is full, read-only or another user's: `python full.py directory`.

The directory becomes a file system of one megabyte, in a mount namespace of this process's own.
"""

import errno
import os
import subprocess
import sys

import numpy as np

from fnn import checkpoint

directory = sys.argv[1]


def fails(save, *wanted):
    try:
        save()
    except OSError as error:
        assert error.errno in wanted, error
    else:
        raise AssertionError(f"no error, not even {wanted}")


def tree(kilobytes, value=1):
    return {"w": np.full(kilobytes * 1024, value, np.uint8)}


def intact(*steps):
    keeper = checkpoint.Keeper(f"{directory}/run")
    assert keeper.steps() == [*steps], keeper.steps()
    for step in steps:
        assert (keeper.restore(step=step)["w"] == step).all()
    assert sorted(os.listdir(f"{directory}/run")) == [f"step-{step}" for step in steps]


subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "none", directory], check=True)
keeper = checkpoint.Keeper(f"{directory}/run", keep=9)
keeper.save(tree(200, 1), 1).wait()
fails(keeper.save(tree(2000), 2).wait, errno.ENOSPC)
intact(1)
saving = keeper.save(tree(2000), 3)
saving._thread.join()
fails(lambda: keeper.save(tree(1), 4), errno.ENOSPC)  # the next call raises
intact(1)
keeper.save(tree(200, 5), 5).wait()  # there is room for this one
intact(1, 5)

subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
fails(keeper.save(tree(10), 6).wait, errno.EROFS)
intact(1, 5)
print("done")
