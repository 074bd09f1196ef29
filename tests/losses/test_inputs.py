"""Labels that no loss takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors, losses
from tests.support import asarray


def test_labels_beyond_32_bits_are_no_classes():
    """2^32 is 0 in 32 bits. In float32's mode NumPy's are refused, in x64 they are out of range."""
    scores, beyond = jnp.full((1, 3), 0.3), np.array([2**32])
    kinds = [
        losses.softmax_cross_entropy, losses.log_loss, losses.multiclass_hinge,
        fnn.metrics.accuracy().value, fnn.metrics.f1(3).value,
    ]  # fmt: skip
    for loss in kinds:
        with pytest.raises(errors.InputError, match="labels that int32 holds"):
            loss(scores, beyond)
    with jax.enable_x64(True):
        for loss in kinds:
            assert np.isnan(jax.jit(loss)(scores, asarray(beyond))).all()
        for loss in (losses.sigmoid_cross_entropy, fnn.metrics.roc_auc().value):
            assert np.isnan(jax.jit(loss)(scores[0, :1], asarray(beyond))).all()
        ctc = jax.jit(losses.ctc)(jnp.zeros((2, 3)), asarray(beyond + 1))
        assert np.isnan(ctc)
