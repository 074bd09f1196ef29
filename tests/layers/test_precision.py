"""Mixed precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.testing.layers import (
    check_specs,
    check_state,
    check_strict,
)
from tests.layers.support import assert_trees_equal, key, normal


def test_cast_computes_in_one_dtype_and_keeps_params_in_another():
    seen = []

    def look(x):
        seen.append(x.dtype)
        return x

    net = fnn.cast(fnn.serial(fnn.dense(4), look, fnn.batch_norm()), jnp.bfloat16)
    params, state = net.init(key(), (6, 3))
    dtypes = {a.dtype for a in jax.tree.leaves((params, state))}
    assert dtypes == {jnp.dtype("float32")}
    x = normal(6, 3)
    y, after = net.apply(params, state, x, train=True)
    assert set(seen) == {jnp.dtype("bfloat16")} and y.dtype == x.dtype
    assert after["batch_norm1"]["mean"].dtype == jnp.float32
    plain = fnn.serial(fnn.dense(4), look, fnn.batch_norm())
    np.testing.assert_allclose(y, plain.apply(params, state, x, train=True)[0], atol=0.05)
    grads = jax.grad(lambda p: net(p, x, state=state).sum())(params)
    assert {a.dtype for a in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert fnn.cast(plain, jnp.bfloat16, output_dtype=jnp.float16)(
        params, x, state=state
    ).dtype == (jnp.float16)
    plain_params, _ = plain.init(key(), (6, 3))
    assert_trees_equal(plain_params, params)  # drawn in float32, not rounded


def test_cast_of_a_tied_embedding():
    @fnn.compose(embed=fnn.embedding(11, 4), dense=fnn.dense(4))
    def tied(f, ids):
        return f.dense(f.embed(ids)) @ f.embed.params["embedding"].T

    ids = jnp.arange(6).reshape(2, 3)
    net = fnn.cast(tied, jnp.bfloat16, output_dtype=jnp.float32)
    params, _ = net.init(key(), ids)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = jax.jit(net)(params, ids)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, tied(params, ids), atol=0.05)
    assert fnn.cast(tied, jnp.bfloat16)(params, ids).dtype == jnp.bfloat16


def test_cast_holds_the_contract_but_for_precision():
    net = fnn.cast(fnn.serial(fnn.dense(3), fnn.batch_norm(), fnn.dropout(0.2)), jnp.bfloat16)
    params, state = net.init(key(), (6, 4))
    xs = (normal(6, 4),)
    for check in (check_specs, check_state, check_strict):
        check(net, params, state, xs)
    for bad in (jnp.int32, None, "text", 3, bool):
        with pytest.raises(errors.OptionError, match="compute_dtype to be a floating dtype"):
            fnn.cast(fnn.dense(3), bad)
