"""One contract over all layers: each row of the table goes through check_layer."""

import os

import pytest

from fnn.testing import check_layer
from tests.contracts.layers import HEAVY, LAYERS


@pytest.mark.parametrize("name", LAYERS)
def test_contract(name):
    if name in HEAVY and "FNN_QUICK" in os.environ:
        pytest.skip("in make test-full")
    layer, *shapes = LAYERS[name]
    check_layer(layer, *shapes)
