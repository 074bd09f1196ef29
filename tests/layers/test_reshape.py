"""Layers that only rearrange values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers.support import leading
from tests.support import asarray, assert_close


@pytest.mark.parametrize("lead", [(), (2,), (2, 0, 3)])
@pytest.mark.parametrize(
    "n, tail, shape, wanted",
    [
        (1, (12,), (3, 4), (3, 4)),
        (1, (12,), (2, -1, 3), (2, 2, 3)),
        (2, (3, 4), (-1,), (12,)),
        (2, (3, 4), (4, 3), (4, 3)),
        (3, (2, 3, 2), (12, 1), (12, 1)),
        (1, (1,), (), ()),
        (2, (0, 4), (4, 0), (4, 0)),
        (2, (0, 4), (2, -1), (2, 0)),
    ],
)
def test_reshape_gives_the_last_axes_another_shape(lead, n, tail, shape, wanted):
    x = np.arange(np.prod((*lead, *tail))).reshape(*lead, *tail)
    net = fnn.reshape(shape, n)
    assert net.init(jax.random.key(0), x) == ({}, {})
    np.testing.assert_array_equal(jax.jit(net)({}, x), x.reshape((*lead, *wanted)))


def test_a_shape_that_does_not_fit_is_refused():
    for shape in ((-1, -1), (-1, 0), (2.5,), (-2,), 3, None, "text", (True,), (jnp.ones(2),)):
        with pytest.raises(errors.OptionError, match="^reshape: expected .*shape"):
            fnn.reshape(shape)
    with pytest.raises(errors.OptionError, match="feature_axes to be"):
        fnn.reshape((3,), 0)
    for shape, n, x in (((5,), 1, (2, 4)), ((3, -1), 1, (2, 4)), ((4,), 3, (2, 4)), ((), 1, (4,))):
        with pytest.raises(errors.ShapeError, match="^reshape: "):
            fnn.reshape(shape, n).init(jax.random.key(0), x)


@given(lead=leading, tail=st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_flatten_joins_the_last_axes(lead, tail):
    x = np.arange(np.prod((*lead, *tail))).reshape(*lead, *tail).astype("float32")
    y = fnn.flatten(len(tail))({}, asarray(x))
    assert_close(y, x.reshape(*lead, int(np.prod(tail))), dtype="float32")
