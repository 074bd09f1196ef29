"""Many whole training runs of one network, at other learning rates and from other seeds.

A timed call makes all runs of the case. A run has a rate of its own; its seed gives the weights
that it starts from and the order of its batches. The data are noise, in memory or on the device
already. What fnn times includes drawing that order, which the others are given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.networks import (
    Case,
    arrays,
    batches,
    cross_entropy,
    dense_net,
    fnn_network,
    forward,
)
from benchmarks.peers import equinox_network, torch_network, torch_place
from benchmarks.task import Call, Contender, Goal, Task

SEEDS = 8
LONG = 4096  # seeds: a sweep that is worth its trials


@dataclass(frozen=True)
class Runs:
    """The runs of one case: every rate with every seed, the seeds of one rate in a row."""

    case: Case
    rates: int
    steps: int = 100

    @property
    def count(self) -> int:
        return self.rates * SEEDS


def rates(runs: Runs) -> Any:
    import numpy as np

    return np.geomspace(1e-4, 3e-3, runs.rates, dtype=np.float32)


def data(runs: Runs, channels_first: bool = False) -> tuple[Any, Any]:
    """Examples [N, ...] and their labels, in NumPy."""
    import numpy as np

    images, labels = zip(*batches(runs.case, np.asarray, channels_first), strict=True)
    return np.concatenate(images), np.concatenate(labels).astype("int32")


@functools.cache
def seeds(runs: Runs) -> tuple[Any, Any]:
    """In NumPy, what a seed comes to: scale [SEEDS], and rows of the data [SEEDS, steps, B].

    They are fnn's own, found by a run whose step only notes what is in its batch.
    """
    import jax
    import numpy as np

    import fnn

    def noted(train_state: Any, batch: Any) -> Any:
        return train_state._replace(step=train_state.step + 1), {"rows": batch}

    numbered = np.arange(len(data(runs)[1]), dtype=np.int32)

    def one(key: Any) -> Any:
        start = fnn.train.init(fnn.dense(1), fnn.optim.sgd(0.0), key, (1, 1))
        batch = runs.case.shape[0]
        _, history = fnn.train.run(noted, start, numbered, steps=runs.steps, batch_size=batch)
        return scale(key), history["train"]["rows"]

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys()))


def keys() -> Any:
    import jax

    return jax.random.split(jax.random.key(0), SEEDS)


def scale(key: Any) -> Any:
    """What a seed multiplies the first kernels by, in every library and layout alike."""
    import jax

    return jax.random.uniform(key, minval=0.5, maxval=1.5)


# --- fnn


def fnn_run(runs: Runs) -> Callable[..., Any]:
    """(key, rate) -> loss of the last step, as it is given to `fnn.search.sweep`."""
    import jax
    import jax.numpy as jnp

    import fnn

    (net, first), batch_size = fnn_network(runs.case), runs.case.shape[0]
    loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)
    examples = jax.tree.map(jnp.asarray, data(runs))

    def run_fn(key: Any, rate: Any) -> Any:
        tx = fnn.optim.adam(rate)
        start = fnn.train.init(net, tx, key, runs.case.shape)
        params = jax.tree.map(lambda a: a * scale(key), first)
        start = start._replace(params=params, opt_state=tx.init(params))
        step = fnn.train.step(loss_fn, tx)
        _, history = fnn.train.run(step, start, examples, steps=runs.steps, batch_size=batch_size)
        return history["train"]["loss"][-1]

    return run_fn


def fnn_lanes(runs: Runs) -> tuple[Any, Any]:
    """The key and the rate of every run."""
    import numpy as np

    return keys()[np.arange(runs.count) % SEEDS], np.repeat(rates(runs), SEEDS)


def fnn(runs: Runs) -> Call:
    """as fnn.search.sweep makes them, in the way that a long sweep chooses (in the first call)"""
    import jax
    import numpy as np

    from fnn.search.executor import Executor
    from fnn.search.store import Group, Store

    def executor(keys: Any, strategy: str) -> Any:
        rows = np.arange(runs.rates * len(keys)).reshape(runs.rates, -1)
        group = Group({}, {}, {"rate": rates(runs)}, keys, rows)
        return Executor(fnn_run(runs), group, strategy, None, 2**30, Store(None, group))

    def chosen() -> str:
        long = executor(jax.random.split(jax.random.key(0), LONG), "auto")
        for _ in long.chunks():
            if long.strategy != "auto":
                break
        return long.strategy

    these = functools.cache(lambda: executor(keys(), chosen()))

    def call() -> Any:
        results = np.empty(runs.count, np.float32)
        for rows, result in these().chunks():
            results[rows] = result
        return results

    return call


def fnn_vmap(runs: Runs) -> Call:
    """jit of fnn.train.run under a vmap over seeds under one over rates: all side by side"""
    import jax

    run_fn, inputs = fnn_run(runs), (keys(), rates(runs))
    train = jax.jit(jax.vmap(jax.vmap(run_fn, (0, None)), (None, 0)))
    return lambda: train(*inputs).reshape(-1)


def fnn_flat(runs: Runs) -> Call:
    """jit(vmap) of fnn.train.run over the pairs of rate and seed: each draws its own order"""
    import jax

    train, lanes = jax.jit(jax.vmap(fnn_run(runs))), fnn_lanes(runs)
    return lambda: train(*lanes)


def fnn_map(runs: Runs) -> Call:
    """jit(lax.map) of fnn.train.run: one after the other, in one program"""
    import jax

    one, lanes = fnn_run(runs), fnn_lanes(runs)
    train = jax.jit(lambda *lanes: jax.lax.map(lambda lane: one(*lane), lanes))
    return lambda: train(*lanes)


def fnn_loop(runs: Runs) -> Call:
    """jit of fnn.train.run, one call a run"""
    import jax

    train, lanes = jax.jit(fnn_run(runs)), list(zip(*fnn_lanes(runs), strict=True))
    return lambda: [train(*lane) for lane in lanes]


# --- the others


def optax_step(case: Case) -> Callable[..., Any]:
    """(params, opt_state, rate, batch) -> (params, opt_state, loss); the rate may be traced."""
    import jax
    import optax

    def step(params: Any, opt_state: Any, rate: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(
            lambda params: cross_entropy(forward(case, params, batch[0]), batch[1])
        )(params)
        updates, opt_state = optax.adam(rate).update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


def one_by_one(runs: Runs) -> Iterator[tuple[float, float, Any]]:
    """(rate, scale, rows [steps, B]) of each run."""
    scales, rows = seeds(runs)
    for rate in rates(runs).tolist():
        yield from ((rate, *of_seed) for of_seed in zip(scales.tolist(), rows, strict=True))


def optax_loop(runs: Runs) -> Call:
    """by hand: a Python loop over runs and steps; the step with optax jitted, its rate traced"""
    import jax
    import optax

    step, base = jax.jit(optax_step(runs.case)), arrays(runs.case)
    (x, y), todo = data(runs), list(one_by_one(runs))

    def train(rate: float, scale: float, rows: Any) -> Any:
        params, loss = jax.tree.map(lambda a: a * scale, base), None
        opt_state = optax.adam(rate).init(params)
        for some in rows:
            params, opt_state, loss = step(params, opt_state, rate, (x[some], y[some]))
        return loss

    return lambda: [train(*run) for run in todo]


def optax_lanes(runs: Runs) -> tuple[Any, Any, Any]:
    """Rate, scale and rows of every run."""
    import numpy as np

    scales, rows = seeds(runs)
    of_seed = np.tile(np.arange(SEEDS), runs.rates)
    return np.repeat(rates(runs), SEEDS), scales[of_seed], rows[of_seed]


def one_run(runs: Runs) -> tuple[Any, list[Any]]:
    """By hand, a jitted function of a whole run, and what it takes for each of them."""
    import jax
    import jax.numpy as jnp
    import optax

    step, base = optax_step(runs.case), arrays(runs.case)
    x, y = jax.tree.map(jnp.asarray, data(runs))

    @jax.jit
    def train(rate: Any, scale: Any, rows: Any) -> Any:
        def body(carry: Any, rows: Any) -> Any:
            params, opt_state, loss = step(*carry, rate, (x[rows], y[rows]))
            return (params, opt_state), loss

        params = jax.tree.map(lambda a: a * scale, base)
        return jax.lax.scan(body, (params, optax.adam(rate).init(params)), rows)[1][-1]

    return train, list(zip(*map(jnp.asarray, optax_lanes(runs)), strict=True))


def compiled(runs: Runs) -> Call:
    """by hand: lax.scan over the steps with optax, jitted, one call a run"""
    train, lanes = one_run(runs)
    return lambda: [train(*lane) for lane in lanes]


def threads(runs: Runs) -> Call:
    """by hand: the same, called from as many threads as there are cores"""
    import os
    from concurrent.futures import ThreadPoolExecutor

    train, lanes = one_run(runs)
    pool = ThreadPoolExecutor(os.cpu_count())

    def make(lane: Any) -> Any:
        return train(*lane).block_until_ready()

    return lambda: list(pool.map(make, lanes))


def equinox(runs: Runs) -> Call:
    """equinox: eqx.filter_vmap over seeds under one over rates, lax.scan and optax, filter_jit"""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    params, static = eqx.partition(equinox_network(runs.case), eqx.is_array)
    x, y = jax.tree.map(jnp.asarray, data(runs, channels_first=True))

    @eqx.filter_value_and_grad
    def loss_of(model: Any, rows: Any) -> Any:
        return cross_entropy(jax.vmap(model)(x[rows]), y[rows])

    @eqx.filter_jit
    @functools.partial(eqx.filter_vmap, in_axes=(None, 0, None))
    @functools.partial(eqx.filter_vmap, in_axes=(eqx.if_array(0), None, 0))
    def train(model: Any, rate: Any, rows: Any) -> Any:
        params, static = eqx.partition(model, eqx.is_array)
        tx = optax.adam(rate)

        def body(carry: Any, rows: Any) -> Any:
            params, opt_state = carry
            loss, grads = loss_of(eqx.combine(params, static), rows)
            updates, opt_state = tx.update(grads, opt_state)
            return (eqx.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(body, (params, tx.init(params)), rows)[1][-1]

    rate, scales, rows = map(jnp.asarray, (rates(runs), *seeds(runs)))
    stacked = jax.vmap(lambda scale: jax.tree.map(lambda a: a * scale, params))(scales)
    models = eqx.combine(stacked, static)
    return lambda: train(models, rate, rows).reshape(-1)


def torch_parts(runs: Runs) -> tuple[Any, str]:
    """The model before it is scaled, and the device."""
    import torch

    place = torch_place()
    torch.set_num_threads(1)  # operations this small are slower shared, 8 x beside another process
    return torch_network(runs.case).to(place), place


def torch(runs: Runs) -> Call:
    """PyTorch, eager: a Python loop over runs and steps, fused Adam; one thread"""
    import copy

    import torch

    base, place = torch_parts(runs)
    loss_fn, todo = torch.nn.CrossEntropyLoss(), []
    x, y = (torch.tensor(a, device=place) for a in data(runs, channels_first=True))
    y = y.long()
    for rate, scale, rows in one_by_one(runs):
        todo.append((rate, scale, torch.tensor(rows, device=place).long()))

    def train(rate: float, scale: float, rows: Any) -> Any:
        model = copy.deepcopy(base)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
        loss = torch.zeros(())
        for some in rows:
            optimizer.zero_grad()
            loss = loss_fn(model(x[some]), y[some])
            loss.backward()
            optimizer.step()
        return loss.detach()

    return lambda: [train(*run) for run in todo]


def torch_func(runs: Runs) -> Call:
    """PyTorch: torch.func.vmap of grad over stacked modules, Adam by hand on them; one thread"""
    import torch
    from torch.func import functional_call, grad_and_value, vmap

    model, place = torch_parts(runs)

    def put(array: Any) -> Any:
        return torch.tensor(array, device=place)

    x, y = map(put, data(runs, channels_first=True))
    rate, scales, rows = map(put, optax_lanes(runs))
    batches = list(rows.long().swapaxes(0, 1))  # of each step, [N, B]
    y = y.long()

    def per_run(a: Any, like: Any) -> Any:
        return a.reshape(-1, *[1] * (like.ndim - 1))

    def loss_fn(params: Any, x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(functional_call(model, params, (x,)), y)

    each, (b1, b2) = vmap(grad_and_value(loss_fn)), (0.9, 0.999)
    base = {name: p.detach() for name, p in model.named_parameters()}

    @torch.no_grad()
    def call() -> Any:
        params = {name: p * per_run(scales, p[None]) for name, p in base.items()}
        mu = {name: torch.zeros_like(p) for name, p in params.items()}
        nu = {name: torch.zeros_like(p) for name, p in params.items()}
        loss = None
        for count, rows in enumerate(batches, 1):
            grads, loss = each(params, x[rows], y[rows])
            for name, g in grads.items():
                m, v = mu[name].lerp_(g, 1 - b1), nu[name].mul_(b2).addcmul_(g, g, value=1 - b2)
                root = (v / (1 - b2**count)).sqrt_().add_(1e-8)
                params[name] -= per_run(rate / (1 - b1**count), g) * m / root
        return loss

    return call


# --- the task


def losses(contender: Contender, runs: Runs) -> list[float]:
    """Of the last step of every run, in the second call: each starts over."""
    call = contender(runs)
    call()
    return [float(loss) for loss in call()]


IN = (64, 64)  # a batch of 64, of as many numbers as a digit has
CNN = Case(
    (64, 8, 8, 1),
    (("conv", 8), ("relu", None), ("pool", 2), ("flatten", None), ("dense", 10)),
)
CASES = {
    "16": Runs(Case(IN, dense_net(16, 10)), rates=8),
    "64": Runs(Case(IN, dense_net(64, 10)), rates=8),
    "256": Runs(Case(IN, dense_net(256, 10)), rates=2),
    "cnn": Runs(CNN, rates=2),
}

STRATEGIES = ("fnn_vmap", "fnn_map", "fnn_loop")
TASK = Task(
    title="Whole training runs of 100 steps at other rates and seeds: 64 of a dense network by its "
    "width, 16 of the widest, and 16 of a small CNN",
    cases=CASES,
    contenders={
        "optax_loop": optax_loop, "fnn": fnn, "fnn_vmap": fnn_vmap, "fnn_flat": fnn_flat,
        "fnn_map": fnn_map, "fnn_loop": fnn_loop, "compiled": compiled, "threads": threads,
        "equinox": equinox, "torch": torch, "torch_func": torch_func,
    },
    goals=(
        Goal(
            "16 wide: at least 5 x the runs per second of a Python loop with optax",
            "16", 0.2, ("optax_loop",),
        ),
        *(
            Goal(
                f"{name}: sweep's choice takes at most 1.05 x the best of three strategies",
                name, 1.05, STRATEGIES,
            )
            for name in CASES
        ),
    ),
    check=losses,
    rounds=5,
    baseline="optax_loop",
)  # fmt: skip
