"""Optimistic gradient descent and Adam: the contract."""

from tests.optim.contract import contract
from tests.optim.rows_optimistic import ROWS

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)
