"""What is said to those who come from elsewhere, and which call it tells them to make."""

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn import errors
from tests.support import same_under_jit

NET = fnn.serial(fnn.dense(3), fnn.batch_norm())
PARAMS, STATE = NET.init(jax.random.key(0), (1, 4))
X = jnp.ones((2, 4))


def test_a_bool_as_input_is_told_of_train():
    for call in (
        lambda: NET.apply(PARAMS, STATE, True),
        lambda: fnn.dense(3).apply(PARAMS["dense1"], {}, X, True),
        lambda: fnn.dense(3).init(jax.random.key(0), False),
    ):
        with pytest.raises(errors.InputError, match="got (True|False); train= is given by name"):
            call()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_input_is_told_of_cast(dtype):
    error = same_under_jit(lambda x: NET(PARAMS, x, state=STATE), X.astype(dtype))
    assert f"fnn.cast(net, jnp.{dtype})" in error.mend and "astype(jnp.float32)" in error.mend
    y = fnn.cast(NET, jnp.dtype(dtype))(PARAMS, X.astype(dtype), state=STATE)
    assert y.dtype == dtype


def test_a_state_missing_in_generation_is_told_of_its_argument():
    cell = fnn.cells.serial(norm=fnn.batch_norm(), rnn=fnn.cells.simple_rnn(3))
    params, state = cell.init(jax.random.key(0), None, (2, 3))
    x, given = jnp.ones((2, 4, 3)), jnp.ones((2, 4), bool)

    def run(x, **more):
        return fnn.unroll_generate(cell, params, x, given, next_input=lambda key, y: y, **more).y

    error = same_under_jit(run, x)
    assert isinstance(error, errors.ParamsError) and "with norm" in error.expected
    assert "unroll_generate(..., state=state)" in error.mend
    assert run(x, state=state).shape == (2, 4, 3)
