"""Loss scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fnn
from fnn.optim import adjust_loss_scale, loss_scale, scale_loss
from tests.optim import oracles_loss_scaling
from tests.support import asarray


def loss(w, x, y):
    return jnp.mean(jnp.square(x @ w - y)) / 2


def test_scaling_saves_gradients_from_underflow():
    """3.7e-9 is zero in float16, whose smallest number is 6e-8."""
    tiny, w = jnp.float16(2**-14), jnp.ones(1, jnp.float16)

    def small(w):
        return tiny * (tiny * w).sum()

    assert jax.grad(small)(w) == 0
    value, g = jax.jit(scale_loss(small, 2.0**15))(w)
    assert value == small(w)
    np.testing.assert_array_equal(g, np.float32(2.0**-28))


@given(
    finite=st.lists(st.booleans(), max_size=20),
    period=st.integers(1, 4),
    factor=st.sampled_from([2.0, 4.0]),
    start=st.sampled_from([1.0, 8.0, 1024.0]),
)
@example(finite=[True] * 5 + [False, True, False, True], period=2, factor=2.0, start=8.0)
def test_the_scale_follows_the_gradients(finite, period, factor, start):
    want = oracles_loss_scaling.loss_scale(start, finite, period, factor)
    state, got = loss_scale(start), []
    for ok in finite:
        grads = {"a": jnp.ones(2), "b": asarray(1.0 if ok else jnp.inf)}
        state = ADJUST(state, grads, jnp.int32(period), jnp.float32(factor))
        got.append(float(state.scale))
    assert got == want


ADJUST = jax.jit(lambda s, g, period, factor: adjust_loss_scale(s, g, period=period, factor=factor))


def test_the_scale_is_torchs():
    torch = pytest.importorskip("torch")
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    w = torch.zeros(1, requires_grad=True)
    optimizer, state = torch.optim.SGD([w], 0.1), loss_scale(64)
    for ok in (True, True, True, False, True, False, True, True):
        scaler.scale((w * (1.0 if ok else float("inf"))).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        state = adjust_loss_scale(state, asarray(1.0 if ok else jnp.nan), period=2)
        assert scaler.get_scale() == state.scale


def test_the_scale_stays_finite():
    state = loss_scale(2.0**127)
    state = adjust_loss_scale(state, jnp.ones(1), period=1)
    assert state.scale == 2.0**127


def test_training_in_float16_finds_its_scale():
    """From a scale that overflows: steps are skipped until it fits, then the loss falls."""
    tx = fnn.optim.skip_nonfinite(fnn.optim.sgd(0.5))
    x, y = jnp.ones((4, 2), jnp.float16), jnp.ones(4, jnp.float16)

    def half(w, x, y):
        return loss(w.astype(jnp.float16), x, y)

    @jax.jit
    def step(w, opt_state, scaling):
        value, g = scale_loss(half, scaling.scale)(w, x, y)
        updates, opt_state = tx.update(g, opt_state, w)
        return w + updates, opt_state, adjust_loss_scale(scaling, g), value

    w = jnp.zeros(2)
    opt_state, scaling = tx.init(w), loss_scale(2.0**18)
    for _ in range(20):
        w, opt_state, scaling, value = step(w, opt_state, scaling)
    assert opt_state.total_notfinite == 3 and scaling.scale == 2.0**15
    assert value < 1e-3
