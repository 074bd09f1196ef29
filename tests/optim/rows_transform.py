"""Rows and oracles of chains."""

from hypothesis import strategies as st

import fnn
from tests.optim.rows import Row, rates
from tests.optim.rows_clip import clip_by_global_norm

sizes = st.sampled_from([0.0, 1e-3, 1.0, 1e6])


def clipped_sgd(grads, params, max_norm, learning_rate):
    clipped = clip_by_global_norm(grads, params, max_norm)
    return [{name: -learning_rate * u for name, u in step.items()} for step in clipped]


ROWS = {
    "named_chain": Row(
        build=lambda max_norm, learning_rate: fnn.optim.named_chain(
            clip=fnn.optim.clip_by_global_norm(max_norm), sgd=fnn.optim.sgd(learning_rate)
        ),
        oracle=clipped_sgd,
        options=dict(max_norm=sizes, learning_rate=rates),
        usual=dict(max_norm=1.0, learning_rate=0.1),
        scale="tree",
    ),
}
