"""Training states over many devices, placed by what the layers declare.

>>> import fnn, jax
>>> net, tx = fnn.transformer_block(64, 2), fnn.optim.adam(1e-3)
>>> devices = fnn.sharding.mesh(data=-1, model=1)
>>> placed = fnn.sharding.plan(devices, net, tx, (8, 5, 64), fsdp="data")
>>> ts = fnn.train.init(net, tx, jax.random.key(0), (8, 5, 64), shardings=placed)
>>> tuple(ts.params["up"]["kernel"].sharding.spec)
('data', None)
>>> loss_fn = fnn.train.supervised(net, fnn.losses.squared_error)
>>> step = fnn.train.step(loss_fn, tx, shardings=placed)

Tensor parallelism is the rule `MEGATRON`; printed, a placement is a table of every array.
"""

from fnn.core.placement import Placement
from fnn.sharding.activations import SEQUENCE, constrained
from fnn.sharding.mesh import mesh
from fnn.sharding.plan import MEGATRON, plan

__all__ = ["MEGATRON", "SEQUENCE", "Placement", "constrained", "mesh", "plan"]
