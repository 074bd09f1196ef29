"""Rows and oracles of skipped updates and narrow params."""

import optax

import fnn
from tests.optim.rows import Row, decays, elementwise, rates
from tests.optim.rows_sgd import sgd

ROWS = {
    "skip_nonfinite": Row(
        build=lambda **options: fnn.optim.skip_nonfinite(fnn.optim.sgd(**options)),
        oracle=elementwise(sgd),
        options=dict(learning_rate=rates, momentum=decays),
        usual=dict(learning_rate=0.1, momentum=0.9),
        optax=lambda **options: optax.apply_if_finite(optax.sgd(**options), 5),
    ),
}
