"""Depthwise and separable convolutions against the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers.conv import oracles
from tests.layers.conv.support import FLOATS, SMALL, assert_bilinear, sliding_cases
from tests.layers.support import seeds
from tests.support import asarray, assert_close

TINY_SLIDING = (3, 2), dict(strides=2, dilation=1, padding=1), (4, 4, 1)
MANY_TAPS = (129,), dict(strides=1, dilation=1, padding="VALID"), (1, 130, 2)


@given(
    case=sliding_cases(),
    more=st.integers(1, 2),
    bias=st.booleans(),
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
@example(case=TINY_SLIDING, more=1, **SMALL)
@example(case=MANY_TAPS, more=1, **SMALL)
def test_depthwise_conv_is_the_loop(case, more, bias, dtype, seed):
    size, options, shape = case
    draw, spatial, cin = np.random.default_rng(seed).normal, shape[-len(size) - 1 : -1], shape[-1]
    layer = fnn.depthwise_conv(size, multiplier=more, use_bias=bias, **options)
    out, terms = oracles.depthwise_terms(spatial, size, cin, more, **options)
    params = {"kernel": draw(size=(*size, 1, cin * more)), "bias": draw(size=cin * more)}
    if not bias:
        del params["bias"]
    assert_bilinear(layer, draw(size=shape), params, dtype, out, terms)


def test_depthwise_conv_is_torchs_grouped_conv():
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(3).normal
    x, weight = (np.float32(draw(size=s)) for s in [(2, 3, 5, 4), (6, 1, 3, 2)])
    theirs = torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(weight), groups=3, padding=1)
    layer = fnn.depthwise_conv((3, 2), multiplier=2, padding=1, use_bias=False)
    params = {"kernel": asarray(weight.transpose(2, 3, 1, 0))}
    y = layer(params, asarray(x.transpose(0, 2, 3, 1)))
    assert_close(y, theirs.numpy().transpose(0, 2, 3, 1))


def test_separable_conv_is_the_two_loops():
    options = dict(strides=2, padding="SAME", dilation=1)
    layer = fnn.separable_conv(3, (3, 2), multiplier=2, **options)
    params, _ = layer.init(jax.random.key(0), (2, 5, 4, 2))
    x = np.random.default_rng(4).normal(size=(2, 5, 4, 2))
    out, terms = oracles.depthwise_terms((5, 4), (3, 2), 2, 2, **options)
    between = oracles.bilinear(x, np.asarray(params["depthwise"]["kernel"]), None, out, terms)
    want = oracles.conv(between, **{k: np.asarray(v) for k, v in params["pointwise"].items()})
    assert_close(layer(params, jnp.float32(x)), want, dtype="float32")
    assert sorted(params["depthwise"]) == ["kernel"]


def test_separable_conv_names_itself_in_mistakes():
    bad = (0, -1, 2.5, True, None, "text", (), (2.5,), float("nan"), [None], {}, jnp.ones(2))
    for option in ("features", "kernel_size", "multiplier", "strides", "padding", "dilation"):
        options = {"features": 2, "kernel_size": (3, 3)}
        refused = 0
        for value in bad:
            try:
                fnn.separable_conv(**{**options, option: value})
            except errors.FnnError as error:
                refused += 1
                assert isinstance(error, errors.OptionError)
                assert str(error).startswith("separable_conv: expected")
        assert refused >= len(bad) - 1
    layer = fnn.separable_conv(2, (3, 3))
    params, _ = layer.init(jax.random.key(0), (1, 4, 4, 2))
    for x in (jnp.ones((4, 4)), jnp.ones((1, 4, 4, 3)), jnp.ones((1, 4, 4, 2), int)):
        texts = set()
        for call in (layer, jax.jit(layer)):
            with pytest.raises(errors.FnnError, match="^depthwise: expected") as caught:
                call(params, x)
            texts.add(str(caught.value))
        assert len(texts) == 1
