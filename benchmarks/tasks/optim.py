"""One update of Adam and its addition to the params, on many arrays: large, and tiny.

Gradients are the same at every call. `memory` moves the bytes that Adam must (it reads the params,
both moments and the gradient, and writes all but the gradient: 28 bytes a value) with one thread a
core and no arithmetic to speak of: what the memory allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peers import torch_place
from benchmarks.task import Call, Contender, Goal, Task

Case = tuple[int, int]  # how many arrays, of how many values
RATE, B1, B2, EPS = 1e-3, 0.9, 0.999, 1e-8


def arrays(case: Case, seed: int) -> dict[str, Any]:
    import numpy as np

    random = np.random.default_rng(seed)
    n, size = case
    return {f"w{i:04}": random.normal(size=size).astype("float32") for i in range(n)}


def jitted(case: Case, init: Callable, update: Callable, donate: bool = False) -> Call:
    """`update(params, state, grads) -> (params, state)`, compiled, over and over."""
    import jax
    import jax.numpy as jnp

    params, grads = (jax.tree.map(jnp.asarray, arrays(case, seed)) for seed in (0, 1))
    state = init(params)
    step = jax.jit(update, donate_argnums=(0, 1) if donate else ())

    def call() -> Any:
        nonlocal params, state
        params, state = step(params, state, grads)
        return params

    return call


def floor(case: Case) -> Call:
    """by hand: jax.jit over tree.map, a leaf's new moments and params in one function"""
    import jax
    import jax.numpy as jnp

    def init(params: Any) -> Any:
        return jnp.zeros((), jnp.int32), *(jax.tree.map(jnp.zeros_like, params) for _ in range(2))

    def update(params: Any, state: Any, grads: Any) -> Any:
        t, mu, nu = state[0] + 1, state[1], state[2]
        mu = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, mu, grads)
        nu = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g * g, nu, grads)
        c1, c2 = 1 / (1 - B1**t), 1 / (1 - B2**t)
        params = jax.tree.map(
            lambda p, m, v: p - RATE * m * c1 / (jnp.sqrt(v * c2) + EPS), params, mu, nu
        )
        return params, (t, mu, nu)

    return jitted(case, init, update)


def fnn(case: Case, donate: bool = False, flatten: bool = False) -> Call:
    """fnn.optim.adam and apply_updates"""
    import fnn

    tx = fnn.optim.adam(RATE, B1, B2, EPS)
    tx = fnn.optim.as_vector(tx) if flatten else tx

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return fnn.optim.apply_updates(params, updates), state

    return jitted(case, tx.init, update, donate)


def fnn_donated(case: Case) -> Call:
    """the same with donate_argnums: new params and state in the memory of the old"""
    return fnn(case, donate=True)


def fnn_flatten(case: Case) -> Call:
    """the same by fnn.optim.as_vector: the moments in one vector each, donated"""
    return fnn(case, donate=True, flatten=True)


def optax_flatten(case: Case) -> Call:
    """optax.flatten, donated"""
    return optax(case, donate=True, flatten=True)


def optax(case: Case, donate: bool = False, flatten: bool = False) -> Call:
    """optax.adam and apply_updates"""
    import optax

    tx = optax.adam(RATE, B1, B2, EPS)
    tx = optax.flatten(tx) if flatten else tx

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jitted(case, tx.init, update, donate)


def optax_donated(case: Case) -> Call:
    """the same with donate_argnums"""
    return optax(case, donate=True)


def torch(case: Case, **options: bool) -> Call:
    """torch.optim.Adam(foreach=True)"""
    import torch

    options, place = options or {"foreach": True}, torch_place()
    params, grads = (
        [torch.from_numpy(a).to(place) for a in arrays(case, s).values()] for s in (0, 1)
    )
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    optimizer = torch.optim.Adam(params, RATE, (B1, B2), EPS, **options)

    def call() -> Any:
        optimizer.step()
        return {f"w{i:04}": p for i, p in enumerate(params)}

    return call


def torch_fused(case: Case) -> Call:
    """torch.optim.Adam(fused=True)"""
    return torch(case, fused=True)


def memory(case: Case) -> Call:
    """adds 1 in place, on CPU by NumPy: reads and writes 14 bytes for each value of the params"""
    import os
    from concurrent.futures import ThreadPoolExecutor

    import jax
    import numpy as np

    if jax.default_backend() != "cpu":
        whole = jax.numpy.ones(case[0] * case[1] * 7 // 2)
        add = jax.jit(lambda whole: whole + 1, donate_argnums=0)

        def call_device() -> Any:
            nonlocal whole
            whole = add(whole)
            return [whole]

        return call_device

    threads = os.cpu_count() or 1
    values = case[0] * case[1] * 7 // 2 // threads
    parts = [np.ones(values, "float32") for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def call() -> Any:
        return list(pool.map(lambda part: np.add(part, 1, out=part), parts))

    return call


def sums(contender: Contender, case: Case) -> list[float] | None:
    """The params after three updates: sums of their magnitudes, array by array."""
    call = contender(case)
    for _ in range(2):
        call()
    params = call()
    if isinstance(params, list):  # `memory` has none
        return None
    return [float(abs(params[name]).sum()) for name in sorted(params)[:: max(case[0] // 20, 1)]]


JAX = ("optax", "optax_donated")
CASES = {"200 arrays, 10 million values": (200, 50_000), "1,000 tiny arrays": (1_000, 16)}

CAUSES = {
    "200 arrays, 10 million values": "both write 120 MB to memory that is new at each call, which "
    "costs more than all else: donated, the same program takes half the time.",
    "1,000 tiny arrays": "both hand 4,000 arrays in and take 3,000 out, and the time goes there: "
    "fnn_flatten, with the moments in two arrays, takes 0.4 of it.",
}

TASK = Task(
    title="Adam: update and apply",
    cases=CASES,
    contenders={
        "floor": floor,
        "fnn": fnn,
        "fnn_donated": fnn_donated,
        "fnn_flatten": fnn_flatten,
        "optax": optax,
        "optax_donated": optax_donated,
        "optax_flatten": optax_flatten,
        "torch": torch,
        "torch_fused": torch_fused,
        "memory": memory,
    },
    goals=tuple(
        Goal(f"{case}: {who} is at most 0.8 x {peer}", case, 0.8, (peer,), who, CAUSES[case])
        for case in CASES
        for who, peer in (("fnn", "optax"), ("fnn_donated", "optax"))
    )
    + tuple(
        Goal(f"{case}: donation makes fnn no slower", case, 1.0, ("fnn",), "fnn_donated")
        for case in CASES
    ),
    check=sums,
)
