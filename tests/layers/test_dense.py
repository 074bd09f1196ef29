"""Affine maps against their loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from fnn.testing import mutations
from tests.layers import oracles
from tests.layers.support import (
    DTYPES,
    KEY,
    assert_linear_layer,
    drawn,
    leading,
    run_and_pull_all,
    seeds,
    wide,
)
from tests.support import (
    NOT_ARRAYS,
    asarray,
    assert_close,
    assert_teaches,
    numeric_vjp,
    outcome,
    same_under_jit,
    shape_mutations,
)


@given(
    lead=leading,
    cin=st.integers(1, 3),
    features=st.integers(1, 3),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_dense_is_the_loop(lead, cin, features, bias, dtype, seed):
    draw = np.random.default_rng(seed).normal
    params = {"kernel": draw(size=(cin, features))}
    if bias:
        params["bias"] = draw(size=features)
    assert_linear_layer(
        fnn.dense(features, use_bias=bias),
        {"params": params, "x": draw(size=(*lead, cin))},
        dtype,
        oracles.dense,
        oracles.dense_backward,
    )


@pytest.mark.parametrize("layer", [fnn.dense(3), fnn.conv(3, (2,)), fnn.batch_norm()])
def test_x_of_another_dtype_than_the_parameters_is_refused(layer):
    params, state = layer.init(jax.random.key(0), (2, 4, 3))
    with jax.numpy_dtype_promotion("standard"), pytest.raises(Exception, match="cast"):
        layer(params, jnp.ones((2, 4, 3), "bfloat16"), state=state)


def test_traced_options_are_scalars():
    def drop(rate):
        return fnn.dropout(rate)({}, jnp.ones((2, 3)))

    for call in (drop, jax.jit(drop)):
        with pytest.raises(fnn.FnnError, match="rate to be a number"):
            call(asarray([0.0, 0.5, 1.0]))
    with pytest.raises(fnn.FnnError, match="one number as scale"):
        init = fnn.initializers.normal(jnp.ones((5, 1)))
        fnn.dense(3, kernel_init=init).init(jax.random.key(0), (1, 5))


BILINEAR = {bias: fnn.bilinear(2, use_bias=bias) for bias in (False, True)}


FORMS = [  # use_bias, dtype, leading axes, A, B
    (True, "float64", (2,), 3, 2),
    (False, "float32", (2, 1), 1, 3),
    (True, "bfloat16", (2,), 3, 2),
    (True, "float32", (), 2, 2),
    (True, "float32", (0,), 2, 2),
    (True, "float32", (2,), 2, 0),
]


@given(case=st.sampled_from(FORMS), seed=seeds)
def test_bilinear_is_the_loop(case, seed):
    bias, dtype, lead, a, b = case
    with wide(dtype):
        arrays, exact = drawn(dtype, seed, (*lead, a), (*lead, b), (a, b, 2), (2,), (*lead, 2))
        x1, x2, kernel, shift, dy = arrays
        exact[3] = exact[3] * bias
        params = {"kernel": kernel, "bias": shift} if bias else {"kernel": kernel}
        y, dparams, (dx1, dx2) = run_and_pull_all(BILINEAR[bias], params, (x1, x2), dy)
        assert_close(y, oracles.bilinear(*exact[:4]), dtype=dtype)
        if dtype == "bfloat16":
            return
        tolerance = 1e-8 if dtype == "float64" else 1e-5
        for i, got in enumerate([dx1, dx2, dparams["kernel"], dparams.get("bias")]):

            def f(value, i=i):
                return oracles.bilinear(*exact[:i], value, *exact[i + 1 : 4])

            if got is not None:
                want = numeric_vjp(f, exact[i], exact[4])
                assert_close(got, want, dtype=dtype, tolerance=tolerance)


def test_bilinear_refuses_inputs_that_do_not_fit():
    net = fnn.serial(form=fnn.bilinear(2))
    params, _ = net.init(KEY, (5, 3), (5, 4))

    def call(x1, x2):
        return net(params, x1, x2)

    for right, wrong in (((5, 3), (5, 4)), ((5, 4), (5, 3))):
        for shape in shape_mutations(wrong):
            pair = [np.ones(right, "float32"), np.ones(shape, "float32")]
            error = same_under_jit(call, *(pair if right == (5, 3) else pair[::-1]))
            assert isinstance(error, (errors.ShapeError, errors.ParamsError)), shape
            assert_teaches(error, "form")
            assert str(shape) in str(error)
    x1, x2 = jnp.ones((5, 3)), jnp.ones((5, 4))
    for dtype in (int, bool, "complex64", "bfloat16"):
        for pair in ((x1.astype(dtype), x2), (x1, x2.astype(dtype))):
            assert isinstance(same_under_jit(call, *pair), errors.DtypeError)
    low = [x.astype("bfloat16") for x in (x1, x2)]
    assert isinstance(same_under_jit(call, *low), errors.DtypeError)
    for count in (0, 1, 3):
        error = outcome(net, params, *[x1] * count)
        assert isinstance(error, errors.InputError) and f"got {count}" in str(error)
    for wrong in NOT_ARRAYS:
        assert_teaches(outcome(net, params, wrong, x2), "form")
        assert_teaches(outcome(net, params, x1, wrong), "form")
    for _, wrong in mutations(params):
        assert same_under_jit(lambda p: net(p, x1, x2), wrong) is not None


def test_bilinear_keeps_the_variance_of_products():
    layer = fnn.bilinear(400, use_bias=False)
    params, _ = layer.init(KEY, (1, 30), (1, 20))
    assert params["kernel"].shape == (30, 20, 400)
    (x1, x2), _ = drawn("float32", 0, (100, 30), (100, 20))
    y = np.asarray(layer(params, x1, x2))
    wanted = np.mean(np.asarray(x1) ** 2, 1) * np.mean(np.asarray(x2) ** 2, 1)  # of each row
    assert abs(np.mean(y**2) / np.mean(wanted) - 1) < 0.05
