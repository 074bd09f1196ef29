"""One of two processes that save one tree, each what it owns, and read it with another mesh."""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax  # noqa: E402

me, port, root = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, me)

import numpy as np  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from fnn import checkpoint, errors  # noqa: E402

MESH = jax.make_mesh((4,), ("d",))
W = np.arange(32, dtype=np.float32).reshape(8, 4)


def placed(values, *axes):
    sharding = NamedSharding(MESH, PartitionSpec(*axes))
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


tree = {"w": placed(W, "d"), "whole": placed(2 * W), "n": np.arange(3), "step": 5}
checkpoint.save(f"{root}/one", tree, wait=False).wait()
back = checkpoint.restore(f"{root}/one", {**tree, "w": placed(0 * W, None, "d")})
assert back["n"].tolist() == [0, 1, 2] and back["step"] == 5
for name, values in (("w", W), ("whole", 2 * W)):
    assert len(back[name].addressable_shards) == 2
    for shard in back[name].addressable_shards:
        np.testing.assert_array_equal(shard.data, values[shard.index])

keeper = checkpoint.Keeper(f"{root}/keeper", keep=1, best="eval/loss", mode="min")
for step, loss in enumerate([3.0, 1.0, 2.0, 4.0]):
    keeper.save(tree, step, metrics={"eval/loss": loss})
keeper.wait()
fsync = os.fsync
for failing in (0, 1):  # its disk is full: the other says so at once
    if me == failing:

        def full(descriptor):
            raise OSError(28, "No space left on device")

        os.fsync = full
    try:
        checkpoint.save(f"{root}/failed{failing}", tree)
    except (OSError, errors.CheckpointError) as error:
        assert "No space left" in str(error), error
        assert isinstance(error, OSError) == (me == failing)
        print("failed", end=" ")
    os.fsync = fsync
print("done", keeper.best(), keeper.latest())
