"""The digits that the shift of R2 keeps."""

import jax
import numpy as np

from fnn import metrics
from tests.metrics import oracles as metrics_oracles


def test_the_shift_of_r2_keeps_the_digits():
    rng = np.random.default_rng(0)
    targets = (3000 + rng.normal(size=1000)).astype("float32")
    outputs = (targets + rng.normal(size=1000) / 2).astype("float32")
    want = metrics_oracles.r2(np.float64(outputs), np.float64(targets))
    swept = jax.jit(lambda shift, targets: metrics.r2(shift).value(outputs, targets))
    for shift in (3000.0, 2998.0):
        np.testing.assert_allclose(swept(shift, targets), want, rtol=1e-5)
    assert abs(swept(0.0, targets) - want) > 1e-3  # which is why there is a shift
    assert np.isnan(swept(0.0, np.ones_like(targets)))
