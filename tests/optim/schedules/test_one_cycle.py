"""One cycle between counts."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from fnn import optim


def test_one_cycle_between_counts():
    """A peak at 2.5 is reached by no count, as documented; optax's is at 2, and PyTorch's at 1.5.

    So the value depends smoothly on pct_start, and may be differentiated by it."""

    def cycle(pct_start):
        return optim.schedules.one_cycle(10, 1.0, pct_start, div_factor=2.0, kind="linear")

    values = np.asarray(cycle(0.25)(jnp.arange(11)))
    assert_allclose(values[:3], [0.5, 0.7, 0.9], rtol=1e-6)
    assert values.max() < 1
    assert optim.schedules.one_cycle(10, 1.0, 0.3)(3) == 1
    slope = jax.grad(lambda pct_start: cycle(pct_start)(1))
    assert_allclose(slope(0.25), -0.5 / (0.25**2 * 10), rtol=1e-5)
