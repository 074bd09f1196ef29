"""Batch statistics of params that were not trained with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fnn
from tests.support import asarray


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_refreshed_statistics_are_means_of_the_batches(momentum):
    rng = np.random.default_rng(0)
    net = fnn.serial(fnn.dense(3), fnn.batch_norm(momentum=momentum), fnn.dropout(0.5))
    params, state = net.init(jax.random.key(0), (1, 4))
    batches = [np.float32(rng.normal(2.0, 1.0, size=(n, 4))) for n in (8, 8, 5)]
    state = jax.tree.map(lambda a: a + 7, state)  # of other params
    fresh = fnn.train.refresh_statistics(net, params, state, batches, key=jax.random.key(1))
    kernel, bias = (np.float64(params["dense1"][k]) for k in ("kernel", "bias"))
    hidden = [np.float64(x) @ kernel + bias for x in batches]
    sizes = [len(h) for h in hidden]
    got = fresh["batch_norm1"]
    assert_allclose(got["mean"], np.average([h.mean(0) for h in hidden], 0, sizes), rtol=2e-5)
    assert_allclose(got["var"], np.average([h.var(0) for h in hidden], 0, sizes), rtol=2e-5)


def test_refreshing_leaves_the_rest_and_takes_batches_as_they_come():
    net = fnn.batch_norm()
    params, state = net.init(jax.random.key(0), (1, 1))
    x = asarray([[1.0], [3.0]])
    for batch in (x, (x, jnp.zeros(2)), {"image": x, "label": jnp.zeros(2)}):
        fresh = fnn.train.refresh_statistics(net, params, state, iter([batch]))
        assert_allclose(fresh["mean"], [2.0], rtol=1e-6)
    still = fnn.batch_norm(momentum=1.0)
    kept = fnn.train.refresh_statistics(still, params, state, [x])
    jax.tree.map(assert_array_equal, kept, state)
    assert fnn.train.refresh_statistics(fnn.dense(2), fnn.dense(2).init(jax.random.key(0), x)[0],
                                        {}, [x]) == {}  # fmt: skip
    with pytest.raises(fnn.FnnError, match="one batch"):
        fnn.train.refresh_statistics(net, params, state, [])
    with pytest.raises(fnn.FnnError, match="state like declared"):
        fnn.train.refresh_statistics(net, params, {}, [x])
