"""Tables that hypothesis makes, and what every fitted function must do."""

import tempfile

import jax
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fnn

# Of few digits, so that no oracle takes rounding for a deviation, and equal values are common.
values = st.integers(-400, 400).map(lambda i: i / 8)
few = st.integers(1, 12)
gaps = st.one_of(values, values, st.just(np.nan))


@st.composite
def columns(draw, elements=gaps, rows=few):
    """Numbers [n, C], some of them missing, but none in every row; some columns constant."""
    x = draw(hnp.arrays(np.float64, (draw(rows), draw(st.integers(1, 4))), elements=elements))
    for c in range(x.shape[1]):
        if np.isnan(x[:, c]).all():
            x[draw(st.integers(0, len(x) - 1)), c] = draw(values)
        if draw(st.integers(0, 4)) == 0:
            x[:, c] = draw(values)
    return x


def batches(x, *cuts):
    """An iterator of parts of an array."""
    return iter(part for part in np.split(x, cuts) if len(part))


def saved(fitted):
    """What a checkpoint returns of a fitted function."""
    with tempfile.TemporaryDirectory() as directory:
        fnn.checkpoint.save(f"{directory}/fitted", fitted)
        return fnn.checkpoint.restore(f"{directory}/fitted", fitted)


def assert_same_tree(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(one) is type(other) and one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


call = jax.jit(lambda fitted, x: fitted(x))  # fitted as an argument; one program per structure
