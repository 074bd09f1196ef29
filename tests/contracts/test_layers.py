"""One contract over all layers: each row of the table goes through check_layer."""

import pytest

from fnn.testing import check_layer
from tests.contracts.layers import HEAVY, LAYERS, VARIANTS
from tests.support import but_full


@pytest.mark.parametrize("name", but_full(LAYERS, HEAVY + VARIANTS))
def test_contract(name):
    layer, *shapes = LAYERS[name]
    check_layer(layer, *shapes)
