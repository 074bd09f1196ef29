"""Property tests for layers and optimizers, one call each.

fnn.testing.check_layer(my_layer(), (4, 8, 3))
fnn.testing.check_optimizer(my_transform(0.1))
"""

from fnn.testing.layers import check_layer, mutations
from fnn.testing.optimizers import check_optimizer

__all__ = ["check_layer", "check_optimizer", "mutations"]
