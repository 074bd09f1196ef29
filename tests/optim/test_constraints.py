"""Projections."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from fnn.optim import constraints
from tests.optim import rows_constraints
from tests.optim.contract import contract
from tests.optim.rows_constraints import ROWS
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


arrays = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=5).map(np.float32)


@cache
def onto(name):
    return {
        "simplex": jax.jit(lambda x, size: constraints.simplex(size)(x)),
        "l2_ball": jax.jit(lambda x, size: constraints.l2_ball(size)(x)),
        "box": jax.jit(lambda x, size: constraints.box(-size, size)(x)),
    }[name]


@pytest.mark.parametrize("name", ["simplex", "l2_ball", "box"])
@given(x=arrays, size=st.sampled_from([0.0, 0.5, 1.0, 7.0]))
def test_projections_are_the_nearest_points(name, x, size):
    if name == "box":
        want = rows_constraints.box(np.float64(x), -size, size)
    else:
        want = getattr(rows_constraints, name)(np.float64(x), size)
    got = onto(name)(asarray(x), jnp.float32(size))
    np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_allclose(onto(name)(got, jnp.float32(size)), got, atol=1e-5)  # and stay


def test_projections_of_extremes():
    simplex = jax.jit(constraints.simplex())
    np.testing.assert_allclose(simplex(asarray([1e30, 1.0, -1e30])), [1, 0, 0])
    np.testing.assert_allclose(simplex(jnp.full(4, 1e30)), 0.25)
    np.testing.assert_allclose(simplex(jnp.zeros((2, 3))), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(simplex(asarray(-3.0)), 1)
    assert simplex(jnp.zeros((0, 3))).shape == (0, 3)
    rows = constraints.l2_ball(1.0, axis=0)(asarray([[3.0, 0.3], [4.0, 0.4]]))
    np.testing.assert_allclose(rows, [[0.6, 0.3], [0.8, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(constraints.l2_ball(1e30)(jnp.full(4, 1e30)), 5e29, rtol=1e-6)
    got = jax.grad(lambda x: jnp.sum(constraints.l2_ball(1.0)(x)))(jnp.zeros(2))
    np.testing.assert_allclose(got, 1)
    x = asarray([0.3, 0.4, -2.0])
    np.testing.assert_allclose(
        jax.jacobian(simplex)(x), [[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]], atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_projected_params_are_feasible(dtype):
    rng = np.random.default_rng(0)
    p = asarray(rng.normal(size=1000), dtype)
    u = asarray(rng.normal(size=1000) * 10.0 ** rng.uniform(-3, 3, 1000), dtype)
    for fn, low, high in (
        (constraints.non_negative, 0, np.inf),
        (constraints.box(0.25, 1.0), 0.25, 1),
    ):
        step, _ = fnn.optim.project(fn).update(u, (), p)
        after = np.float64(fnn.optim.apply_updates(p, step))
        slack = 0 if low == 0 else 8 * float(jnp.finfo(dtype).eps)
        assert (after >= low - slack).all() and (after <= high + slack).all()
        assert after.dtype == np.float64 and step.dtype == dtype


@pytest.mark.parametrize("axis", [-1, (1,), [1], np.array(1)])
def test_an_axis_may_be_written_in_any_way(axis):
    x = asarray([[3.0, 4.0], [0.0, 2.0], [0.3, 0.4]])
    got = constraints.l2_ball(1.0, axis)(x)
    np.testing.assert_allclose(got, [[0.6, 0.8], [0.0, 1.0], [0.3, 0.4]], rtol=1e-6)


def test_a_run_with_projected_params_finds_the_constrained_minimum():
    """The nearest point of the simplex to a target is the projection of the target."""
    target = asarray([0.9, 0.5, -0.3, 0.1])
    tx = fnn.optim.chain(fnn.optim.sgd(0.3, momentum=0.5), fnn.optim.project(constraints.simplex()))

    def step(carry, _):
        p, state = carry
        u, state = tx.update(p - target, state, p)
        return (p + u, state), None

    start = jnp.full(4, 0.25)
    (p, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, 60)
    np.testing.assert_allclose(p, rows_constraints.simplex(np.float64(target), 1.0), atol=1e-4)


o, sgd = fnn.optim, fnn.optim.sgd(0.1)


WRONG = {
    "onto": (lambda: o.project(3), errors.OptionError),
    "box": (lambda: constraints.box(1.0, 0.0), errors.OptionError),
    "radius": (lambda: constraints.l2_ball(-1.0), errors.OptionError),
    "total": (lambda: constraints.simplex(-1.0), errors.OptionError),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    call, kind = WRONG[name]
    with pytest.raises(kind):
        call()
