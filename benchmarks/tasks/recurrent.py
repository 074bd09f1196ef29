"""One training step of a classifier of sequences: a recurrent layer, its last output, dense, Adam.

Each library runs its own cell in its own loop over time, from the same weights. Two differ by less
than what is checked: nnx's GRU has no bias within its reset, where the others start at zero, and
PyTorch moves two biases where the others have one.
"""

from __future__ import annotations

from typing import Any

from benchmarks import peers
from benchmarks.networks import RATE, Case, batches, cross_entropy, loop
from benchmarks.task import Call, Contender, Goal, Task

CLASSES = 10
STEPS = 3  # whose losses must agree


def of(kind: str, hidden: int, steps: int = 100, batch: int = 64) -> Case:
    return Case((batch, steps, 64), ((kind, hidden), ("dense", CLASSES)))


def sizes(case: Case) -> tuple[str, int, int]:
    """Kind of the layer, channels coming in and features going out."""
    (kind, hidden), _ = case.net
    return kind, case.shape[-1], hidden


def weights(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the recurrent layer and of the dense one; in NumPy, as fnn names and lays them out."""
    import numpy as np

    kind, c, n = sizes(case)
    random, gates = np.random.default_rng(1), {"lstm": 4, "gru": 3}[kind]

    def draw(rows: int, columns: int) -> Any:
        return (random.normal(size=(rows, columns)) / np.sqrt(rows)).astype("float32")

    layer = {
        "kernel": draw(c, gates * n),
        "recurrent_kernel": draw(n, gates * n),
        "bias": np.zeros(gates * n, "float32"),
    }
    if kind == "lstm":
        layer["bias"][n : 2 * n] = 1  # of the forget gate
    else:
        layer["recurrent_bias"] = np.zeros(n, "float32")
    return layer, {"kernel": draw(n, CLASSES), "bias": np.zeros(CLASSES, "float32")}


def on_device(case: Case) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    return jax.tree.map(jnp.asarray, weights(case))


def fnn(case: Case) -> Call:
    """fnn.lstm or fnn.gru with return_sequence=False, and train.step"""
    import jax
    import jax.numpy as jnp

    import fnn

    kind, _, n = sizes(case)
    layer = {"lstm": fnn.lstm, "gru": fnn.gru}[kind](n, return_sequence=False)
    net, tx = fnn.serial(rnn=layer, head=fnn.dense(CLASSES)), fnn.optim.adam(RATE)
    start = fnn.train.init(net, tx, jax.random.key(0), case.shape)
    params = dict(zip(("rnn", "head"), on_device(case), strict=True))
    start = start._replace(params=params, opt_state=tx.init(params))
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
    call = loop(step, start, batches(case, jnp.asarray))
    return lambda: call()["loss"]


def floor(case: Case) -> Call:
    """by hand: the textbook's step in lax.scan, one product with x and one with h; optax"""
    import jax
    import jax.numpy as jnp
    import optax

    kind, _, n = sizes(case)
    sigmoid = jax.nn.sigmoid

    def lstm(p: Any, carry: Any, x: Any) -> Any:
        c, h = carry
        i, f, g, o = jnp.split(x @ p["kernel"] + h @ p["recurrent_kernel"] + p["bias"], 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return (c, sigmoid(o) * jnp.tanh(c)), None

    def gru(p: Any, h: Any, x: Any) -> Any:
        xr, xz, xn = jnp.split(x @ p["kernel"] + p["bias"], 3, -1)
        hr, hz, hn = jnp.split(h @ p["recurrent_kernel"], 3, -1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        new = jnp.tanh(xn + r * (hn + p["recurrent_bias"]))
        return (1 - z) * new + z * h, None

    def loss(params: Any, batch: Any) -> Any:
        layer, head = params
        xs = jnp.swapaxes(batch[0], 0, 1)  # [T, B, C]
        h = jnp.zeros((xs.shape[1], n))
        if kind == "lstm":
            (_, h), _ = jax.lax.scan(lambda carry, x: lstm(layer, carry, x), (h, h), xs)
        else:
            h, _ = jax.lax.scan(lambda carry, x: gru(layer, carry, x), h, xs)
        return cross_entropy(h @ head["kernel"] + head["bias"], batch[1])

    tx = optax.adam(RATE)

    @jax.jit
    def step(train_state: Any, batch: Any) -> Any:
        params, opt_state = train_state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    params = on_device(case)
    return loop(step, (params, tx.init(params)), batches(case, jnp.asarray))


def matmul(case: Case) -> Call:
    """a limit: the scan with no more than the products with x and h and their gradients"""
    import jax
    import jax.numpy as jnp

    _, _, n = sizes(case)

    def final(layer: Any, x: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            z = x @ layer["kernel"] + h @ layer["recurrent_kernel"]
            return sum(jnp.split(z / 4, z.shape[-1] // n, -1)), None

        xs = jnp.swapaxes(x, 0, 1)  # [T, B, C]
        return jax.lax.scan(step, jnp.zeros((xs.shape[1], n)), xs)[0].sum()

    step = jax.jit(jax.value_and_grad(final))
    layer, data = on_device(case)[0], batches(case, jnp.asarray)
    return loop(lambda grads, batch: step(layer, batch[0])[::-1], None, data)


def linen(case: Case) -> Call:
    """flax.linen: nn.RNN over nn.OptimizedLSTMCell or nn.GRUCell"""
    import flax.linen as nn
    import jax.numpy as jnp

    kind, _, n = sizes(case)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            cell = (nn.OptimizedLSTMCell if kind == "lstm" else nn.GRUCell)(n, name="cell")
            carry, _ = nn.RNN(cell, return_carry=True)(x)
            return nn.Dense(CLASSES, name="head")(carry[1] if kind == "lstm" else carry)

    layer, head = on_device(case)
    gates = "ifgo" if kind == "lstm" else "rzn"
    cell = {
        side + gate: {"kernel": kernel}
        for side, name in (("i", "kernel"), ("h", "recurrent_kernel"))
        for gate, kernel in zip(gates, jnp.split(layer[name], len(gates), -1), strict=True)
    }
    biased = "h" if kind == "lstm" else "i"
    for gate, bias in zip(gates, jnp.split(layer["bias"], len(gates)), strict=True):
        cell[biased + gate]["bias"] = bias
    if kind == "gru":
        cell["hn"]["bias"] = layer["recurrent_bias"]
    params = {"cell": cell, "head": head}
    return peers.linen_training(Net(), params, batches(case, jnp.asarray))


def nnx(case: Case) -> Call:
    """flax.nnx: nnx.RNN over nnx.OptimizedLSTMCell or nnx.GRUCell, nnx.jit"""
    import itertools

    import jax.numpy as jnp
    from flax import nnx

    kind, c, n = sizes(case)

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            cell = (nnx.OptimizedLSTMCell if kind == "lstm" else nnx.GRUCell)(c, n, rngs=rngs)
            self.rnn = nnx.RNN(cell, return_carry=True)
            self.head = nnx.Linear(n, CLASSES, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            carry, _ = self.rnn(x)
            return self.head(carry[1] if kind == "lstm" else carry)

    net, (layer, head) = Net(nnx.Rngs(0)), on_device(case)
    cell: Any = net.rnn.cell
    cell.dense_i.kernel[...] = layer["kernel"]
    cell.dense_h.kernel[...] = layer["recurrent_kernel"]
    biased = cell.dense_h if kind == "lstm" else cell.dense_i
    biased.bias[...] = layer["bias"]
    net.head.kernel[...], net.head.bias = head["kernel"], nnx.Param(head["bias"])
    model, optimizer, step = peers.nnx_training(net)
    compiled, turns = nnx.jit(step), itertools.cycle(batches(case, jnp.asarray))
    return lambda: compiled(model, optimizer, next(turns))


def equinox(case: Case) -> Call:
    """equinox: eqx.nn.LSTMCell or eqx.nn.GRUCell in lax.scan, vmap over examples"""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    kind, c, n = sizes(case)
    key = jax.random.key(0)

    class Net(eqx.Module):
        cell: Any
        head: eqx.nn.Linear

        def __call__(self, xs: Any, key: Any) -> Any:  # [T, C]
            h = jnp.zeros(n)
            start = (h, h) if kind == "lstm" else h
            carry, _ = jax.lax.scan(lambda carry, x: (self.cell(x, carry), None), start, xs)
            return self.head(carry[0] if kind == "lstm" else carry)

    make = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[kind]
    layer, head = on_device(case)
    net = Net(make(c, n, key=key), eqx.nn.Linear(n, CLASSES, key=key))
    values = [layer["kernel"].T, layer["recurrent_kernel"].T, layer["bias"]]
    values += [head["kernel"].T, head["bias"]]
    values += [layer["recurrent_bias"]] if kind == "gru" else []

    def places(net: Net) -> list[Any]:
        cell = net.cell
        arrays = [cell.weight_ih, cell.weight_hh, cell.bias, net.head.weight, net.head.bias]
        return arrays + ([cell.bias_n] if kind == "gru" else [])

    net = eqx.tree_at(places, net, values)
    return peers.equinox_training(net, batches(case, jnp.asarray))


def haiku(case: Case) -> Call:
    """haiku: hk.dynamic_unroll; hk.GRU resets before the product, so it is not checked"""
    import haiku as hk
    import jax.numpy as jnp

    kind, _, n = sizes(case)

    def forward(x: Any) -> Any:
        core = (hk.LSTM if kind == "lstm" else hk.GRU)(n, name="core")
        start = core.initial_state(x.shape[0])
        _, state = hk.dynamic_unroll(core, x, start, time_major=False)
        return hk.Linear(CLASSES, name="head")(state.hidden if kind == "lstm" else state)

    layer, head = on_device(case)
    if kind == "lstm":  # gates i, g, f, o, and one is added to f
        w = jnp.concatenate([layer["kernel"], layer["recurrent_kernel"]])
        w, b = (
            jnp.concatenate([i, g, f, o], -1)
            for i, f, g, o in (jnp.split(a, 4, -1) for a in (w, layer["bias"]))
        )
        core = {"core/linear": {"w": w, "b": b.at[2 * n : 3 * n].add(-1)}}
    else:
        entries = {"w_i": "kernel", "w_h": "recurrent_kernel", "b": "bias"}
        core = {"core": {entry: layer[name] for entry, name in entries.items()}}
    params = core | {"head": {"w": head["kernel"], "b": head["bias"]}}
    return peers.haiku_training(hk.transform(forward), params, batches(case, jnp.asarray))


def torch(case: Case) -> Call:
    """PyTorch, eager: nn.LSTM or nn.GRU, batch_first, and fused Adam"""
    import torch
    from torch import nn

    kind, c, n = sizes(case)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = (nn.LSTM if kind == "lstm" else nn.GRU)(c, n, batch_first=True)
            self.head = nn.Linear(n, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.head(self.rnn(x)[0][:, -1])

    layer, head = weights(case)
    second = 0 * layer["bias"]
    if kind == "gru":
        second[2 * n :] = layer["recurrent_bias"]
    values = {
        "rnn.weight_ih_l0": layer["kernel"].T,
        "rnn.weight_hh_l0": layer["recurrent_kernel"].T,
        "rnn.bias_ih_l0": layer["bias"],
        "rnn.bias_hh_l0": second,
        "head.weight": head["kernel"].T,
        "head.bias": head["bias"],
    }
    net = Net()
    net.load_state_dict({name: torch.tensor(a) for name, a in values.items()})
    return peers.torch_training(net, case)


def losses(contender: Contender, case: Case) -> list[float] | None:
    """Of the first steps, where the network is the same."""
    kind, _, _ = sizes(case)
    if contender is matmul or (contender is haiku and kind == "gru"):
        return None
    call = contender(case)
    return [float(call()) for _ in range(STEPS)]


CASES = {
    "lstm 128": of("lstm", 128),
    "gru 128": of("gru", 128),
    "lstm 512": of("lstm", 512),
    "gru 512": of("gru", 512),
    "lstm T 1000": of("lstm", 128, steps=1000, batch=16),
    "gru T 1000": of("gru", 128, steps=1000, batch=16),
}
JAX_PEERS: dict[str, Contender] = {
    "linen": linen,
    "nnx": nnx,
    "equinox": equinox,
    "haiku": haiku,
}
LIMITS = {"lstm": (0.75, 1.0), "gru": (0.8, 0.6)}  # times the best JAX library, times PyTorch


PRODUCTS = (
    "its products of matrices alone, in the same scan, forward and backward, take the time in the "
    "row `matmul`, and all JAX libraries make these; only what is elementwise can be saved."
)
LONG = (
    f"{PRODUCTS} With a batch of 16 the gradient of the weights is a thin product in each step; "
    "formed once for 25 steps, in a trial of the LSTM that is not built in, all took 0.73 of it."
)


def goals(name: str) -> tuple[Goal, ...]:
    best, eager = LIMITS[sizes(CASES[name])[0]]
    peers, cause = tuple(JAX_PEERS), LONG if name.endswith("1000") else PRODUCTS
    return (
        Goal(f"{name}: at most {best:g} x the best JAX library", name, best, peers, cause=cause),
        Goal(f"{name}: at most {eager:g} x PyTorch", name, eager, ("torch",), cause=cause),
        Goal(f"{name}: compiled no later than flax.linen", name, 1.0, ("linen",), of="first_calls"),
    )


TASK = Task(
    title="One training step of a classifier of sequences: recurrent layer, last output, dense",
    cases=CASES,
    contenders={"floor": floor, "fnn": fnn, **JAX_PEERS, "torch": torch, "matmul": matmul},
    goals=tuple(goal for name in CASES for goal in goals(name)),
    check=losses,
    rounds=15,
)
