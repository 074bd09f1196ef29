"""What is refused by value is refused in whatever runs a layer inside a transform, too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.support import asarray

CACHED = fnn.attention(2, 1, causal=True, cache=3)
FULL = {  # whose cache is full
    "repeat": fnn.repeat(CACHED, 2),
    "ensemble": fnn.ensemble(CACHED, 2),
    "remat": fnn.remat(CACHED),
    "repeat remat": fnn.repeat(fnn.remat(CACHED), 2),
    "repeat repeat": fnn.repeat(fnn.repeat(CACHED, 2), 2),
    "ensemble repeat": fnn.ensemble(fnn.repeat(CACHED, 2), 2),
    "lora repeat": fnn.lora(fnn.repeat(CACHED, 2), 1),
    "cast repeat": fnn.cast(fnn.repeat(CACHED, 2), jnp.bfloat16),
    "repeat block": fnn.repeat(fnn.transformer_block(2, 1, causal=True, cache=3), 2),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_cache_is_refused_inside(name):
    net, x = fnn.serial(inner=FULL[name]), jnp.ones((1, 2, 2))
    params, state = net.init(jax.random.key(0), x)

    def after(n):
        return jax.tree.map(lambda a: a if a.dtype == jnp.float32 else jnp.full_like(a, n), state)

    with pytest.raises(errors.InputError, match="inner/.*cache=3 positions, got 2 after 2"):
        net.apply(params, after(2), x)
    if name == "repeat":
        one = jax.tree.map(lambda a: a.at[:1].set(2) if a.dtype == jnp.int32 else a, state)
        with pytest.raises(errors.InputError, match="got 2 after 2"):
            net.apply(params, one, x)
        y, end = net.apply(params, after(1), x)
        assert np.isfinite(y).all() and (end["inner"]["cache"]["index"] == 3).all()
        assert np.isnan(jax.jit(net.apply)(params, after(2), x)[0]).all()


EMBED = fnn.embedding(5, 2)
CELL = fnn.cells.serial(embed=EMBED, rnn=fnn.cells.simple_rnn(5))
IDS = asarray([[1, 4, 0], [3, 2, 5]])
BEYOND = {
    "remat": fnn.remat(EMBED),
    "ensemble": fnn.ensemble(EMBED, 2),
    "rnn": fnn.rnn(CELL, feature_axes=0),
    "remat rnn": fnn.remat(fnn.rnn(CELL, feature_axes=0)),
    "bidirectional": fnn.bidirectional(CELL, feature_axes=0),
}


@pytest.mark.parametrize("name", BEYOND)
def test_integers_out_of_range_are_refused_inside(name):
    net = fnn.serial(inner=BEYOND[name])
    params, _ = net.init(jax.random.key(0), IDS)
    for ids in (IDS, -IDS):
        with pytest.raises(errors.InputError, match=r"inner.*integers in 0 \.\.\. 4"):
            net(params, ids)


def test_integers_that_are_not_read_are_not_refused():
    net = fnn.rnn(CELL, feature_axes=0)
    params, _ = net.init(jax.random.key(0), IDS)
    real = IDS < 5
    np.testing.assert_array_equal(
        net(params, IDS, real), net(params, jnp.where(real, IDS, 0), real)
    )
    short, whole = asarray([3, 2]), asarray([3, 3])
    x = fnn.unroll_generate(CELL, params, IDS, lengths=short, temperature=0.0).x
    np.testing.assert_array_equal(x[:, :2], IDS[:, :2])
    with pytest.raises(errors.InputError, match=r"embed: .*integers in 0 \.\.\. 4"):
        fnn.unroll_generate(CELL, params, IDS, lengths=whole, temperature=0.0)


def test_lengths_out_of_range_are_refused_inside():
    x, lengths = jnp.ones((2, 3, 2)), asarray([4, 1])
    for net in (fnn.repeat(fnn.gru(2), 2), fnn.remat(fnn.gru(2)), fnn.ensemble(fnn.lru(2), 2)):
        params, _ = net.init(jax.random.key(0), x)
        with pytest.raises(errors.InputError, match="lengths of 0 to 3, got 4"):
            net(params, x, None, None, None, lengths)
