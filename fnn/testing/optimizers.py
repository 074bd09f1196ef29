"""Property tests of optimizers.

Each property is a function below, named for what it checks; a failure is an AssertionError that
names the property and the numbers. All run the transform for a few steps down a sum of parabolas,
w (p - target)^2 / 2, some of which are flat (w = 0).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core.dtypes import is_key
from fnn.core.shapes import from_numpy
from fnn.core.types import Tree
from fnn.optim.transform import Transform, apply_updates, taking_extra

STEPS = 3


class Valley(NamedTuple):
    """Trees of one structure: where a run starts, where it should end, and how steep it is."""

    params: Tree
    target: Tree
    steepness: Tree


def check_optimizer(
    tx: Transform,
    *,
    splits: bool = True,
    equivariant: bool = True,
    still: bool = True,
    differentiable: bool = True,
) -> None:
    """Check that a transform fulfils fnn's contract for optimizers; raise AssertionError if not.

    - updates have the structure, shapes and dtypes of the gradients, and the state keeps its own,
      with moments in float32 or wider, in float16, bfloat16, float32 and float64;
    - a zero gradient at zero params gives a zero update, in all of these;
    - `jit` equals eager, a `scan` the loop, a lane of `vmap` a single run; 3 steps trace once,
      and the state may be donated;
    - the names and the order of leaves change nothing, nor does splitting them;
    - derivatives through a run, forward and reverse, are finite where gradients are zero;
    - a state continues bitwise after a round trip through NumPy, and a count stops at its largest;
    - empty trees and empty leaves are accepted, and so are unknown extra arguments.

    - `splits`: False for methods defined per leaf or matrix, whose rules say `whole=True` (see
      `fnn.optim.leafwise`).
    - `equivariant`: False where names or order matter by design, as for noise.
    - `still`: False for methods that move without a gradient.
    - `differentiable`: False leaves out reverse mode, as for a search of unknown length.

    >>> import fnn
    >>> check_optimizer(fnn.optim.sgd(0.1, momentum=0.9))
    """
    valley = _valley()
    run = jax.jit(functools.partial(_run, tx))  # one program for all the checks
    check_protocol(tx)
    check_empty(tx)
    traces = []

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, params):
        traces.append(None)
        return _update(tx, state, params, valley)

    check_runs(tx, valley, step, run)
    _expect(f"one trace for {STEPS} steps", len(traces), 1)
    check_lanes(tx, valley, run)
    check_host(tx, valley, step)
    check_count(tx, valley)
    check_finite_derivatives(tx, valley, differentiable)
    if still:
        check_still(tx)
    if equivariant:
        check_names(valley, run)
    if splits:
        check_splits(valley, run)


def check_protocol(tx: Transform) -> None:
    """Updates have the shapes and dtypes of the gradients, and the state keeps its own."""
    with jax.enable_x64(True):
        params = _of_every_dtype()
        state = jax.eval_shape(tx.init, params)
        for leaf in jax.tree.leaves(state):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                _expect("moments are float32 or wider", jnp.finfo(leaf.dtype).bits >= 32, True)
        valley = Valley(params, params, params)
        updates, after = jax.eval_shape(lambda s, p: _update(tx, s, p, valley), state, params)
        _expect("updates are like the gradients", _structs(updates), _structs(params))
        _expect("the state keeps its structure", _structs(after), _structs(state))


def check_empty(tx: Transform) -> None:
    """Trees without leaves, and leaves without values."""
    for params in ({}, (), {"a": {}}, {"a": jnp.zeros((0, 3))}):
        valley = Valley(params, params, params)
        updates, _ = _update(tx, tx.init(params), params, valley)
        _expect("updates of an empty tree", _structs(updates), _structs(params))


def check_runs(tx: Transform, valley: Valley, step: Callable, run: Callable) -> None:
    """Eager, jitted step by step with the state donated, and scanned: the same run."""
    own = Valley(jax.tree.map(jnp.copy, valley.params), *valley[1:])
    jitted = _loop(tx, step, own)
    eager = _loop(tx, lambda state, params: _update(tx, state, params, valley), valley)
    _close("jit equals eager", jitted, eager)
    _close("scan equals the loop", run(valley), jitted)


def check_lanes(tx: Transform, valley: Valley, run: Callable) -> None:
    """Lanes of vmap equal single runs."""
    scales = jnp.array([0.5, 1.0, 2.0])

    def towards(scale):
        return valley._replace(target=jax.tree.map(lambda a: scale * a, valley.target))

    lanes = jax.jit(jax.vmap(lambda scale: _run(tx, towards(scale))))(scales)
    for i, scale in enumerate(scales):
        lane = jax.tree.map(lambda a, i=i: a[i], lanes)
        _close("a lane of vmap equals the run alone", lane, run(towards(scale)))


def check_host(tx: Transform, valley: Valley, step: Callable) -> None:
    """A state continues bitwise after a round trip through NumPy."""
    _, state = step(tx.init(valley.params), valley.params)
    back = jax.tree.map(_through_numpy, state)
    for a, b in zip(*map(jax.tree.leaves, (step(state, valley.params), step(back, valley.params))),
                    strict=True):  # fmt: skip
        same = np.array_equal(*map(_plain, (a, b)), equal_nan=True)
        _expect("a state from NumPy goes on bitwise", same, True)


def check_count(tx: Transform, valley: Valley) -> None:
    """A count at the largest int neither overflows nor makes updates that are not finite."""
    state = tx.init(valley.params)
    _, state = _update(tx, state, valley.params, valley)

    def last(leaf):
        whole = jnp.issubdtype(jnp.result_type(leaf), jnp.signedinteger)
        return jnp.full_like(leaf, jnp.iinfo(leaf.dtype).max) if whole else leaf

    updates, after = _update(tx, jax.tree.map(last, state), valley.params, valley)
    for leaf in jax.tree.leaves(updates):
        _expect("finite updates at the largest count", bool(jnp.isfinite(leaf).all()), True)
    for leaf in jax.tree.leaves(after):
        if jnp.issubdtype(leaf.dtype, jnp.signedinteger):
            _expect(
                "the count does not overflow (see fnn.optim.arithmetic.increment)",
                bool((leaf >= 0).all()),
                True,
            )


def check_finite_derivatives(tx: Transform, valley: Valley, reverse: bool) -> None:
    """Derivatives through a run with zero gradients, by its start and its target, are finite."""

    def end(params, target):
        params, _, updates = _run(tx, Valley(params, target, valley.steepness))
        leaves = jax.tree.leaves((params, updates))
        return sum((jnp.sum(jnp.square(leaf)) for leaf in leaves), jnp.zeros(()))

    at = valley.params, valley.target
    ones = jax.tree.map(jnp.ones_like, at)

    @jax.jit
    def derivatives(*at):
        forward = jax.jvp(end, at, ones)[1]
        return forward, jax.grad(end, (0, 1))(*at) if reverse else ()

    for leaf in jax.tree.leaves(derivatives(*at)):
        _expect(
            "finite derivatives through zero gradients (see fnn.optim.arithmetic.over_root)",
            bool(jnp.isfinite(leaf).all()),
            True,
        )


def check_still(tx: Transform) -> None:
    """Zero gradients at zero params give zero updates, in every dtype."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.zeros_like, _of_every_dtype())
        _, _, updates = jax.jit(lambda p: _run(tx, Valley(p, p, p)))(params)
        for leaf in jax.tree.leaves(updates):
            _expect(f"zero updates in {leaf.dtype}", bool((leaf == 0).all()), True)


def check_names(valley: Valley, run: Callable) -> None:
    """Other names, order and nesting give the same run."""

    def turned(tree):
        return {"z": (tree["b"],), "y": {"x": {"w": tree["a"]}}, "c": tree["c"]}

    renamed = run(Valley(*map(turned, valley)))
    _close("names and order change nothing", renamed[0], turned(run(valley)[0]))


def check_splits(valley: Valley, run: Callable) -> None:
    """A leaf in two parts moves as the whole."""

    def halves(tree):
        return {"b1": tree["b"][:1], "b2": tree["b"][1:], "a": tree["a"], "c": tree["c"]}

    split = run(Valley(*map(halves, valley)))
    _close(
        "splitting leaves changes nothing (splits=False for methods defined per leaf)",
        split[0],
        halves(run(valley)[0]),
    )


# --- helpers


def _valley() -> Valley:
    def normal(seed):
        rng, shapes = np.random.default_rng(seed), {"a": (4,), "b": (2, 3), "c": ()}
        return {n: from_numpy(rng.normal(size=s).astype(np.float32)) for n, s in shapes.items()}

    steepness = {"a": jnp.array([1.0, 0.0, 3.0, 0.5]), "b": jnp.ones((2, 3)), "c": jnp.ones(())}
    return Valley(normal(0), normal(1), steepness)


def _of_every_dtype() -> dict:
    dtypes = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
    return {f"{dtype.dtype}": jnp.ones((2, 3), dtype) for dtype in dtypes} | {"s": jnp.ones(())}


def _update(tx: Transform, state: Tree, params: Tree, valley: Valley) -> tuple[Tree, Tree]:
    """One update, with all the extra arguments of a training step, and an unknown one."""
    grads = jax.tree.map(lambda p, a, w: w * (p - a), params, *valley[1:])

    def value_fn(params):
        def height(p, a, w):
            return jnp.sum((w * jnp.square(p - a)).astype(jnp.float32)) / 2

        leaves = jax.tree.leaves(jax.tree.map(height, params, *valley[1:]))
        return sum(leaves, jnp.zeros((), jnp.float32))

    extra = {"value": value_fn(params), "grad": grads, "value_fn": value_fn, "unknown_": None}
    return taking_extra(tx.update)(grads, state, params, **extra)


def _run(tx: Transform, valley: Valley) -> tuple[Tree, Tree, Tree]:
    """Params and state after a scan of some steps, and all updates."""

    def step(carry, _):
        params, state = carry
        updates, state = _update(tx, state, params, valley)
        return (apply_updates(params, updates), state), updates

    start = valley.params, tx.init(valley.params)
    (params, state), updates = jax.lax.scan(step, start, None, STEPS)
    return params, state, updates


def _loop(tx: Transform, step: Callable, valley: Valley) -> tuple[Tree, Tree, Tree]:
    params, state, all_updates = valley.params, tx.init(valley.params), []
    for _ in range(STEPS):
        updates, state = step(state, params)
        params = apply_updates(params, updates)
        all_updates.append(updates)
    return params, state, jax.tree.map(lambda *u: jnp.stack(u), *all_updates)


def _plain(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _through_numpy(leaf: Any) -> jax.Array:
    back = from_numpy(_plain(leaf))
    return jax.random.wrap_key_data(back) if back.dtype != leaf.dtype else back


def _structs(tree: Any) -> Any:
    return jax.tree.map(lambda a: (a.shape, a.dtype), tree)


def _expect(what: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise AssertionError(f"{what}: expected {wanted}, got {got}")


def _close(what: str, got: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        a, b = map(_plain, (a, b))
        scale = max(1.0, float(np.max(np.abs(b), initial=0.0)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=what)
