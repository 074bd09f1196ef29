"""The networks of the examples, exported: `python -m tests.export.networks` prints them as a table.

Each is loaded by its own load.py in a process without fnn, and compared with the jitted network at
three batch sizes.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from tests.gallery.support import example

IMAGE, DIGIT = ("batch", 28, 28, 1), ("batch", 8, 8, 1)
SIZES = 1, 2, 5


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def edges(of="edges"):
    return {"from": ints(of), "to": ints(of), "weight": (of,)}


def gpt(e):
    steps = {"write": (e.writer, ints("batch", "time"))}
    return e.net, ints("batch", "time"), dict(steps=steps, constraints=[f"time <= {e.WINDOW}"])


def char_lm(e):
    return e.reader, ints("batch", "time"), dict(steps={"write": (e.writer, ints("batch"))})


def cartpole(e):
    policy = e.policy_of(memory=True)
    return fnn.rnn(policy), ("batch", "time", 4), dict(steps={"act": (policy, ("batch", 4))})


def adding(name):
    def network(e):
        return fnn.serial(e.LAYERS[name], fnn.dense(1)), ("batch", "time", 2)

    return network


def dryrun(e):
    net = e.transformer(features=64, heads=4, hidden=128, depth=2)
    return net, [ints("batch", "time"), ints("batch", "time")]


# By the example's name and what it is of it: (network, shapes), and options of `save`.
NETWORKS = {
    "autoencoder": lambda e: (e.autoencoder, IMAGE),
    "autoencoder: frozen": lambda e: (e.frozen, IMAGE),
    "binary_table": lambda e: (e.net, ("batch", 30)),
    "cartpole": cartpole,
    "char_lm": char_lm,
    "cnn_sgd": lambda e: (e.net, IMAGE),
    "diffusion": lambda e: (e.net, [("batch", 14, 14, 1), ("batch",), ints("batch")]),
    "distillation": lambda e: (e.teacher, IMAGE),
    "distillation: student": lambda e: (e.student, IMAGE),
    "distributed": lambda e: (e.net, IMAGE),
    "double_descent": lambda e: (e.network(16), DIGIT),
    "dryrun": dryrun,
    "functions": lambda e: (e.formula, ("batch", 1)),
    "gan": lambda e: (e.generator, [("batch", e.LATENTS), ints("batch")]),
    "gan: critic": lambda e: (e.critic, [IMAGE, ints("batch")]),
    "gan: reader": lambda e: (e.reader, IMAGE),
    "gpt": gpt,
    "gradients": lambda e: (
        e.layers(jnp.tanh, 1.0, norm=True, residual=True),
        ("batch", e.FEATURES),
    ),
    "graph": lambda e: (e.net, [("nodes", 64), edges()]),
    "log_elsewhere": lambda e: (e.net, DIGIT),
    "long_run": lambda e: (e.net, DIGIT),
    "lstm_sequences": adding("LSTM"),
    "lstm_sequences: GRU": adding("GRU"),
    "lstm_sequences: simple RNN": adding("simple RNN"),
    "maml": lambda e: (e.net, ("batch", 1)),
    "meta_learning_rate": lambda e: (e.net, DIGIT),
    "mlp_digits": lambda e: (e.net, IMAGE),
    "mnist_cnn": lambda e: (e.net, IMAGE),
    "monitoring": lambda e: (e.net, IMAGE),
    "optimizers": lambda e: (e.net, IMAGE),
    "overfitting": lambda e: (e.network(0.5), IMAGE),
    "resnet_cifar": lambda e: (e.resnet18(10, 16), IMAGE),
    "sweep_learning_rate": lambda e: (e.net, DIGIT),
    "vae": lambda e: (e.encoder, ("batch", 784)),
    "vae: decoder": lambda e: (e.decoder, ("batch", e.LATENTS)),
    "vit": lambda e: (e.net, IMAGE),
    "xor": lambda e: (e.network(4), ("batch", 2)),
}


def network(name):
    """(net, shapes, options of `save`) of an example."""
    net, shapes, *options = NETWORKS[name](example(name.partition(":")[0]))
    return net, shapes, *(options or [{}])


def with_sizes(shapes, sizes):
    """Random inputs whose named sizes are these; whole numbers are 0 or 1."""
    rng = np.random.default_rng(0)

    def array(x):
        shape, dtype = (x, jnp.float32) if isinstance(x, tuple) else (x.shape, x.dtype)
        shape = tuple(sizes.get(size, size) for size in shape)
        if dtype == jnp.int32:
            return rng.integers(0, 2, shape, np.int32)
        return rng.normal(size=shape).astype(np.float32)

    xs = shapes if isinstance(shapes, list) else [shapes]
    return jax.tree.map(array, xs, is_leaf=lambda x: isinstance(x, tuple))


def initialized(net, shapes):
    """Params and state that are not those of a start: zeros hide much."""
    params, state = net.init(jax.random.key(0), *with_sizes(shapes, dict.fromkeys(NAMES, 2)))
    rng = np.random.default_rng(1)

    def moved(a):
        a = np.asarray(a)
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        noise = rng.uniform(0, 0.1, a.shape)
        moved = a * (1 + noise) if a.ndim > 1 and np.any(a) else a + noise
        return jnp.asarray(moved, a.dtype)

    return jax.tree.map(moved, params), jax.tree.map(moved, state)


NAMES = ("batch", "time", "nodes", "edges")


def sizes_of(n):
    return {"batch": n, "time": 2 + n, "nodes": 2 + n, "edges": 3 * n}


CHILD = """
import sys
sys.modules["fnn"] = None
import importlib.util, json, pathlib, pickle
import jax, numpy as np
out = {}
for folder in map(pathlib.Path, sys.argv[1:]):
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded, same, apart = module.load(), True, 0.0
    for program, args, wanted in pickle.loads((folder.parent / "cases.pkl").read_bytes()):
        got = jax.tree.leaves(getattr(loaded, program)(*args))
        for a, b in zip(got, jax.tree.leaves(wanted), strict=True):
            a = np.asarray(a)
            same = same and a.dtype == b.dtype and a.tobytes() == b.tobytes()
            apart = max(apart, float(np.abs(a.astype(float) - b.astype(float)).max(initial=0)))
    out[folder.parent.name] = {"same": same, "apart": apart}
print(json.dumps(out))
"""


def exported(folder, net, shapes, options):
    """Save an artifact, and beside it inputs and outputs of the jitted network."""
    import pickle

    params, state = initialized(net, shapes)
    fnn.export.save(folder / "artifact", net, params, state, shapes, **options)
    cases = []
    run = jax.jit(lambda p, s, *xs: net.apply(p, s, *xs)[0])
    for n in SIZES:
        xs = with_sizes(shapes, sizes_of(n))
        cases.append(("apply", tuple(xs), run(params, state, *xs)))
    for name, (layer, of_step) in options.get("steps", {}).items():
        xs = with_sizes(of_step, sizes_of(2))
        if layer.carry:
            carry = jax.jit(layer.carry)(params, *xs)
            step = jax.jit(lambda p, c, *xs, layer=layer: layer(p, c, *xs))
        else:
            carry = layer.init(jax.random.key(0), *xs)[1]

            def step(p, c, *xs, layer=layer):
                y, c = jax.jit(layer.apply)(p, c, *xs)
                return c, y

        cases.append((f"{name}.first", tuple(xs), carry))
        for _ in range(2):
            after, y = step(params, carry, *xs)
            cases.append((name, (carry, *xs), (after, y)))
            carry = after
    cases = jax.tree.map(np.asarray, [case[1:] for case in cases]), [case[0] for case in cases]
    cases = [(name, *rest) for rest, name in zip(*cases, strict=True)]
    (folder / "cases.pkl").write_bytes(pickle.dumps(cases))


def in_a_fresh_process(folders):
    """Whether the outputs of each artifact are the same, in a process without fnn."""
    paths = [str(folder / "artifact") for folder in folders]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def onnx_table(names):
    """What becomes of each network as ONNX."""
    root = pathlib.Path(tempfile.mkdtemp())
    for i, name in enumerate(names):
        net, shapes, options = network(name)
        params, state = initialized(net, shapes)
        constraints = options.get("constraints", ())
        try:
            path = root / f"{i}.onnx"
            fnn.export.onnx(path, net, params, state, shapes, constraints=constraints)
            session = onnx_session(path)
            found = f"{apart_in_onnx(session, net, params, state, shapes):.1e}"
            print(f"| {name:28} | {path.stat().st_size:11,} | {found} |", flush=True)
        except fnn.FnnError as error:
            print(f"| {name:28} | {error} |", flush=True)


def onnx_session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def apart_in_onnx(session, net, params, state, shapes):
    """The largest difference over batch sizes, of the largest output if that is above 1."""
    run, worst = jax.jit(lambda p, s, *xs: net.apply(p, s, *xs)[0]), 0.0
    for n in SIZES:
        xs = with_sizes(shapes, sizes_of(n))
        names = [x.name for x in session.get_inputs()]
        got = session.run(None, dict(zip(names, jax.tree.leaves(xs), strict=True)))
        for a, b in zip(got, jax.tree.leaves(run(params, state, *xs)), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            worst = max(worst, float(np.abs(a - b).max() / max(1, np.abs(b).max())))
    return worst


def main():
    if sys.argv[1:2] == ["--onnx"]:
        return onnx_table(sys.argv[2:] or list(NETWORKS))
    names = sys.argv[1:] or list(NETWORKS)
    root = pathlib.Path(tempfile.mkdtemp())
    print(f"| {'network':28} | program | params | bit-equal |")
    for name in names:
        folder = root / name.replace(": ", "-").replace(" ", "-")
        folder.mkdir()
        try:
            exported(folder, *network(name))
            found = in_a_fresh_process([folder])[folder.name]
            files = {p.name: p.stat().st_size for p in (folder / "artifact").iterdir()}
            programs = sum(size for file, size in files.items() if file.endswith(".jaxexport"))
            same = "yes" if found["same"] else f"within {found['apart']:.0e}"
            sizes = f"{programs:9,} | {files.get('params.safetensors', 0):11,}"
            print(f"| {name:28} | {sizes} | {same} |", flush=True)
        except Exception as error:
            print(f"| {name:28} | {type(error).__name__}: {str(error)[:300]}", flush=True)
            if "VERBOSE" in os.environ:
                raise


if __name__ == "__main__":
    main()
