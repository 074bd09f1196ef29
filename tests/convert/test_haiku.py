"""A network of Haiku."""

import jax
import pytest

from fnn import convert, tree
from tests.convert.support import FNN_NET, FNN_SHAPE, draw, run, same, values_like
from tests.support import assert_close


def test_a_network_of_haiku_itself():
    hk = pytest.importorskip("haiku")

    def forward(x, train=False):
        x = hk.Conv2D(4, 3)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, train))
        x = hk.Conv2D(4, 3, stride=2)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, train))
        x = hk.Conv2DTranspose(4, 3, stride=2)(x)
        x = hk.LayerNorm(-1, True, True)(x.reshape(len(x), -1))
        return hk.Linear(3)(x)

    model, x = hk.without_apply_rng(hk.transform_with_state(forward)), draw(*FNN_SHAPE)
    with jax.numpy_dtype_promotion("standard"):  # which haiku relies on
        drawn = jax.eval_shape(lambda key: model.init(key, x, True), jax.random.key(0))
    theirs, stats = values_like(drawn)
    apart = {"conv_transpose1": "conv2_d_transpose"}  # of the same shapes as conv2_d_1
    params, state = convert.from_haiku(FNN_NET, theirs, stats, FNN_SHAPE, names=apart)
    apply = jax.jit(model.apply)
    wanted, _ = apply(theirs, stats, x)
    assert_close(run(FNN_NET)(params, x, state=state), wanted, tolerance=1e-5)
    names = {"conv1": "conv2_d", "conv2": "conv2_d_1", "conv_transpose1": "conv2_d_transpose"}
    names |= {"batch_norm1": "batch_norm", "batch_norm2": "batch_norm_1"}
    names |= {"layer_norm1": "layer_norm", "dense1": "linear"}
    back, back_stats = convert.to_haiku(FNN_NET, params, state, FNN_SHAPE, names=names)
    same(back, theirs)
    assert set(tree.to_paths(back_stats)) == set(tree.to_paths(stats))
    again, _ = apply(back, back_stats, x)
    assert_close(again, wanted, tolerance=1e-6)
