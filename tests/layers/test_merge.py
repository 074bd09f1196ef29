"""The way between reparametrized and plain params."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors, optim
from tests.layers.support import key, normal


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: fnn.lora(net, 2, alpha=3.0),
        fnn.weight_norm,
        lambda net: fnn.spectral_norm(net, iterations=3),
        lambda net: fnn.quantize(net, 4),
        lambda net: fnn.lora(fnn.stored(net, jnp.int4), 2),
        lambda net: fnn.prune(net, 0.5),
        fnn.frozen,
        lambda net: fnn.frozen(fnn.weight_norm(net), "*/gain"),
        lambda net: fnn.cast(fnn.lora(net, 2), jnp.float32),
        lambda net: fnn.repeat(fnn.lora(net, 2), 3),
        lambda net: fnn.ensemble(fnn.weight_norm(net), 3),
    ],
)
def test_merge_gives_the_plain_networks_params_and_unmerge_takes_them(wrap):
    plain = fnn.serial(fnn.dense(4), fnn.batch_norm(), fnn.dense(4, use_bias=False))
    net, like = wrap(plain), plain
    if net.name in ("repeat", "ensemble"):
        like = {"repeat": fnn.repeat, "ensemble": fnn.ensemble}[net.name](plain, 3)
    x = normal(5, 4)
    params, state = net.init(key(0), x)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key(2), p.shape), params)
    merged, own = fnn.merge(net, params, state, x)
    jax.tree.map(lambda a, b: None, merged, like.init(key(0), x)[0])  # of one structure
    wanted = net(params, x, state=state)
    np.testing.assert_allclose(like(merged, x, state=own), wanted, rtol=2e-5, atol=2e-6)
    again = fnn.unmerge(net, merged, own, x, key=key(5))
    jax.tree.map(lambda a, b: None, again, (params, state))
    if wrap is fnn.weight_norm or wrap is fnn.frozen:  # which lose nothing
        np.testing.assert_allclose(net(again[0], x, state=again[1]), wanted, rtol=2e-5, atol=2e-6)


def test_lora_goes_on_from_trained_params():
    plain = fnn.serial(fnn.dense(4), jnp.tanh, fnn.dense(3))
    theirs, _ = plain.init(key(7), (1, 4))
    net = fnn.lora(plain, 2)
    params, state = fnn.unmerge(net, theirs, {}, (1, 4), key=key(1))
    tx = optim.adamw(0.1)
    ts = fnn.train.init(net, tx, key(0), (1, 4), params=params, state=state)
    np.testing.assert_array_equal(
        net(ts.params, normal(2, 4), state=ts.state), plain(theirs, normal(2, 4))
    )


def test_halves_of_halves_are_merged_and_what_cannot_be_is_said():
    for wrap in (lambda net: net, lambda net: fnn.repeat(net, 2)):
        net, plain = wrap(fnn.frozen(fnn.lora(fnn.dense(4), 2), "a/*")), wrap(fnn.dense(4))
        params, state = net.init(key(0), (2, 4))
        params = jax.tree.map(lambda p: p + 0.1, params)
        merged, own = fnn.merge(net, params, state, (2, 4))
        x = normal(2, 4)
        np.testing.assert_allclose(plain(merged, x), net(params, x, state=state), rtol=1e-5)
    for net in (
        fnn.lora(fnn.frozen(fnn.dense(4), "bias"), 2),
        fnn.lora(fnn.lora(fnn.dense(4), 2), 2),
    ):
        with pytest.raises(errors.ParamsError, match="merge: .*freeze the reparametrized layer"):
            fnn.merge(net, *net.init(key(0), (2, 4)), (2, 4))
