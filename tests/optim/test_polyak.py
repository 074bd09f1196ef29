"""Polyak's step: the contract, and where optax differs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from fnn import optim
from tests.optim.contract import contract
from tests.optim.rows_polyak import ROWS
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_polyaks_step_is_scaled_and_not_cut():
    """f = |x|^2 / 2: gamma is 1 / 2, and scaling 0.5 makes half of it; optax's gamma is then 2."""
    x = asarray([3.0, 4.0])

    def step(library, x, **options):
        tx = library.polyak_sgd(**options)
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(x, tx.init(x), x, value=jnp.sum(x**2) / 2)[0]

    options = dict(scaling=0.5, max_learning_rate=10.0)
    np.testing.assert_allclose(step(optim, x, **options), -x / 4)
    np.testing.assert_allclose(step(optax, x, **options), -x)
    tiny = asarray([3e-10, 4e-10])
    np.testing.assert_allclose(step(optim, tiny), -tiny / 2, rtol=1e-6)
    assert (step(optax, tiny) == 0).all()
