"""Transforms by patterns of paths."""

import jax
import jax.numpy as jnp
import pytest
from numpy.testing import assert_array_equal

import fnn
from fnn import optim
from tests.support import asarray


def test_partition_by_patterns_takes_the_first_that_matches():
    tx = optim.partition(
        {"head/bias": optim.sgd(3.0), "head/*": optim.sgd(2.0), "*": optim.sgd(1.0)}
    )
    g = {
        "head": {"kernel": jnp.ones(2), "bias": jnp.ones(1)},
        "body": {"kernel": jnp.ones(2), "bias": jnp.ones(1)},
    }
    updates, _ = tx.update(g, tx.init(g))
    assert jax.tree.map(lambda u: float(-u[0]), updates) == {
        "head": {"kernel": 2.0, "bias": 3.0},
        "body": {"kernel": 1.0, "bias": 1.0},
    }


def test_partition_by_patterns_is_partition_by_labels():
    g = {"a": asarray([1.0, 2.0]), "b": {"c": asarray(3.0)}}
    transforms = optim.adam(0.1), optim.sgd(0.2, momentum=0.5)
    by_pattern = optim.partition(dict(zip(("b/*", "*"), transforms, strict=True)))
    by_label = optim.partition(dict(zip(("x", "y"), transforms, strict=True)), {"a": "y", "b": "x"})
    states = by_pattern.init(g), by_label.init(g)
    for _ in range(3):
        first, one = by_pattern.update(g, states[0], g)
        second, two = by_label.update(g, states[1], g)
        states = one, two
        jax.tree.map(assert_array_equal, first, second)


def test_partition_by_patterns_refuses():
    g = {"head": {"kernel": jnp.ones(2)}, "body": {"kernel": jnp.ones(2)}}
    with pytest.raises(fnn.FnnError, match="none for body/kernel"):
        optim.partition({"head/*": optim.sgd(1.0)}).init(g)
    with pytest.raises(fnn.FnnError, match="tail"):
        optim.partition({"tail/*": optim.sgd(1.0), "*": optim.sgd(1.0)}).init(g)
    with pytest.raises(fnn.FnnError, match="patterns of paths as keys, or labels"):
        optim.partition({1: optim.sgd(1.0)})
