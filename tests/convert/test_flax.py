"""The trees of Flax, and networks of linen and nnx."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import convert, errors, tree
from tests.convert.support import (
    FNN_NET,
    FNN_SHAPE,
    NET,
    NET_SHAPE,
    draw,
    run,
    same,
    values,
    values_like,
)
from tests.support import assert_close


def deep():
    """Twelve layers of equal shapes, so that Dense_10 stands before Dense_2."""
    return fnn.serial(*[layer for _ in range(12) for layer in (fnn.dense(3), jnp.tanh)])


def test_layers_of_equal_shapes_go_by_number():
    kernels = [draw(3, 3) for _ in range(12)]
    linen = {f"Dense_{i}": {"kernel": k, "bias": k[0]} for i, k in enumerate(kernels)}
    linen = jax.tree.map(lambda a: a, {"params": linen})
    assert list(linen["params"])[1:3] == ["Dense_1", "Dense_10"]
    params, _ = convert.from_flax(deep(), linen, (1, 3))
    for i, kernel in enumerate(kernels):
        np.testing.assert_array_equal(params[f"dense{i + 1}"]["kernel"], kernel)
    haiku = {
        "net/linear" + (f"_{i}" if i else ""): {"w": k, "b": k[0]} for i, k in enumerate(kernels)
    }
    same(convert.from_haiku(deep(), jax.tree.map(lambda a: a, haiku), {}, (1, 3))[0], params)
    pure = {"layers": {i: {"kernel": k, "bias": k[0]} for i, k in enumerate(kernels)}}
    same(convert.from_nnx(deep(), pure, (1, 3))[0], params)


def test_names_that_tell_no_order_are_asked_for():
    net = fnn.serial(fnn.dense(3), fnn.dense(3), fnn.dense(2))
    a, b = ({"kernel": draw(3, 3), "bias": draw(3)} for _ in range(2))
    last = {"kernel": draw(3, 2), "bias": draw(2)}
    variables = {"params": {"key": a, "query": b, "out": last}}
    with pytest.raises(errors.ParamsError, match="which is which of dense1, .*got key, query"):
        convert.from_flax(net, variables, (1, 3))
    params, _ = convert.from_flax(net, variables, (1, 3), names={"dense1": "query"})
    same(params, {"dense1": b, "dense2": a, "dense3": last})


def test_what_the_trees_of_flax_and_haiku_look_like():
    params, state = values(NET, NET_SHAPE)
    variables = convert.to_flax(NET, params, state, NET_SHAPE, names={"stem": "enc/Conv_0"})
    assert set(tree.to_paths(variables)) == {
        "params/enc/Conv_0/kernel", "params/enc/Conv_0/bias",
        "params/block/batch_norm1/scale", "params/block/batch_norm1/bias",
        "params/block/conv1/kernel", "params/norm/scale", "params/norm/bias",
        "params/head/kernel", "params/head/bias",
        "batch_stats/block/batch_norm1/mean", "batch_stats/block/batch_norm1/var",
    }  # fmt: skip
    theirs, stats = convert.to_haiku(NET, params, state, NET_SHAPE)
    assert theirs["block/batch_norm1"]["offset"].shape == (1, 1, 1, 4)
    assert set(stats) == {"block/batch_norm1/~/mean_ema", "block/batch_norm1/~/var_ema"}
    assert set(stats["block/batch_norm1/~/var_ema"]) == {"average", "hidden", "counter"}
    decay = np.float32(0.99)  # so high a counter debiases no more
    assert 1 - decay ** stats["block/batch_norm1/~/var_ema"]["counter"] == 1


def test_a_network_of_flax_linen_itself():
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Conv(4, (3, 3))(x)))
            x = linen.Conv(4, (3, 3), strides=2)(x)
            x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
            x = linen.ConvTranspose(4, (3, 3), strides=(2, 2))(x)
            x = linen.LayerNorm(epsilon=1e-5)(x.reshape(len(x), -1))
            return linen.Dense(3)(x)

    x, model = draw(*FNN_SHAPE), Model()
    variables = values_like(jax.eval_shape(model.init, jax.random.key(0), x))
    apart = {"conv_transpose1": "ConvTranspose_0"}  # of the same shapes as Conv_1
    params, state = convert.from_flax(FNN_NET, variables, FNN_SHAPE, names=apart)
    wanted = jax.jit(model.apply)(variables, x)
    assert_close(run(FNN_NET)(params, x, state=state), wanted, tolerance=1e-5)
    names = {"conv1": "Conv_0", "conv2": "Conv_1", "conv_transpose1": "ConvTranspose_0"}
    names |= {"batch_norm1": "BatchNorm_0", "batch_norm2": "BatchNorm_1"}
    names |= {"layer_norm1": "LayerNorm_0", "dense1": "Dense_0"}
    same(convert.to_flax(FNN_NET, params, state, FNN_SHAPE, names=names), variables)


def test_a_network_of_flax_nnx_itself():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(2, 4, (3, 3), rngs=rngs),
        nnx.BatchNorm(4, use_running_average=True, rngs=rngs),
        nnx.relu,
        nnx.Linear(4, 3, rngs=rngs),
    )
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    pure = values_like(nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, pure)
    nnx.update(model, state)
    net = fnn.serial(fnn.conv(4, (3, 3)), fnn.batch_norm(), jax.nn.relu, fnn.dense(3))
    params, stats = convert.from_nnx(net, pure, FNN_SHAPE)
    x = draw(*FNN_SHAPE)
    assert_close(net(params, x, state=stats), model(x), tolerance=1e-5)
    names = {"conv1": "layers/0", "batch_norm1": "layers/1", "dense1": "layers/3"}
    back = convert.to_nnx(net, params, stats, FNN_SHAPE, names=names)
    same(back, pure)
