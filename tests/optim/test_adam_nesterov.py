"""NAdam and Adan: the contract, and Adan by hand."""

import jax
import numpy as np
import optax
from numpy.testing import assert_allclose

from fnn import optim
from tests.optim.contract import contract
from tests.optim.rows_adam_nesterov import ROWS
from tests.optim.support import updates_of

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_adan_weighs_the_change_by_b2():
    """g = 1, 2: by hand, with b1 = b3 = 0.5 and b2 = 0.75."""
    m, v, n = 0.5 * 0.5 + 0.5 * 2, 0.25 * 1, 0.5 * 0.5 + 0.5 * (2 + 0.75) ** 2
    want = (m / 0.75 + 0.75 * v / (1 - 0.75**2)) / np.sqrt(n / 0.75)
    options = dict(b1=0.5, b2=0.75, b3=0.5, eps=0.0)
    ours = updates_of(optim.scale_by_adan(**options), [[1.0], [2.0]])
    assert_allclose(ours[1], want, rtol=1e-6)
    with jax.numpy_dtype_promotion("standard"):
        theirs = updates_of(optax.scale_by_adan(**options), [[1.0], [2.0]])
    n = 0.5 * 0.5 + 0.5 * (2 + 0.25) ** 2
    assert_allclose(theirs[1], (m / 0.75 + 0.25 * v / (1 - 0.75**2)) / np.sqrt(n / 0.75), rtol=1e-6)
