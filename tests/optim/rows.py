"""A row of the table of optimizers: how to build one, its float64 oracle, its legal options.

The rows of fnn/optim/<module>.py and their oracles are in rows_<module>.py; test_<module>.py drives
each through the same tests (contract.py). An oracle is NumPy alone, written from the paper.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from hypothesis import strategies as st

STEPS = 50
SHAPES = {"a": (4,), "b": (2, 3), "c": ()}


class Row(NamedTuple):
    """One transform.

    - `build(**options)`: the transform.
    - `oracle(grads, params, **options)`: its updates. grads is a list over steps of
      {name: float64 array}, params {name: array} at first; so is what it returns. The params that
      count are params plus all updates so far.
    - `options`: a strategy for each numeric option, over its legal range.
    - `usual`: options to compare with optax at, and to run check_optimizer at.
    - `optax(**options)`: optax's, or None where it has none, or differs (see DIFFERENCES.md).
    - `complex`: whether complex params are taken; if not, they are refused.
    - `low`, `high`: powers of ten between which gradients are drawn.
    - `tolerance`: relative to the largest update of an element, or of a leaf or the tree, as
      `scale` says; `optax_tolerance` likewise.
    - `needs_params`: whether update raises without params.
    - `checks`: keywords of check_optimizer.
    """

    build: Callable[..., Any]
    oracle: Callable[..., list]
    options: dict[str, st.SearchStrategy]
    usual: dict[str, Any]
    optax: Callable[..., Any] | None = None
    low: float = -30
    high: float = 30
    tolerance: float = 1e-12
    optax_tolerance: float = 1e-9
    scale: str = "element"
    needs_params: bool = False
    checks: dict[str, bool] = {}
    complex: bool = True


# --- strategies of usual options

rates = st.sampled_from([0.0, 1e-3, 0.1, 3.0])
decays = st.sampled_from([0.0, 0.5, 0.9, 0.99])
late_decays = st.sampled_from([0.0, 0.9, 0.99, 0.999])
epsilons = st.sampled_from([1e-8, 1e-3])


# --- from a smaller rule to the oracle of a tree


def elementwise(rule: Callable) -> Callable:
    """rule(gs, p, **options): one element's gradients, a list, and its first value -> updates."""

    def oracle(grads, params, **options):
        updates = [{name: np.zeros_like(g) for name, g in step.items()} for step in grads]
        for name, p in params.items():
            for at in np.ndindex(p.shape):
                gs = [step[name][at].item() for step in grads]
                for step, u in zip(updates, rule(gs, p[at].item(), **options), strict=True):
                    step[name][at] = u
        return updates

    return oracle


def per_leaf(rule: Callable) -> Callable:
    """rule(gs, p, **options): one leaf's gradients, a list of arrays -> a list of updates."""

    def oracle(grads, params, **options):
        by_name = {
            name: rule([step[name] for step in grads], p, **options) for name, p in params.items()
        }
        return [{name: by_name[name][i] for name in params} for i in range(len(grads))]

    return oracle


# --- runs


def draw_grads(rng, shape, low, high):
    """[50, *shape]: of size 10^low to 10^high, of which some elements are zero at first, at times,
    always; some repeat one value; some are tiny or huge throughout."""
    size = int(np.prod(shape))
    grads = rng.normal(size=(STEPS, size)) * 10.0 ** rng.uniform(low, high, (STEPS, size))
    for i in range(size):
        kind = rng.integers(8)
        if kind == 0:
            grads[:, i] = 0
        elif kind == 1:
            grads[:20, i] = 0
        elif kind == 2:
            grads[rng.random(STEPS) < 0.5, i] = 0
        elif kind == 3:
            grads[:, i] = grads[0, i]
        elif kind == 4:
            grads[:, i] = 10.0**low * rng.normal(size=STEPS)
        elif kind == 5:
            grads[:, i] = 10.0**high * rng.normal(size=STEPS)
        elif kind == 6:
            grads[:, i] = rng.normal(size=STEPS)
    return grads.reshape(STEPS, *shape)


def draw(seed, low, high):
    """Gradients [50, ...] and first params, as dicts."""
    rng = np.random.default_rng(seed)
    grads = {name: draw_grads(rng, shape, low, high) for name, shape in SHAPES.items()}
    return grads, {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def oracle_updates(row, grads, params, options):
    steps = [{name: g[i] for name, g in grads.items()} for i in range(STEPS)]
    updates = row.oracle(steps, params, **options)
    return {name: np.stack([np.asarray(u[name]) for u in updates]) for name in params}


def run(tx, grads, params, extra=None):
    """All updates for grads [steps, ...] in one scan, from params that follow them."""

    def step(carry, g):
        params, opt_state = carry
        updates, opt_state = tx.update(g, opt_state, params, **(extra or {}))
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        return (params, opt_state), updates

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


def assert_updates(got, want, tolerance, scale="element"):
    """Relative to the largest update of the element, leaf or tree: momentum remembers it."""
    assert set(got) == set(want)
    whole = max((float(np.abs(w).max(initial=0)) for w in want.values()), default=0.0)
    for name, w in want.items():
        g = np.asarray(got[name]).astype(w.dtype)
        assert g.shape == w.shape and np.isfinite(g).all(), name
        size = {"element": np.abs(w).max(0), "leaf": np.abs(w).max(initial=0), "tree": whole}[scale]
        error = np.abs(g - w)
        assert (error <= tolerance * size + 1e-300).all(), (name, (error / (size + 1e-300)).max())
