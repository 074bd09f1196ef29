"""Decoupled weight decay: the contract, and what is refused."""

import jax.numpy as jnp
import pytest

import fnn
from fnn import errors
from tests.optim.contract import contract
from tests.optim.rows_decay import ROWS

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


o, sgd = fnn.optim, fnn.optim.sgd(0.1)


WRONG = {
    "decay below zero": (lambda: o.add_decayed_weights(-1.0), errors.OptionError),
    "decay no number": (lambda: o.add_decayed_weights("a"), errors.OptionError),
    "no params to decay": (
        lambda: o.add_decayed_weights(0.1).update(jnp.ones(2), ()),
        errors.ParamsError,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    call, kind = WRONG[name]
    with pytest.raises(kind):
        call()
