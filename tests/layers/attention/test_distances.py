"""Biases by distance against their papers' formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors


@pytest.mark.parametrize("heads", [1, 4, 6, 8, 12])
def test_alibi_is_the_papers(heads):
    def slopes(n):  # as in its section 3 and its code
        if math.log2(n).is_integer():
            return [(2 ** (-8 / n)) ** (i + 1) for i in range(n)]
        close = 2 ** math.floor(math.log2(n))
        return slopes(close) + slopes(2 * close)[0::2][: n - close]

    distances = np.arange(-3, 4)
    wanted = -np.abs(distances)[:, None] * np.array(slopes(heads))
    np.testing.assert_allclose(fnn.alibi(heads)({}, distances), wanted, rtol=1e-6)


@pytest.mark.parametrize("causal, buckets, most", [(False, 32, 128), (True, 32, 128), (True, 6, 9)])
def test_buckets_are_t5s(causal, buckets, most):
    def bucket(distance):  # Raffel et al. (2020), section 2.1, one number at a time
        first, count = 0, buckets
        if not causal:
            count //= 2
            first = count if distance < 0 else 0
        size = max(distance, 0) if causal else abs(distance)
        if size < count // 2:
            return first + size
        ratio = math.log(size / (count // 2)) / math.log(most / (count // 2))
        return first + min(count // 2 + int(ratio * (count - count // 2)), count - 1)

    net = fnn.relative_bias(3, buckets=buckets, max_distance=most, causal=causal)
    distances = np.setdiff1d(np.arange(-300, 300), [16, 32, 64, -16, -32, -64])  # where logs round
    table = np.float32(np.arange(3 * buckets).reshape(buckets, 3))
    wanted = table[[bucket(d) for d in distances]]
    np.testing.assert_array_equal(jax.jit(net)({"bias": table}, distances), wanted)
    params, _ = net.init(jax.random.key(0), distances)
    assert not params["bias"].any() and params["bias"].shape == (buckets, 3)


def test_wrong_options_and_inputs():
    for build, wrong in (
        (fnn.alibi, {"heads": 0}),
        (fnn.relative_bias, {"heads": 0}),
        (fnn.relative_bias, {"heads": 2, "buckets": 3}),
        (fnn.relative_bias, {"heads": 2, "buckets": 30}),
        (fnn.relative_bias, {"heads": 2, "max_distance": 8}),
        (fnn.relative_bias, {"heads": 2, "bias_init": 3}),
    ):
        with pytest.raises(errors.OptionError, match=f"^{build.__name__}: "):
            build(**wrong)
    for net in (fnn.alibi(2), fnn.relative_bias(2)):
        with pytest.raises(errors.DtypeError, match="distances of integers"):
            net.specs(jnp.ones(3))
    with pytest.raises(errors.ShapeError, match=r"\(3, 2\), from distances.* heads=2"):
        fnn.attention(4, 2, causal=True, distances=fnn.alibi(4)).specs((3, 4))
