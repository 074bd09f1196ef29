"""New values by pattern."""

import jax
import jax.numpy as jnp
import numpy as np

from fnn import tree
from tests.tree.support import PARAMS


def test_update_by_pattern_and_by_dict():
    new = tree.update(PARAMS, "conv1/bias", np.ones(2, np.float32))
    np.testing.assert_array_equal(new["conv1"]["bias"], [1, 1])
    np.testing.assert_array_equal(PARAMS["conv1"]["bias"], [0, 0])  # the old tree is as it was
    assert new["block"]["bn"]["scale"] is PARAMS["block"]["bn"]["scale"]
    new = tree.update(PARAMS, {"*/kernel": lambda k: 3 * k, "conv1/bias": lambda b: b - 1})
    np.testing.assert_array_equal(new["conv1"]["kernel"], 3 * PARAMS["conv1"]["kernel"])
    np.testing.assert_array_equal(new["block"]["conv1"]["kernel"], np.full((3, 3, 2, 2), 3))
    np.testing.assert_array_equal(new["conv1"]["bias"], [-1, -1])
    other = tree.update(PARAMS, "conv1/bias", np.ones(7), strict=False)
    assert other["conv1"]["bias"].shape == (7,)
    pair = tree.update((jnp.ones(2), jnp.ones(3)), "1", jnp.zeros(3))
    assert isinstance(pair, tuple) and float(pair[1][0]) == 0 and float(pair[0][0]) == 1


def test_update_under_jit_equals_eager():
    def scaled(params, by):
        return tree.update(params, "*/kernel", lambda kernel: by * kernel)

    eager = scaled(PARAMS, np.float32(2))
    assert not tree.compare(jax.jit(scaled)(PARAMS, np.float32(2)), eager)
