"""A tree of params, trees of any names, and a walk through one."""

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

PARAMS = {
    "conv1": {"kernel": np.full((3, 3, 1, 2), 2.0, np.float32), "bias": np.zeros(2, np.float32)},
    "block": {
        "conv1": {"kernel": np.ones((3, 3, 2, 2), np.float32)},
        "bn": {"scale": np.ones(2, np.float32), "bias": np.zeros(2, jnp.bfloat16)},
    },
}


def walk(node, path=()):
    """(path, leaf) pairs of nested dicts, sorted by name."""
    if not isinstance(node, dict):
        return [("/".join(path), node)]
    return [pair for name in sorted(node) for pair in walk(node[name], (*path, name))]


NAMES = st.text("ab1_", min_size=1, max_size=3)


LEAVES = st.integers(0, 9)


DICTS = st.dictionaries(
    NAMES,
    st.recursive(LEAVES, lambda node: st.dictionaries(NAMES, node, min_size=1, max_size=3)),
    max_size=4,
)
