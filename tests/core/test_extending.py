"""Layers, combinators and optimizers of users: what checks accept, and what messages say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors, optim
from fnn.optim.sgd import TraceState
from fnn.testing import check_layer

zeros = fnn.initializers.zeros


def test_a_body_with_notes_and_a_parameter_of_its_own_holds_the_contract():
    @fnn.compose(dense=fnn.dense(3), gain=fnn.parameter((), fnn.initializers.ones))
    def body(f, x):
        y = f.dense(x)
        f.note("size", jnp.mean(y**2))
        return y * f.gain().astype(y.dtype)

    check_layer(body, (4, 3))


def returning(state):
    def apply(params, old, x, **mode):
        return x, state(old)

    return fnn.leaf("odd", lambda x: ({}, {"n": fnn.Param((), zeros)}), apply)


WRONG = {
    "axes of a param": (lambda: fnn.Param((3,), zeros, axes=("in", "out")), r"each axis of \(3,\)"),
    "initializer": (lambda: fnn.Param((3,), 1.0), "fnn.initializers.zeros"),
    "state lost": (
        lambda: returning(lambda s: {}).apply({}, {"n": jnp.zeros(())}, jnp.ones(2)),
        "return from apply what specs declares",
    ),
    "state misshapen": (
        lambda: returning(lambda s: {"n": s["n"][None]}).apply(
            {}, {"n": jnp.ones(())}, jnp.ones(2)
        ),
        "return from apply what specs declares",
    ),
    "layers in a list": (lambda: fnn.serial([fnn.dense(2), fnn.dense(3)]), r"serial\(\*layers\)"),
    "the name of a function": (lambda: fnn.serial(fnn.dense(2), "relu"), "jax.nn.relu"),
    "compose without parentheses": (lambda: fnn.compose(lambda f, x: x), "parentheses"),
    "a layer for a loss": (
        lambda: fnn.train.step(fnn.dense(2), optim.sgd(0.1)), r"supervised\(net, loss\)",
    ),
    "a stranger's name": (
        lambda: fnn.dense(2)({"weights": jnp.ones((3, 2)), "bias": jnp.ones(2)}, jnp.ones((1, 3))),
        "no kernel, but weights",
    ),
    "params for what is frozen": (
        lambda: fnn.train.init(
            fnn.serial(a=fnn.frozen(fnn.dense(2))), optim.sgd(0.1), jax.random.key(0), (1, 3),
            params={"a": {"kernel": jnp.ones((3, 2))}},
        ),
        "fnn.unmerge",
    ),
    "half of the plain params": (
        lambda: fnn.unmerge(fnn.frozen(fnn.dense(2)), {"bias": jnp.ones(2)}, {}, (1, 3)),
        "plain network",
    ),
    "a rule without slots": (
        lambda: optim.leafwise(TraceState, lambda t, p, g, m: g).update(
            jnp.ones(2), TraceState(jnp.zeros(2))
        ),
        r"rule to return \(u, trace\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_of_authors_are_refused_with_their_mend(name):
    call, mend = WRONG[name]
    with pytest.raises(errors.FnnError, match=mend):
        call()


def test_an_undeclared_sublayer_is_a_mistake_and_an_attribute_that_is_missing():
    net = fnn.compose(a=fnn.dense(2))(lambda f, x: f.b(f.a(x)) if hasattr(f, "b") else f.c(x))
    with pytest.raises(errors.FnnError, match="declared sublayers a, got c") as error:
        net.specs((1, 3))
    assert isinstance(error.value, AttributeError)


def test_a_sweep_folds_trees_and_ranks_by_scalars_alone():
    keys = jax.random.split(jax.random.key(0), 2)
    rates = np.float32([1, 2, 3])

    def run_fn(key, rate):
        return {"curve": rate * jnp.arange(4.0), "last": rate}

    found = fnn.search.sweep(run_fn, {"rate": rates}, keys=keys, progress=False)
    folded = found.grid(found.results)
    assert folded["curve"].shape == (3, 2, 4) and folded["last"].shape == (3, 2)
    np.testing.assert_array_equal(found.grid(found.settings["rate"])[:, 0], rates)
    curves = fnn.search.sweep(
        lambda key, rate: rate * jnp.arange(4.0), {"rate": rates}, keys=keys, progress=False
    )
    with pytest.raises(errors.OptionError, match="scalar from each run"):
        curves.table()
