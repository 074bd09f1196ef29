"""Decoding with a cache against the whole at once, and each row against that row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.layers.attention.support import drawn_params, empty_state, layer


def test_decoding_with_a_cache_is_the_whole_at_once():
    options = {"kv_heads": 2, "causal": True, "rotary": 100.0, "window": 4, "soft_cap": 3.0}

    def stack(**more):
        block = fnn.transformer_block(8, 4, norm=fnn.rms_norm, **options, **more)
        return fnn.serial(fnn.repeat(block, 2), fnn.dense(3))

    whole, decoder = stack(), stack(cache=9)
    x = np.random.default_rng(1).normal(size=(2, 7, 8)).astype(np.float32)
    assert whole.specs(x)[0] == decoder.specs(x)[0], "the same params"
    params = drawn_params(whole, x)
    wanted, step = jax.jit(whole)(params, x), jax.jit(decoder.apply)
    for chunks in ((1,) * 7, (3, 1, 3), (7,)):
        state, outputs = empty_state(decoder, (2, 1, 8)), []
        for end in np.cumsum(chunks):
            y, state = step(params, state, x[:, end - chunks[len(outputs)] : end])
            outputs.append(y)
        np.testing.assert_allclose(np.concatenate(outputs, 1), wanted, rtol=1e-4, atol=1e-5)


def slopes(distance):
    return -jnp.asarray([[0.5, 0.25, 0.1, 0.0]]) * distance[:, None].astype(jnp.float32)


TURNS = [(5, (3, 5, 1)), (1, (1, 1, 1)), (1, (1, 1, 1)), (2, (2, 0, 1))]  # T, and the rows' lengths


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_any_lengths_go_on_as_each_alone(side):
    """Prompts, two steps, and a second prompt, with NaN as padding."""
    options = {"kv_heads": 2, "rotary": 100.0, "qk_norm": True}
    seen = {"causal": True, "window": 3}
    net = fnn.attention(8, 4, cache=9, block=2, distances=slopes, **options, **seen)
    rng = np.random.default_rng(0)
    rows = [np.float32(rng.normal(size=(9, 8))) for _ in range(3)]
    params, state = drawn_params(net, (3, 1, 8)), empty_state(net, (3, 1, 8))
    step, found, done = jax.jit(net.apply), [[], [], []], np.zeros(3, int)
    for t, lengths in TURNS:
        x, real = np.full((3, t, 8), np.nan, np.float32), np.zeros((3, t), np.int32)
        for i, n in enumerate(lengths):
            places = slice(t - n, t) if side == "left" else slice(0, n)
            x[i, places], real[i, places] = rows[i][done[i] : done[i] + n], 1
        y, state = step(params, state, x, segments=None if real.all() else real)
        y = np.asarray(y)
        assert (y[real == 0] == params["out"]["bias"]).all(), "padding sees nothing"
        for i in range(3):
            found[i].extend(y[i, real[i] > 0])
        done += lengths
        np.testing.assert_array_equal(state["cache"]["index"], done)
    table = lambda d: np.array([0.5, 0.25, 0.1, 0.0]) * -d  # noqa: E731
    for row, n, got in zip(rows, done, found, strict=True):
        wanted = layer(params, row[None, :n], 4, **options, **seen, distances=table)[0]
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_packed_sequences_in_a_cache_do_not_see_each_other():
    net = fnn.attention(4, 2, causal=True, rotary=10.0, cache=6)
    x = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32)
    params, state = drawn_params(net, x), empty_state(net, x)
    segments, step, outputs = np.array([[1, 1, 2, 2, 2, 2]], np.int32), jax.jit(net.apply), []
    for part in (slice(0, 3), slice(3, 6)):
        y, state = step(params, state, x[:, part], segments=segments[:, part])
        outputs.append(y)
    wanted = layer(params, x, 2, causal=True, rotary=10.0, segments=segments)
    np.testing.assert_allclose(np.concatenate(outputs, 1), wanted, atol=1e-5)


def test_a_full_cache_raises_or_gives_nan():
    net = fnn.serial(a=fnn.attention(4, 2, causal=True, cache=3))
    x = np.ones((2, 2, 4), np.float32)
    params, state = drawn_params(net, x), empty_state(net, x)
    step = jax.jit(net.apply)
    _, state = step(params, state, x)
    with pytest.raises(errors.InputError, match="a/cache: .*no more than cache=3 .*got 2 after 2"):
        net.apply(params, state, x)
    assert np.isnan(step(params, state, x)[0]).all()
    assert np.isfinite(step(params, state, x[:, :1])[0]).all()
    with pytest.raises(errors.InputError, match="got 4 after 0"):
        net.specs((1, 4, 4))


def test_a_row_that_is_full_alone_is_nan():
    net = fnn.attention(4, 2, causal=True, cache=3)
    x, segments = np.ones((2, 2, 4), np.float32), np.array([[1, 1], [0, 1]])
    params, state = drawn_params(net, x), empty_state(net, x)
    step = jax.jit(net.apply)
    _, state = step(params, state, x, segments=segments)
    y, _ = step(params, state, x)
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()
    for given, text in ((None, "got 2 after 2"), (segments, "got 2 after 2")):
        with pytest.raises(errors.InputError, match=text):
            net.apply(params, state, x, segments=given)
