"""Losses of embeddings of any length, and of masked pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import losses
from tests.losses import oracles as plain
from tests.losses.support import jitted, with_gradient
from tests.support import asarray, assert_close


def test_masked_pairs_are_nobodys_candidates():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 4, 3))
    mask = np.array([[True, False, True, True], [False, False, False, False]])
    spoilt = [asarray(np.where(mask[..., None], x, np.nan), "float32") for x in (a, b)]

    @jax.jit
    def run(*pair):
        out, vjp = jax.vjp(lambda a, b: losses.info_nce(a, b, 0.3, mask=mask), *pair)
        return out, vjp(jnp.ones_like(out))

    got, gradient = run(*spoilt)
    kept = mask[0]
    assert_close(got[0][kept], plain.info_nce(a[0][kept], b[0][kept], 0.3), dtype="float32")
    assert (np.asarray(got)[~mask] == 0).all()
    for g in gradient:
        assert np.isfinite(g).all() and (np.asarray(g)[~mask] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_cosines_of_any_length_and_of_none(scale):
    a = asarray([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]) * scale
    b = asarray([[4.0, 3.0], [1.0, 2.0], [-2.0, 0.0]])
    got, gradient = with_gradient("cosine_distance")(a, b)
    np.testing.assert_allclose(got, [1 - 24 / 25, 1, 2], rtol=1e-5)
    assert all(jnp.isfinite(g).all() for g in gradient)
    np.testing.assert_array_equal(gradient[0][1], [0, 0])
    np.testing.assert_array_equal(gradient[1][1], [0, 0])
    zero = np.zeros((3, 2), "float32")
    np.testing.assert_allclose(jitted("info_nce")(zero, b), np.log([3, 3, 3]), rtol=1e-6)
