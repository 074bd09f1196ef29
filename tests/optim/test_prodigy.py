"""Prodigy: the contract, and the distance it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import errors, optim
from tests.optim.contract import contract
from tests.optim.rows_prodigy import ROWS
from tests.optim.support import minimized
from tests.support import refused

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_prodigy_finds_the_distance():
    """f = |x - 1|_1 from 0 in ten dimensions: d comes close to |x_0 - x*|_inf, never above it."""
    tx = optim.prodigy()
    target = jnp.ones(10)
    f = lambda x: jnp.sum(jnp.abs(x - target))  # noqa: E731
    x, opt_state, _ = jax.jit(lambda x: minimized(tx, f, x, 400))(jnp.zeros(10))
    assert 0.3 < opt_state[0].estim_lr <= 1.0
    np.testing.assert_allclose(x, 1.0, atol=0.3)


WRONG = {
    "prodigy b3": (lambda: optim.prodigy(b3=1.0), errors.OptionError),
    "prodigy rate": (lambda: optim.prodigy(-1.0), errors.OptionError),
    "prodigy d": (lambda: optim.prodigy(estim_lr0=-1.0), errors.OptionError),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_by_fnns_errors(name):
    refused(*WRONG[name])
