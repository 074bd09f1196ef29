"""Arrays there and back, bitwise, in every framework."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import convert, errors, tree
from tests.convert.naming import C, state_dict
from tests.convert.support import NET, NET_SHAPE, draw, same, values


def test_converted_arrays_are_copies():
    buffer = np.zeros(64 * 64 + 16, np.float32)
    start = -(buffer.ctypes.data // 4) % 16  # where JAX would take over the memory as it is
    kernel = buffer[start : start + 64 * 64].reshape(64, 64)
    params, _ = convert.from_keras(fnn.dense(64), [kernel, draw(64)], (1, 64))
    kernel[:] = 1
    assert not np.any(params["kernel"])


@pytest.mark.parametrize("framework", ["torch", "flax", "nnx", "haiku", "keras"])
def test_round_trips_are_bitwise(framework):
    params, state = values(NET, NET_SHAPE)
    there = getattr(convert, f"to_{framework}")(NET, params, state, NET_SHAPE)
    args = there if framework == "haiku" else (there,)
    assert all(isinstance(a, np.ndarray) for a in jax.tree.leaves(there))
    back = getattr(convert, f"from_{framework}")(NET, *args, NET_SHAPE)
    same(back, (params, state))
    assert jax.tree.structure(back) == jax.tree.structure((params, state))


WIDTHS = st.lists(st.tuples(st.sampled_from("dbl"), st.integers(1, 3)), min_size=1, max_size=6)


@given(WIDTHS, st.sampled_from(["torch", "flax", "nnx", "haiku", "keras"]), st.randoms())
def test_round_trips_of_any_chain(chain, framework, random):
    """Through their names, and through names of another order, which only order can pair."""
    build = {"d": fnn.dense, "b": lambda n: fnn.batch_norm(), "l": lambda n: fnn.layer_norm()}
    net = fnn.serial(*[build[kind](n) for kind, n in chain])
    params, state = values(net, (1, 2), seed=random.randint(0, 99))
    names = {name: f"Layer_{i}" for i, (name, _) in enumerate(net.children)}
    options = {} if framework == "keras" else {"names": names}
    there = getattr(convert, f"to_{framework}")(net, params, state, (1, 2), **options)
    if framework != "torch" and framework != "keras":  # what JAX does to a dict
        there = jax.tree.map(lambda a: a, there)
    args = there if framework == "haiku" else (there,)
    same(getattr(convert, f"from_{framework}")(net, *args, (1, 2)), (params, state))


@fnn.compose(pos=fnn.parameter((2, 3)), dense=fnn.dense(3))
def with_parameter(f, x):
    return f.dense(x) + f.pos()


def test_parameters_that_are_no_layers():
    kernel, bias, pos = draw(3, 3), draw(3), draw(2, 3)
    wanted = {"dense": {"kernel": kernel, "bias": bias}, "pos": {"value": pos}}
    shape = (1, 2, 3)
    torch = {"pos_embed": pos, "fc.weight": kernel.T, "fc.bias": bias}
    same(convert.from_torch(with_parameter, torch, shape)[0], wanted)
    same(convert.to_torch(with_parameter, wanted, {}, shape)["pos"], pos)
    linen = {"params": {"Dense_0": wanted["dense"], "pos_embed": pos}}
    same(convert.from_flax(with_parameter, linen, shape)[0], wanted)
    haiku = {"~": {"pos_embed": pos}, "linear": {"w": kernel, "b": bias}}
    same(convert.from_haiku(with_parameter, haiku, {}, shape)[0], wanted)
    same(convert.from_keras(with_parameter, [pos, kernel, bias], shape)[0], wanted)


def test_bfloat16_there_and_back():
    net, shape = fnn.dense(2), jax.ShapeDtypeStruct((1, 3), jnp.bfloat16)
    given = {"weight": np.ones((2, 3), ml_dtypes.bfloat16), "bias": np.ones(2, ml_dtypes.bfloat16)}
    params, _ = convert.from_torch(net, given, shape)
    assert params["kernel"].dtype == jnp.bfloat16
    assert not tree.compare(convert.to_torch(net, params, {}, shape), given)
    with pytest.raises(errors.DtypeError, match=r"weight of bfloat16.*jnp\.bfloat16"):
        convert.from_torch(net, given, (1, 3))


def test_bytes_in_the_other_order_are_read_and_masks_are_not():
    given = {name: array.astype(">f4") for name, array in state_dict("fc").items()}
    given["fc.weight"][:] = np.arange(C * C).reshape(C, C)
    params, _ = convert.from_torch(fnn.dense(C), given, (1, C))
    np.testing.assert_array_equal(params["kernel"], np.arange(C * C).reshape(C, C).T)
    with pytest.raises(errors.InputError, match="without a mask"):
        masked = {"fc.weight": np.ma.ones((C, C), "f"), "fc.bias": np.zeros(C, "f")}
        convert.from_torch(fnn.dense(C), masked, (1, C))
