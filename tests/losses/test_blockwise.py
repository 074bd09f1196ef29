"""A loss in blocks is the loss at once, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.losses import blockwise
from tests.support import asarray

HEAD = fnn.dense(50)


def losses(params, h, labels, block):
    def rows(h, labels):
        return fnn.losses.softmax_cross_entropy(HEAD(params, h), labels)

    return blockwise(rows, h, labels, block=block)


@pytest.mark.parametrize("block", [1, 4, 7, 21, 100])
def test_values_and_derivatives_are_numpys(block):
    rng = np.random.default_rng(0)
    h, labels = rng.normal(size=(3, 7, 6)), rng.integers(0, 50, (3, 7))
    kernel, bias = rng.normal(size=(6, 50)), rng.normal(size=50)
    logits = h @ kernel + bias
    log_sum = np.log(np.exp(logits).sum(-1))
    wanted = log_sum - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    slope = np.exp(logits - log_sum[..., None]) - np.eye(50)[labels]  # of the sum, by logits
    with jax.enable_x64(True):
        params = {"kernel": asarray(kernel), "bias": asarray(bias)}
        along = jax.tree.map(jnp.ones_like, params)

        @jax.jit
        def every(params, h):
            def total(params, h):
                y = losses(params, h, labels, block)
                return y.sum(), y

            (_, y), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(params, h)
            moved = jax.jvp(lambda p: total(p, h)[0], (params,), (along,))[1]
            return y, grads, moved

        y, (of_params, of_h), moved = every(params, asarray(h))
    np.testing.assert_allclose(y, wanted, atol=1e-12)
    np.testing.assert_allclose(of_h, slope @ kernel.T, atol=1e-12)
    np.testing.assert_allclose(of_params["bias"], slope.sum((0, 1)), atol=1e-12)
    by_kernel = np.einsum("btc,btv->cv", h, slope)
    np.testing.assert_allclose(of_params["kernel"], by_kernel, atol=1e-12)
    np.testing.assert_allclose(moved, by_kernel.sum() + slope.sum(), atol=1e-10)


def test_the_logits_are_never_whole():
    head = fnn.dense(8000)

    def temporaries(block):
        def loss(params, h, labels):
            def rows(h, labels):
                return fnn.losses.softmax_cross_entropy(head(params, h), labels)

            return blockwise(rows, h, labels, block=block).mean()

        params = jax.eval_shape(lambda: head.init(jax.random.key(0), (1, 16))[0])
        h = jax.ShapeDtypeStruct((4, 1024, 16), jnp.float32)
        labels = jax.ShapeDtypeStruct((4, 1024), jnp.int32)
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, h, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4 * 1024 * 8000 * 4
    assert temporaries(128) < whole / 5 < whole < temporaries(4096)


def test_any_rows_and_trailing_axes():
    x = np.arange(24.0).reshape(4, 3, 2)
    got = blockwise(lambda a: 2 * a, asarray(x), axes=1, block=3)
    np.testing.assert_array_equal(got, 2 * x)
    assert blockwise(lambda a: a.sum(-1), jnp.ones((0, 5, 2)), block=3).shape == (0, 5)


def test_mistakes():
    x = jnp.ones((2, 5))
    with pytest.raises(errors.ShapeError, match="blockwise: .*share their first 2"):
        blockwise(lambda a, b: a, x, jnp.ones((2, 4)))
    with pytest.raises(errors.ShapeError, match="one value for each of 10 rows"):
        blockwise(lambda a: a.mean(), x)
    with pytest.raises(errors.OptionError, match="block"):
        blockwise(lambda a: a, x, block=0)
