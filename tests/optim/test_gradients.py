"""Accumulation, SAM, per-example clipping and loss scaling as wrappers of a loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from fnn.optim import accumulate, adjust_loss_scale, loss_scale, per_example_clip, sam, scale_loss
from tests.optim import oracles_gradients
from tests.support import asarray

B, C = 12, 3


seeds = st.integers(0, 2**32 - 1)


def loss(w, x, y):
    return jnp.mean(jnp.square(x @ w - y)) / 2


def loss_and_aux(w, x, y):
    r = x @ w - y
    return jnp.mean(jnp.square(r)) / 2, {"mean": jnp.mean(r), "last": asarray(r.shape[0])}


def problem(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=C), rng.normal(size=(B, C)), rng.normal(size=B)


WRAPPED = {
    "accumulate": (
        partial(accumulate, k=4),
        lambda w, x, y: oracles_gradients.least_squares(w, x, y),
    ),
    "all in one part": (
        partial(accumulate, k=1),
        lambda w, x, y: oracles_gradients.least_squares(w, x, y),
    ),
    "sam": (partial(sam, rho=0.5), partial(oracles_gradients.sam, rho=0.5)),
    "scale_loss": (
        partial(scale_loss, scale=2.0**10),
        lambda w, x, y: oracles_gradients.least_squares(w, x, y),
    ),
    "per_example_clip": (
        partial(per_example_clip, max_norm=0.7),
        partial(oracles_gradients.per_example_clip, max_norm=0.7),
    ),
}


COMPILED = {name: jax.jit(build(loss)) for name, (build, _) in WRAPPED.items()}


every_wrapper = pytest.mark.parametrize("name", WRAPPED)


@every_wrapper
@given(seed=seeds)
def test_value_and_gradient_are_the_float64_formula(name, seed):
    w, x, y = problem(seed)
    want = WRAPPED[name][1](w, x, y)
    with jax.enable_x64(True):
        got = COMPILED[name](*map(asarray, (w, x, y)))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-11, atol=1e-13)


@every_wrapper
def test_aux_argnums_and_keywords(name):
    """Floating aux is the mean over the batch, other aux the last; like jax.value_and_grad else."""
    build, _ = WRAPPED[name]
    w, x, y = (asarray(a, jnp.float32) for a in problem(0))
    plain = build(loss)(w, x, y)
    (value, aux), g = build(loss_and_aux, has_aux=True)(w, x, y)
    np.testing.assert_allclose(value, plain[0], rtol=1e-6)
    np.testing.assert_allclose(g, plain[1], rtol=1e-5)
    np.testing.assert_allclose(aux["mean"], jnp.mean(x @ w - y), rtol=1e-5)
    size = {"accumulate": B // 4, "per_example_clip": 1}.get(name, B)
    assert aux["last"] == size and aux["last"].dtype == jnp.int32
    _, g = build(loss)(w, x, y=y)
    np.testing.assert_allclose(g, plain[1], rtol=1e-6)
    _, g = build(lambda x, w, y: loss(w, x, y), argnums=-2)(x, w, y)
    np.testing.assert_allclose(g, plain[1], rtol=1e-6)
    two = build(lambda w, x, v, y: loss(w + v, x, y), argnums=(0, 2))
    _, (g, h) = two(w / 2, x, w / 2, y)
    np.testing.assert_allclose(g, h, rtol=1e-6)


@every_wrapper
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_params(name, dtype):
    build, oracle = WRAPPED[name]
    narrow = [asarray(a, dtype) for a in problem(0)]
    value, g = build(loss)(*narrow)
    assert value.dtype == dtype
    assert g.dtype == (jnp.float32 if name == "scale_loss" else dtype)
    _, want = oracle(*(np.float64(a) for a in narrow))
    np.testing.assert_allclose(np.float64(g), want, atol=0.1 if dtype == "bfloat16" else 0.01)


@every_wrapper
def test_vmap_and_second_derivatives(name):
    build, _ = WRAPPED[name]
    w, x, y = (asarray(a, jnp.float32) for a in problem(1))
    fn = build(loss)
    lanes = jax.jit(jax.vmap(lambda w: fn(w, x, y)[1]))(jnp.stack([w, 2 * w, 0 * w]))
    for i, scale in enumerate((1, 2, 0)):
        np.testing.assert_allclose(lanes[i], fn(scale * w, x, y)[1], rtol=1e-4, atol=1e-6)

    def length(w):
        return jnp.sum(jnp.square(fn(w, x, 0 * y)[1]))

    for at in (w, 0 * w):  # at zero all gradients are zero
        forward = jax.jit(lambda w: jax.jvp(length, (w,), (w + 1,))[1])(at)
        reverse = jnp.vdot(jax.jit(jax.grad(length))(at), at + 1)
        np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-6)


def test_parts_add_up_in_float32():
    """1,024 parts of gradient 1 in bfloat16, whose running sum would stop at 256."""
    w, x = jnp.ones((), jnp.bfloat16), jnp.ones(1024, jnp.bfloat16)
    value, g = jax.jit(accumulate(lambda w, x: jnp.mean(w * x), k=1024))(w, x)
    assert g == 1 and value == 1


def test_parts_draw_from_keys_of_their_own():
    def drawn(w, x, key):
        noise = jax.random.normal(key, x.shape)
        return jnp.mean(w * noise), noise

    (_, noise), g = accumulate(drawn, k=4, has_aux=True)(
        jnp.ones(()), jnp.ones(8), jax.random.key(0)
    )
    draws = [jax.random.normal(k, 2) for k in jax.random.split(jax.random.key(0), 4)]
    np.testing.assert_allclose(noise, np.mean(draws, 0), rtol=1e-5)
    np.testing.assert_allclose(g, np.mean(draws), rtol=1e-5)
    keys = jax.random.split(jax.random.key(1), 8)  # a key an example is a batch of keys
    accumulate(lambda w, keys: w * jax.random.normal(keys[0]), k=4)(jnp.ones(()), keys)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((jnp.ones(C), jnp.ones((7, C)), jnp.ones(7)), errors.ShapeError, "k=4 divides"),
        ((jnp.ones(C), jnp.ones((8, C)), jnp.ones(4)), errors.ShapeError, "first axis"),
        ((jnp.ones(C), jnp.ones((0, C)), jnp.ones(0)), errors.ShapeError, "first axis"),
        ((jnp.ones(C), 1.0, 2.0), errors.ShapeError, "first axis"),
        ((jnp.ones(C),), errors.ShapeError, "first axis"),
        ((jnp.arange(C), jnp.ones((8, C)), jnp.ones(8)), errors.DtypeError, "floating"),
        ((), errors.OptionError, "argnums"),
    ],
)
def test_batches_that_cannot_be_cut(args, error, message):
    with pytest.raises(error, match=message) as caught:
        accumulate(loss, k=4)(*args)
    assert str(caught.value).startswith("accumulate: ")


def test_sam_at_a_minimum_and_over_a_tree():
    value, g = jax.jit(sam(lambda w: jnp.sum(w**2), rho=0.5))(jnp.zeros(2))
    assert value == 0 and (g == 0).all()
    w = {"a": asarray([3.0]), "b": asarray(4.0)}  # the norm is of both: e = rho w / |w|
    _, g = sam(lambda w: jnp.sum(w["a"] ** 2) + w["b"] ** 2, rho=1.0)(w)
    np.testing.assert_allclose([g["a"][0], g["b"]], [7.2, 9.6], rtol=1e-6)
    slope = jax.grad(lambda rho: sam(lambda w: w**3, rho=rho)(jnp.ones(()))[1])(0.5)
    np.testing.assert_allclose(slope, 6 * 1.5, rtol=1e-5)  # d/drho 3 (1 + rho)^2


def test_private_gradients_have_the_noise_of_the_paper():
    """N(0, sigma^2 C^2) / B, in 20,000 values that have no gradient of their own."""
    n, batch, most, sigma = 20_000, 4, 2.0, 1.5

    def flat(w, x):
        return jnp.mean(x) * jnp.sum(0 * w)

    fn = jax.jit(per_example_clip(flat, most, sigma, jax.random.key(0)))
    _, g = fn(jnp.zeros(n), jnp.ones(batch))
    want = (sigma * most / batch) ** 2
    assert abs(float(g.mean())) < 5 * (want / n) ** 0.5
    assert abs(float(g.var()) / want - 1) < 5 * (2 / n) ** 0.5
    again = fn(jnp.zeros(n), jnp.ones(batch))[1]
    np.testing.assert_array_equal(again, g)

    def keyed(w, x, key):
        return flat(w, x)

    fn = jax.jit(per_example_clip(keyed, most, sigma))  # the key of the call
    a, b = (fn(jnp.zeros(n), jnp.ones(batch), jax.random.key(i))[1] for i in (1, 2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / n**0.5
    with pytest.raises(errors.RandomKeyError, match="a key for the noise"):
        per_example_clip(flat, most, sigma)(jnp.zeros(2), jnp.ones(batch))


def test_no_example_weighs_more_than_the_rest_allow():
    """Changing one example moves the sum by at most 2 C, whatever it is changed to."""
    w, x, y = (asarray(a, jnp.float32) for a in problem(2))
    fn = jax.jit(per_example_clip(loss, max_norm=0.3))
    before = fn(w, x, y)[1]
    for wild in (1e3, -1e10, 0.0):
        after = fn(w, x.at[0].set(wild), y)[1]
        assert jnp.linalg.norm(after - before) * B <= 0.6 + 1e-4


def network():
    return fnn.serial(fnn.dense(4), fnn.batch_norm(), jnp.tanh, fnn.dropout(0.5), fnn.dense(1))


def mse(net, seen=None):
    def loss_fn(params, state, batch, key):
        x, y = batch
        out, state = net.apply(params, state, x, key=key, train=True)
        return jnp.mean(jnp.square(out - y)), (state, {"size": asarray(float(len(x)))})

    return loss_fn


@pytest.mark.parametrize(
    ("grad", "size"),
    [
        (jax.value_and_grad, 8),
        (partial(accumulate, k=4), 2),
        (partial(sam, rho=0.05), 8),
        (partial(scale_loss, scale=1024.0), 8),
        (partial(per_example_clip, max_norm=1.0, noise_multiplier=0.1), 1),
    ],
    ids=["plain", "accumulate", "sam", "scale_loss", "per_example_clip"],
)
def test_a_step_differentiates_as_it_is_told(grad, size):
    net, tx = network(), fnn.optim.sgd(0.1)
    batch = jnp.ones((8, 3)), jnp.ones((8, 1))
    start = fnn.train.init(net, tx, jax.random.key(0), (1, 3))
    step = fnn.train.step(mse(net), tx, grad=grad)
    train_state, metrics = step(*step(start, batch)[:1], batch)
    assert metrics["size"] == size
    assert jnp.isfinite(metrics["loss"])
    structs = [jax.tree.map(lambda a: (a.shape, a.dtype), s) for s in (start, train_state)]
    assert structs[0] == structs[1]
    assert train_state.step == 2


def test_a_step_in_parts_is_the_step():
    """Without dropout and batch norm, whose parts are their own."""
    net, tx = fnn.serial(fnn.dense(4), jnp.tanh, fnn.dense(1)), fnn.optim.sgd(0.1)
    rng = np.random.default_rng(0)
    batch = tuple(asarray(rng.normal(size=s), jnp.float32) for s in ((8, 3), (8, 1)))
    start = fnn.train.init(net, tx, jax.random.key(0), (1, 3))
    whole, parts = (
        fnn.train.step(mse(net), tx, **options)(start, batch)
        for options in ({}, {"grad": partial(accumulate, k=4)})
    )
    np.testing.assert_allclose(whole[1]["loss"], parts[1]["loss"], rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(s[0].params) for s in (whole, parts)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


WRONG = {
    "no function": lambda: accumulate(3, k=2),
    "k": lambda: accumulate(loss, k=0),
    "broken k": lambda: accumulate(loss, k=1.5),
    "rho": lambda: sam(loss, rho=-1.0),
    "max_norm": lambda: per_example_clip(loss, -1.0),
    "noise_multiplier": lambda: per_example_clip(loss, 1.0, -1.0),
    "scale": lambda: scale_loss(loss, -1.0),
    "first scale": lambda: loss_scale(0.5),
    "period": lambda: adjust_loss_scale(loss_scale(), jnp.ones(1), period=0),
    "factor": lambda: adjust_loss_scale(loss_scale(), jnp.ones(1), factor=0.5),
    "argnums": lambda: sam(loss, argnums=5)(jnp.ones(1)),
    "grad of a step": lambda: fnn.train.step(loss, fnn.optim.sgd(0.1), grad=3),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    with pytest.raises(errors.OptionError):
        WRONG[name]()
    with pytest.raises(errors.InputError, match="a LossScale"):
        adjust_loss_scale(jnp.ones(()), jnp.ones(1))
    with pytest.raises(errors.RandomKeyError):
        per_example_clip(loss, 1.0, 1.0, 3)


def test_complex_params_by_parts_and_at_the_worst_place():
    w = jnp.array([1.0 + 2.0j, -0.5j], jnp.complex64)
    x = asarray([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0], [1.0, 1.0]])

    def loss(w, x):  # |x w|^2, of which jax.grad is the conjugate of the way up
        return jnp.mean(jnp.abs(x.astype(w.dtype) @ w) ** 2)

    value, grad = accumulate(loss, k=2)(w, x)
    np.testing.assert_allclose(value, loss(w, x), rtol=1e-6)
    np.testing.assert_allclose(grad, jax.grad(loss)(w, x), rtol=1e-5)
    up = np.conj(np.asarray(jax.grad(loss)(w, x), np.complex128))
    place = jnp.complex64(np.asarray(w) + 0.1 * up / np.linalg.norm(up))
    assert loss(place, x) > loss(w, x)
    np.testing.assert_allclose(sam(loss, 0.1)(w, x)[1], jax.grad(loss)(place, x), rtol=1e-4)
