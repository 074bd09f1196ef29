"""What rounding each layer alone does to the outputs."""

import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.layers.support import key, normal


def test_only_one_layer_is_rounded_for_each_row():
    net = fnn.serial(fnn.dense(5), jnp.tanh, body=fnn.serial(fnn.dense(3), fnn.batch_norm()))
    x = normal(6, 4)
    params, state = net.init(key(), x)
    found = fnn.analysis.rounding(
        net, params, x, state=state, dtypes=("int8", "float8_e5m2"), group_size=2
    )
    assert [row.path for row in found.rows] == ["body/dense1", "dense1", ""]
    y = np.asarray(net(params, x, state=state), np.float64)
    for name in ("int8", "float8_e5m2"):
        wrong = []
        for chosen in (("body/dense1",), ("dense1",), ("body/dense1", "dense1")):
            sizes = {"dense1": 5, "body/dense1": 3}
            few = {path: fnn.stored(fnn.dense(sizes[path]), name, group_size=2) for path in chosen}
            some = fnn.swap(net, few)
            own, _ = fnn.unmerge(some, params, state, x)
            change = np.asarray(some(own, x, state=state), np.float64) - y
            wrong.append(np.linalg.norm(change) / np.linalg.norm(y))
        np.testing.assert_allclose([row.errors[name] for row in found.rows], wrong, rtol=1e-3)
    assert [row.nbytes for row in found.rows] == [4 * 15, 4 * 20, 4 * 35]
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "bytes", "int8", "float8_e5m2"]
    assert lines[-1].split()[:3] == ["all", "140", "B"]


def test_params_are_those_of_the_network():
    with pytest.raises(errors.ParamsError, match="^rounding: .*kernel"):
        fnn.analysis.rounding(fnn.dense(2), {"bias": jnp.ones(2)}, normal(1, 2))
    with pytest.raises(errors.OptionError, match="params called embedding, got only bias, kernel"):
        params, _ = fnn.dense(2).init(key(), (1, 2))
        fnn.analysis.rounding(fnn.dense(2), params, normal(1, 2), names=("embedding",))
