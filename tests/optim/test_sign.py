"""signSGD, Signum, Lion and Rprop: the contract, and Rprop by hand."""

import jax
import optax
from numpy.testing import assert_allclose

from fnn import optim
from tests.optim import oracles
from tests.optim.contract import contract
from tests.optim.rows_sign import ROWS
from tests.optim.support import updates_of

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_rprop_moves_by_the_gradient_it_was_given():
    grads = [[1.0], [2.0], [-1.0], [-1.0]]
    assert_allclose(updates_of(optim.rprop(0.1), grads)[:, 0], [-0.1, -0.12, 0, 0.06], rtol=1e-6)
    with jax.numpy_dtype_promotion("standard"):
        theirs = updates_of(optax.rprop(0.1), grads)
    assert_allclose(theirs[:, 0], [0, -0.1, 0, 0], rtol=1e-6)


def test_the_oracle_of_sign_turns_with_its_argument():
    assert oracles.sign(3j) == 1j
