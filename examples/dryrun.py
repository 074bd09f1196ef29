"""Would it fit? Transformers of 1, 7 and 70 billion params, on machines that are not here.

    pip install '.[dryrun]'                       # the compilers of TPUs and GPUs, 1 GB
    python examples/dryrun.py                     # 1 billion on eight TPU v5e, 1 minute
    python examples/dryrun.py --sizes 7B 70B --on h100    # 1 minute
    python examples/dryrun.py --sizes 1B 7B 70B   # all, 10 minutes

Each is compiled for its devices by XLA's own compilers, on this machine's processor: with data
parallelism, which keeps all of the training state on every device, and fully sharded. Nothing runs,
so times are on paper: FLOPs and bytes over the makers' full rates.
"""

import argparse
import os
import pathlib

os.environ.setdefault(
    "JAX_PLATFORMS", "cpu"
)  # else JAX looks for a TPU, and says that there is none

import jax
import jax.numpy as jnp

import fnn

VOCABULARY, WINDOW = 32_000, 2048
TX = fnn.optim.adam(3e-4)
SIZES = {  # gated, with rotary positions and rms norms, as in Touvron et al. 2023
    "1B": dict(features=2048, heads=16, hidden=5632, depth=22),
    "7B": dict(features=4096, heads=32, hidden=11008, depth=32),
    "70B": dict(features=8192, heads=64, kv_heads=8, hidden=28672, depth=80),
}
MESHES = {  # a size, where it is to run, and a mesh for what is fully sharded
    "1B": [("v5e:2x4", {"data": 8})],
    "7B": [("v5p:4x4x4", {"data": 64}), ("h100:64", {"data": 64})],
    "70B": [
        ("v5e:16x16", {"data": 256}),
        ("v5p:8x8x8", {"data": 512}),
        ("h100:512", {"data": 512}),
    ],
}
PLACEMENTS = {"data-parallel": {}, "fully sharded": {"fsdp": "data"}}


@fnn.builder
def transformer(features, heads, hidden, depth, kv_heads=None):
    block = fnn.transformer_block(
        features, heads, kv_heads=kv_heads, hidden=hidden, gated=True, activation=jax.nn.silu,
        causal=True, rotary=10_000.0, norm=fnn.rms_norm, use_bias=False,
    )  # fmt: skip
    head = fnn.dense(VOCABULARY, use_bias=False, axes=("in", "vocabulary"))

    @fnn.compose(
        embed=fnn.embedding(VOCABULARY, features),
        blocks=fnn.repeat(fnn.remat(block), depth),
        norm=fnn.rms_norm(),
        head=head,
    )
    def transformer(f, x, following):  # [B, T] tokens, and those that follow
        h = f.norm(f.blocks(f.embed(x)))  # [B, T, features]
        return fnn.losses.softmax_cross_entropy(f.head(h), following)

    return fnn.cast(transformer, jnp.bfloat16)


def params_of(size):
    net, x = transformer(**SIZES[size]), jax.ShapeDtypeStruct((1, WINDOW), jnp.int32)
    return sum(leaf.size for leaf in jax.tree.leaves(fnn.train.shapes(net, TX, x, x).params))


def dry_run(size, on, mesh, options):
    """The report of a step with one sequence for each device."""
    net = transformer(**SIZES[size])
    devices = fnn.sharding.mesh(on=on, **mesh)
    x = jax.ShapeDtypeStruct((devices.size, WINDOW), jnp.int32)
    placed = fnn.sharding.plan(devices, net, TX, x, x, **options)
    net = fnn.sharding.constrained(net, placed)  # activations stay where their sequences are

    def loss_fn(params, state, batch, key):
        losses, state = net.apply(params, state, *batch, key=key, train=True)
        return losses.mean(), (state, {})

    step = fnn.train.step(loss_fn, TX, shardings=placed)
    return fnn.dryrun(step, placed.shapes, (x, x), on=on, shardings=placed)


def gib(nbytes):
    return f"{nbytes / 2**30:.2f}" if nbytes else "-"


def row(size, placement, report):
    found, machine = report.estimate(), report.topology.machine
    temporaries = report.memory.temporaries if report.memory else None
    paper = f"{1000 * found.least:.0f} to {1000 * found.most:.0f}" if found else ""
    return (
        f"{size:>4} {str(report.topology):12} {placement:14} {'yes' if report.fits else 'no':4}"
        f"{gib(report.params + report.optimizer):>9}{gib(temporaries):>12}{gib(report.peak):>8}"
        f"{machine.memory / 2**30:8.1f}{gib(report.sent):>8}{paper:>18}{report.seconds:12.0f}"
    )


HEADER = (
    f"{'':36}GiB a device: params\n"
    f"{'':4} {'devices':12} {'placement':14} fits{'and Adam':>9}{'temporaries':>12}{'peak':>8}"
    f"{'has':>8}{'sends':>8}{'ms on paper':>18}{'compiled, s':>12}"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1B"])
    parser.add_argument("--on", help="only machines whose name starts so, such as h100")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/dryrun"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    for size in args.sizes:
        print(f"{size}: {params_of(size) / 1e9:.2f} billion params")
    print(HEADER)
    for size in args.sizes:
        for on, mesh in MESHES[size]:
            if not on.startswith(args.on or ""):
                continue
            for placement, options in PLACEMENTS.items():
                try:
                    report = dry_run(size, on, mesh, options)
                except ImportError as error:
                    parser.exit(1, f"{error}\n")
                print(row(size, placement, report), flush=True)
                name = f"{size}-{on.replace(':', '-')}-{placement.replace(' ', '-')}.txt"
                (args.out / name).write_text(f"{report}\n")
    print(f"reports: {args.out}/")


if __name__ == "__main__":
    main()
