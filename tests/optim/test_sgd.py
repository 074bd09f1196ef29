"""Gradient descent and its momentum: the contract, and narrow dtypes."""

import jax.numpy as jnp
import numpy as np

import fnn
from tests.optim.contract import contract
from tests.optim.rows_sgd import ROWS

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_small_rates_of_large_float16_gradients():
    update, _ = fnn.optim.sgd(1e-8).update(jnp.full(2, 1e4, jnp.float16), ())
    np.testing.assert_allclose(np.asarray(update, np.float32), -1e-4, rtol=1e-2)
