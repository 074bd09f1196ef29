"""check_layer fails: each layer below breaks one promise, and the failure names it."""

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.testing import check_layer


def layer(fn, state=None):
    """A layer of fn(params, state, x, train) -> (y, state)."""

    def specs(x):
        kernel = fnn.Param(x.shape[-1:], fnn.initializers.normal(1.0), x.dtype)
        return {"kernel": kernel}, state or {}

    return fnn.leaf("faulty", specs, lambda p, s, x, key, train: fn(p, s, x, train))


def of(fn):
    return layer(lambda p, s, x, train: (fn(p["kernel"], x, train), s))


def with_tangent(rule):
    """kernel * sin(x), whose derivative by x is what `rule` makes of (kernel, x, dx)."""

    @jax.custom_jvp
    def product(kernel, x):
        return kernel * jnp.sin(x)

    @product.defjvp
    def _(primals, tangents):
        (kernel, x), (by_kernel, by_x) = primals, tangents
        return product(kernel, x), by_kernel * jnp.sin(x) + rule(kernel, x, by_x)

    return product


right = with_tangent(lambda kernel, x, v: kernel * jnp.cos(x) * v)
wrong_slope = with_tangent(lambda kernel, x, v: 1.01 * kernel * jnp.cos(x) * v)
wrong_bend = with_tangent(lambda kernel, x, v: kernel * jnp.cos(jax.lax.stop_gradient(x)) * v)


def other_when_traced(kernel, x, train):
    return kernel * x * (2 if isinstance(x, jax.core.Tracer) else 1)


def other_in_a_batch(kernel, x, train):
    return kernel * x + jnp.mean(x)


def of_another_dtype(kernel, x, train):
    return (kernel * x).astype(jnp.float32)


def counted(p, s, x, train):
    return p["kernel"] * x, {"count": s["count"] + 1}


def grown(p, s, x, train):
    return p["kernel"] * x, {"count": s["count"], "more": s["count"]} if train else s


COUNT = {"count": fnn.Param((), fnn.initializers.zeros, kind="statistic")}
FAULTS = {
    "grad in evaluation": (of(lambda k, x, train: wrong_slope(k, x)), "jvp .* in evaluation"),
    "grad in training alone": (
        of(lambda k, x, train: wrong_slope(k, x) if train else right(k, x)), "jvp .* in training"),
    "grad in evaluation alone": (
        of(lambda k, x, train: right(k, x) if train else wrong_slope(k, x)),
        "jvp .* in evaluation"),
    "second derivative": (of(lambda k, x, train: wrong_bend(k, x)), "jvp of grad .* in evaluation"),
    "jit": (of(other_when_traced), "jit equals eager"),
    "rows": (of(other_in_a_batch), "vmap over examples equals the batch"),
    "dtype": (of(of_another_dtype), "dtype out"),
    "evaluation changes state": (layer(counted, COUNT), "evaluation gives state back unchanged"),
    "state grows": (layer(grown, COUNT), "no more than count, got also more"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_promise_is_named(name):
    faulty, message = FAULTS[name]
    with pytest.raises((AssertionError, fnn.FnnError), match=message):
        check_layer(faulty, (4, 3))


right_kernel = of(lambda k, x, train: right(k, x))


def test_what_keeps_its_promises_passes():
    check_layer(right_kernel, (4, 3))


def test_params_that_are_not_checked():
    loose = fnn.Layer("loose", right_kernel.specs, lambda p, s, x, key=None, train=False: (x, s))
    with pytest.raises(AssertionError, match="loose: params with .* is accepted"):
        check_layer(loose, (4, 3))
