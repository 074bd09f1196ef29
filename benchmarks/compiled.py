"""What layers and examples become on a TPU v5e and an H100, by their compilers, without either.

    pip install '.[dryrun,test]'
    python -m benchmarks.compiled                 # rewrites a part of benchmarks/RESULTS.md
    python -m benchmarks.compiled --only conv lstm examples/gpt

Every kind of layer, with inputs that fill a device somewhat, is compiled as a step of gradient
descent: what it computes forward and backward, in training mode. Of every example it is the
training step.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

import fnn
from benchmarks import example_steps, report
from fnn.core.dtypes import is_floating

MACHINES = {"v5e:1x1": "TPU v5e", "h100:1": "H100"}
IMAGES, SEQUENCE, ROWS = (64, 32, 32, 64), (64, 100, 128), (1024, 512)
TOKENS = jax.ShapeDtypeStruct((64, 128), jnp.int32)


def shapes(*sizes, dtype=jnp.float32):
    return tuple(jax.ShapeDtypeStruct(size, dtype) for size in sizes)


def images(layer):
    return layer, *shapes(IMAGES)


def series(layer):
    return layer, *shapes(SEQUENCE)


def rows(layer):
    return layer, *shapes(ROWS)


LAYERS = {
    "dense": rows(fnn.dense(512)),
    "bilinear": (fnn.bilinear(64), *shapes((1024, 64), (1024, 64))),
    "embedding": (fnn.embedding(32_000, 512), TOKENS),
    "conv 3x3": images(fnn.conv(64, (3, 3))),
    "conv 1x1": images(fnn.conv(64, (1, 1))),
    "conv strided": images(fnn.conv(128, (3, 3), strides=2)),
    "conv grouped": images(fnn.conv(64, (3, 3), groups=4)),
    "conv causal": series(fnn.conv(128, (3,), padding="CAUSAL", dilation=2)),
    "conv 3d": (fnn.conv(32, (3, 3, 3)), *shapes((8, 16, 16, 16, 32))),
    "conv_transpose": images(fnn.conv_transpose(64, (3, 3), strides=2)),
    "depthwise_conv": images(fnn.depthwise_conv((3, 3))),
    "separable_conv": images(fnn.separable_conv(64, (3, 3))),
    "local_conv": (fnn.local_conv(16, (3,)), *shapes((64, 64, 16))),
    "max_pool": images(fnn.max_pool((2, 2))),
    "max_pool overlapping": images(fnn.max_pool((3, 3), strides=2, padding="SAME")),
    "avg_pool": images(fnn.avg_pool((2, 2))),
    "min_pool": images(fnn.min_pool((2, 2))),
    "lp_pool": images(fnn.lp_pool((2, 2), 3.0)),
    "global_avg_pool": images(fnn.global_avg_pool(2)),
    "adaptive_avg_pool": images(fnn.adaptive_avg_pool((5, 5))),
    "upsample": images(fnn.upsample((2, 2))),
    "upsample cubic": images(fnn.upsample((2, 2), "cubic")),
    "pixel_shuffle": images(fnn.pixel_shuffle(2)),
    "batch_norm": images(fnn.batch_norm()),
    "layer_norm": rows(fnn.layer_norm()),
    "rms_norm": rows(fnn.rms_norm()),
    "group_norm": images(fnn.group_norm(8, spatial_axes=2)),
    "instance_norm": images(fnn.instance_norm(spatial_axes=2)),
    "dropout": rows(fnn.dropout(0.1)),
    "spatial_dropout": images(fnn.spatial_dropout(0.1, spatial_axes=2)),
    "drop_path": images(fnn.drop_path(0.1, 4)),
    "alpha_dropout": rows(fnn.alpha_dropout(0.1)),
    "gaussian_noise": rows(fnn.gaussian_noise(0.1)),
    "prelu": images(fnn.prelu()),
    "positional_encoding": series(fnn.positional_encoding()),
    "attention": (fnn.attention(512, 8), *shapes((8, 512, 512))),
    "attention causal, rotary": (
        fnn.attention(512, 8, causal=True, rotary=1e4), *shapes((8, 512, 512)),
    ),
    "attention of T 4096": (fnn.attention(512, 8, causal=True), *shapes((2, 4096, 512))),
    "transformer_block": (fnn.transformer_block(512, 8, causal=True), *shapes((8, 512, 512))),
    "repeat": (fnn.repeat(fnn.transformer_block(512, 8), 4), *shapes((8, 512, 512))),
    "repeat remat": (fnn.repeat(fnn.remat(fnn.transformer_block(512, 8)), 4),
                     *shapes((8, 512, 512))),
    "cast": (fnn.cast(fnn.transformer_block(512, 8), jnp.bfloat16), *shapes((8, 512, 512))),
    "moe": (fnn.moe(fnn.serial(fnn.dense(1024), jax.nn.relu, fnn.dense(256)), 8),
            *shapes((8, 256, 256))),
    "simple_rnn": series(fnn.simple_rnn(128)),
    "lstm": series(fnn.lstm(128)),
    "lstm of two layers": series(fnn.lstm(128, layers=2, dropout=0.1)),
    "gru": series(fnn.gru(128)),
    "bidirectional": series(fnn.bidirectional(fnn.cells.gru(64), fnn.cells.lstm(64))),
    "conv_lstm": (fnn.rnn(fnn.cells.conv_lstm(16, (3, 3))), *shapes((8, 10, 16, 16, 16))),
    "lru": series(fnn.lru(128, 256)),
    "ensemble": rows(fnn.ensemble(fnn.dense(512), 4)),
    "weight_norm": rows(fnn.weight_norm(fnn.dense(512))),
    "spectral_norm": rows(fnn.spectral_norm(fnn.dense(512))),
    "lora": rows(fnn.lora(fnn.dense(512), rank=8)),
    "quantize": rows(fnn.quantize(fnn.dense(512))),
}  # fmt: skip


EXAMPLES = [f"examples/{name}" for name in example_steps.NAMES]
NAMES = [*LAYERS, *EXAMPLES]


def step_of(layer):
    """(params, state), (inputs, key) -> the same, one step of gradient descent later."""

    def total(params, state, xs, key):
        y, state = layer.apply(params, state, *xs, key=key, train=True)
        leaves = [a for a in jax.tree.leaves(y) if is_floating(a)]
        return sum(jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in leaves), state

    def step(held, batch):
        (params, state), (xs, key) = held, batch
        floating = [x for x in xs if is_floating(x)]

        def of(params, floating):
            rest = iter(floating)
            return total(params, state, [next(rest) if is_floating(x) else x for x in xs], key)

        grads, state = jax.grad(of, argnums=(0, 1), has_aux=True)(params, floating)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads[0])
        return (params, state), grads[1]  # those of the inputs are wanted in a network

    return step


def compiled(name, on):
    if name in EXAMPLES:
        return fnn.dryrun(*example_steps.step_of(name.removeprefix("examples/")), on=on)
    layer, *xs = LAYERS[name]
    held = jax.eval_shape(lambda: layer.init(jax.random.key(0), *xs))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return fnn.dryrun(step_of(layer), held, (tuple(xs), key), on=on)


def row(found):
    """What a report says in one line of the table."""
    kinds = dict(found.operations)
    loops, copies = kinds.pop("while", 0), kinds.pop("copy", 0)
    calls = {name: n for name, n in kinds.items() if _is_call(name)}
    for name in calls:
        kinds.pop(name)
    return {
        "temporaries": found.memory.temporaries, "arguments": found.memory.arguments,
        "loops": loops, "copies": copies, "others": sum(kinds.values()), "calls": calls,
        "largest": [list(each) for each in found.largest[:1]],
    }  # fmt: skip


def _is_call(name):
    return name.startswith("__") or any(c.isupper() for c in name) or "cu" in name


def table(title, names, results):
    """The rows of some programs, from {program: {machine: row or error}}."""
    head = [title]
    for machine in MACHINES.values():
        head += [f"{machine}: temporaries", "kernels", "copies", "loops", "calls"]
    cells = [head]
    for name in names:
        line, by_machine = [name.removeprefix("examples/")], results.get(name, {})
        for on in MACHINES:
            one = by_machine.get(on, {"failed": "not run"})
            if "failed" in one:
                line += [f"failed: {one['failed']}", "", "", "", ""]
                continue
            calls = ", ".join(f"{n} {call}" for call, n in one["calls"].items())
            line += [f"{one['temporaries'] / 2**20:.1f} MiB", str(one["others"]),
                     str(one["copies"]), str(one["loops"]), calls]  # fmt: skip
        cells.append(line)
    return report.aligned(cells)


def section(results):
    """The part of the report."""
    text = (
        "Each layer forward and backward, in training mode and float32, and the training step of "
        "each example, by XLA's compilers on a machine with neither. Kernels are the instructions "
        "of the program, a fusion being one; copies, those that only copy or transpose.\n"
    )
    return "\n".join(["## compiled: what layers and examples become on other devices\n", text,
                      *table("layer", LAYERS, results), "",
                      *table("step of an example", EXAMPLES, results)])  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="programs whose names start so")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    path = args.out / "results" / "compiled.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        name, on, one = json.loads(line)
        results.setdefault(name, {})[on] = one
    for name in NAMES:
        if args.only and not name.startswith(tuple(args.only)):
            continue
        for on in MACHINES:
            try:
                one = row(compiled(name, on))
            except Exception as error:
                one = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            results.setdefault(name, {})[on] = one
            print(name, on, one, flush=True)
            write(results, path)
    report.put(section(results), args.out / "RESULTS.md")


def write(results, path):
    """A line for each program and machine, in their order."""
    lines = [
        json.dumps([name, on, one])
        for name in sorted(results, key=NAMES.index)
        for on, one in results[name].items()
    ]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
