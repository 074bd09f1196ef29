"""Kernels clipped before they are rounded."""

import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.layers.support import key, normal

RATIOS = np.linspace(1, 0.5, 26)


def clip(w, ratio, group):
    """[in] weights without their ends, group by group, in float64; and what int4 makes of them."""
    clipped, rounded = np.empty(w.shape), np.empty(w.shape)
    for part in (slice(i, i + group) for i in range(0, len(w), group)):
        end = ratio * np.abs(w[part]).max()
        clipped[part] = np.clip(w[part], -end, end)
        rounded[part] = np.round(clipped[part] / (end / 7)) * (end / 7)
    return clipped, rounded


def best(w, x, group):
    """The clipped weights of each feature that cost its outputs least."""
    w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
    out = []
    for column in w.T:
        tried = [clip(column, r, group) for r in RATIOS]
        wrong = [np.sum((x @ (rounded - column)) ** 2) for _, rounded in tried]
        out.append(tried[int(np.argmin(wrong))][0])
    return np.stack(out, axis=1)


def test_each_feature_has_the_ratio_that_costs_its_outputs_least():
    w, x = normal(12, 3).at[0].set(3.0), normal(40, 12).at[:, 0].multiply(0.1)
    params = {"kernel": w, "bias": jnp.ones(3)}
    found = fnn.clipped(fnn.dense(3), params, {}, x, dtype=jnp.int4, group_size=8)
    wanted = best(w, x, 8)
    assert (np.abs(wanted).max(0) < 2.9).all()
    np.testing.assert_allclose(found["kernel"], wanted, rtol=1e-5)
    np.testing.assert_array_equal(found["bias"], 1)


def test_inputs_are_those_of_each_member_of_a_stack():
    x, member = normal(9, 4), fnn.residual(fnn.dense(4, use_bias=False))
    net = fnn.repeat(member, 2)
    params, _ = net.init(key(), x)
    found = fnn.clipped(net, params, {}, x, dtype="int4")["layer"]["kernel"]
    first, second = params["layer"]["kernel"]
    np.testing.assert_allclose(found[0], best(first, x, 4), rtol=1e-5)
    np.testing.assert_allclose(found[1], best(second, x + x @ first, 4), rtol=1e-5)


def test_layers_whose_outputs_are_no_features_have_one_ratio_and_strangers_are_refused():
    def summed(params, state, x, *, key, train):
        return (x @ params["kernel"]).sum(-1), state

    def specs(x):
        return {"kernel": fnn.Param((4, 3), fnn.initializers.zeros)}, {}

    net, x = fnn.leaf("summed", specs, summed), normal(9, 4)
    several = fnn.ensemble(net, 2)  # one layer, and so are its members
    params = {"kernel": normal(2, 4, 3)}
    found = fnn.clipped(several, params, {}, x, dtype="int4")["kernel"]
    ratio = np.abs(found).max(1) / np.abs(params["kernel"]).max(1)
    assert ratio[0, 0] < 1
    np.testing.assert_allclose(ratio, np.full((2, 3), ratio[0, 0]), rtol=1e-6)
    with pytest.raises(errors.ParamsError, match="^clipped: .*kernel"):
        fnn.clipped(fnn.dense(3), {"weight": x}, {}, x, dtype="int4")
    normed = fnn.weight_norm(fnn.serial(fnn.dense(2)))
    own, _ = normed.init(key(), x)
    with pytest.raises(errors.OptionError, match="layers without sublayers, got dense1/kernel"):
        fnn.clipped(normed, own, {}, x, dtype="int4", names=("gain",))
