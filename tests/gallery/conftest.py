"""Examples run as a user has them: with standard promotion, and without a screen."""

import jax
import pytest


@pytest.fixture(autouse=True)
def as_a_user_has_it():
    import matplotlib

    matplotlib.use("Agg")
    with jax.numpy_dtype_promotion("standard"):
        yield
