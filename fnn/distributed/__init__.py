"""One program in many processes, on one machine or many: each has its part of the data.

    def main():
        placed = fnn.sharding.plan(fnn.sharding.mesh(data=-1), net, tx, x)     # over all devices
        ts = fnn.train.init(net, tx, jax.random.key(0), x, shardings=placed)
        step = fnn.train.step(loss_fn, tx, shardings=placed)
        fnn.train.fit(step, ts, data, epochs=5, batch_size=64)                 # whole batches

    fnn.distributed.run(main)

Run as it is, the script has one process. `python -m fnn.distributed --processes 4 script.py`
starts four on this machine; SLURM, Kubernetes and TPU pods start them elsewhere (see
examples/cluster). All end when one does.

What every process passes must be the same, except for batches: of arrays `fit` takes the rows that
a process's devices need, and a stream with `device=placed.batch_sharding` reads no others; a batch
of NumPy arrays that a step is called with is one process's part. Programs, params and the shapes of
batches are compared before the first step, and a difference ends all with an error that names it.
The progress bar, logs and tables are those of process 0; every process calls a
`fnn.checkpoint.Keeper`, whose directory is on a disk that all share.
"""

from fnn.core.agreement import check_agreement
from fnn.distributed.run import run

__all__ = ["check_agreement", "run"]
