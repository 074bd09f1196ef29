"""Rates that fall with depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import fnn
from fnn import optim
from tests.support import asarray


def test_layerwise_decay_of_a_stack_is_that_of_its_layers():
    """A stack in one leaf moves as its layers do alone; decay of weights falls with the rate."""
    rng = np.random.default_rng(0)
    w = asarray(rng.normal(size=(5, 3)), jnp.float32)
    alone = {f"l{i}": {"w": w[i]} for i in range(5)}
    stacked = {"stem": w[0], "blocks": {"w": w[1:4]}, "head": {"w": w[4]}}
    base = optim.adamw(0.1, weight_decay=0.5)
    one = optim.chain(base, optim.layerwise_decay(0.7, [f"l{i}/*" for i in range(5)]))
    many = optim.chain(base, optim.layerwise_decay(0.7, ["stem", ("blocks/*", 3), "head/*"]))
    plain, _ = base.update(alone, base.init(alone), alone)
    got, _ = one.update(alone, one.init(alone), alone)
    for i in range(5):
        assert_allclose(got[f"l{i}"]["w"], 0.7 ** (4 - i) * plain[f"l{i}"]["w"], rtol=1e-6)
    other, _ = many.update(stacked, many.init(stacked), stacked)
    together = [other["stem"], *other["blocks"]["w"], other["head"]["w"]]
    for i in range(5):
        assert_allclose(together[i], got[f"l{i}"]["w"], rtol=1e-6)


def test_layerwise_decay_may_be_traced_and_keeps_dtypes():
    g = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.complex64)}

    def updates(decay):
        tx = optim.layerwise_decay(decay, ["a", "b"])
        return tx.update(g, tx.init(g))[0]

    got = jax.jit(updates)(0.5)
    assert got["a"].dtype == jnp.bfloat16
    assert got["a"][0] == 0.5
    assert got["b"][0] == 1


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ("a", "a list of patterns"),
        ([], "a list of patterns"),
        ([("a", 2, 3)], "a list of patterns"),
        (["a", "a"], "differ"),
        (["a"], "none for b"),
        ([("a", 3), "b"], r"a stack of 3 layers"),
        (["a", "b", "c"], "c"),
    ],
)
def test_layerwise_decay_refuses(layers, match):
    g = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(fnn.FnnError, match=match):
        tx = optim.layerwise_decay(0.5, layers)
        tx.update(g, tx.init(g))
