"""Masks of spans and tokens, and warped time: shares, ranges and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn.data import augment
from tests.data.augment.support import keys, mapped, noise
from tests.support import asarray


@given(
    n=st.integers(1, 9), length=st.integers(1, 9), axis=st.sampled_from([-2, -1]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_one_span_of_any_length_lies_anywhere(n, length, axis, seed):
    length = min(length, n)
    x = np.ones((2, 3), np.int16)
    x = np.repeat(x, n, -1)[:, :n] if axis == -1 else np.ones((n, 3), np.int16)
    ys = mapped(augment.mask_spans(1, length, axis, fill=-3), keys(300, seed), x)
    assert ys.dtype == np.int16 and set(np.unique(ys)) <= {1, -3}
    masked = np.moveaxis(ys, axis, 1)
    assert (masked == masked[:, :, :1]).all()
    masked = masked[:, :, 0] == -3
    sizes, steps = masked.sum(1), np.abs(np.diff(masked.astype(int), axis=1)).sum(1)
    assert sizes.max() <= length and set(steps) <= {0, 1, 2}
    counts = np.bincount(sizes, minlength=length + 1)
    assert np.abs(counts - 300 / (length + 1)).max() < 6 * np.sqrt(300 / (length + 1))
    if length < n:
        assert masked[:, 0].any() and masked[:, -1].any()


def test_spans_are_drawn_apart():
    ys = mapped(augment.mask_spans(3, 4), keys(200), np.ones((60, 1), np.float32))[..., 0]
    starts = (np.diff(np.pad(ys, ((0, 0), (1, 0)), constant_values=1), axis=1) < 0).sum(1)
    assert starts.max() == 3 and 1.8 < starts.mean() < 2.5  # 3 x 4/5, less what overlaps


def test_warped_time_is_piecewise_linear():
    """Read from a ramp: two slopes that meet at the moved time, and ends that stay."""
    last, steps = 40, 8.0
    ramp = np.arange(last + 1, dtype=np.float32)[:, None]
    x = np.concatenate([ramp, noise((last + 1, 2))], -1)
    ys = np.float64(mapped(augment.time_warp(steps), keys(200), x))
    places = ys[..., 0]
    assert (np.diff(places) > 0).all()
    np.testing.assert_allclose(places[:, [0, -1]], [[0, last]] * 200, atol=1e-4)
    for y, place in zip(ys[:20], places[:20], strict=True):
        for channel in (1, 2):
            want = np.interp(place, ramp[:, 0], x[:, channel])
            np.testing.assert_allclose(y[:, channel], want, atol=1e-4)
    first, second = places[:, 1], last - places[:, -2]  # the slopes before and after
    bent = np.abs(first - second) > 0.02
    moved = (last - second * last) / (first - second)  # first t = last - second (last - t)
    c = first * moved
    covers_within(c[bent], steps, last - steps)
    covers_within((moved - c)[bent], -steps, steps)
    knees = np.abs(np.diff(places, 2, axis=1)) > 2e-3
    assert knees.sum(1).max() <= 2  # around one time


def covers_within(values, low, high):
    assert values.min() > low - 0.1 and values.max() < high + 0.1
    assert np.ptp(values) > 0.9 * (high - low)


def test_time_of_one_step_and_of_no_warp_stays():
    traced = jax.jit(lambda steps, x: augment.time_warp(steps)(jax.random.key(0), x))
    for shape in ((1, 3), (5, 1)):
        x = noise(shape)
        np.testing.assert_allclose(traced(0.0, x), x, atol=1e-6)
    assert np.isfinite(traced(100.0, noise((5, 1)))).all()  # at most (T - 1) / 2 then
    x = noise((9, 1))
    x[[0, -1]] = np.inf  # which stay infinite, and alone but for their neighbours
    y = np.asarray(traced(1.5, x))
    assert (y[[0, -1]] == np.inf).all() and np.isfinite(y[4]).all()


def test_noise_takes_sequences():
    y = augment.noise(1.0)(jax.random.key(0), jnp.zeros((7, 3)))
    assert y.shape == (7, 3) and len(np.unique(y)) == 21


def test_tokens_are_hidden_replaced_and_kept_at_their_rates():
    n, vocabulary, rate = 40_000, 50, 0.15
    tokens = np.random.default_rng(0).integers(0, vocabulary, (4, n // 4)).astype(np.int32)
    hide = augment.mask_tokens(rate, 3, vocabulary, special=(0, 7))
    x, chosen = map(np.asarray, jax.jit(hide)(jax.random.key(0), tokens))
    assert x.dtype == np.int32 and chosen.dtype == bool
    np.testing.assert_array_equal(x[~chosen], tokens[~chosen])
    special = np.isin(tokens, (0, 7))
    assert not chosen[special].any()
    near(chosen[~special], rate)
    was, now = tokens[chosen], x[chosen]
    near(now == 3, 0.8 + 0.1 / vocabulary, slack=0.006)  # and the token that 3 itself was
    near((now != 3) & (now != was), 0.1 * (1 - 2 / vocabulary), slack=0.003)
    replaced = now[(now != 3) & (now != was)]
    counts = np.bincount(replaced, minlength=vocabulary)
    assert (counts > 0).sum() >= vocabulary - 3 and counts.max() < 5 * counts.mean()


def near(hits, rate, slack=0.0):
    assert abs(hits.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / hits.size) + slack


def test_all_chosen_tokens_are_hidden_if_asked():
    hide = jax.jit(lambda rate, t: augment.mask_tokens(rate, 9, 10, masked=1, replaced=0)(KEY, t))
    tokens = np.zeros((5, 40), np.uint8)
    x, chosen = hide(0.5, tokens)
    np.testing.assert_array_equal(x, np.where(chosen, 9, 0))
    assert x.dtype == np.uint8 and not hide(0.0, tokens)[1].any() and hide(1.0, tokens)[1].all()


KEY = jax.random.key(0)


def test_a_network_learns_what_is_hidden():
    """By a loss function of its own, since the loss needs to know what was chosen."""
    net, tx = fnn.serial(fnn.embedding(6, 8), fnn.dense(6)), fnn.optim.adam(0.1)
    hide = augment.mask_tokens(0.5, 5, 6, masked=1.0, replaced=0.0)

    def loss_fn(params, state, tokens, key):
        x, chosen = hide(key, tokens)
        logits, state = net.apply(params, state, x, key=key, train=True)
        losses = fnn.losses.softmax_cross_entropy(logits, tokens, mask=chosen)
        return fnn.losses.mean(losses, chosen), (state, {})

    tokens = np.where(np.arange(64).reshape(8, 8) % 4 == 0, 1, 2).astype(np.int32)
    ts = fnn.train.init(net, tx, KEY, tokens)
    step = fnn.train.step(loss_fn, tx)
    for _ in range(60):
        ts, metrics = step(ts, tokens)
    p = jax.nn.softmax(net(ts.params, asarray([5])))[0]
    np.testing.assert_allclose(p[1:3], [0.25, 0.75], atol=0.1)  # the share of each


@pytest.mark.parametrize("length", [3, 7])
def test_spans_longer_than_the_axis_are_refused(length):
    with pytest.raises(fnn.errors.ShapeError, match=f"at least length={length}"):
        augment.mask_spans(1, length)(KEY, np.ones((2, 9), np.float32))
