"""Rows of joined axes: C, H, W there and H, W, C here, followed through a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import convert, errors, tree


def rows(net, shape, **options):
    """The order of the rows of net's only dense kernel: row i of ours is row rows[i] there."""
    params, state = net.init(jax.random.key(0), shape)
    path, kernel = next(
        (p, k) for p, k in tree.to_paths(params).items() if "dense" in p and "kernel" in p
    )
    count = kernel.shape[0]
    marked = jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32)[:, None], kernel.shape)
    params = tree.update(params, path, marked)
    theirs = convert.to_torch(net, params, state, shape, **options)
    column = theirs[path.replace("/", ".").replace("kernel", "weight")][0]
    return list(column.astype(int))  # in their order, the numbers of our rows


def chw(height, width, channels):
    return [
        (h * width + w) * channels + c
        for c in range(channels)
        for h in range(height)
        for w in range(width)
    ]


@fnn.compose(conv1=fnn.conv(3, (1, 1)), dense1=fnn.dense(2))
def by_reshape(f, x):  # [B, H, W, C]
    h = jax.jit(jax.nn.gelu)(f.conv1(x) * 2)
    join = jax.jit(lambda h: h.reshape(len(h), -1))
    return f.dense1(jax.checkpoint(lambda h: jnp.tanh(join(h)))(h) + 1)


@fnn.compose(a=fnn.conv(2, (1, 1)), b=fnn.conv(1, (1, 1)), flat=fnn.flatten(3), dense1=fnn.dense(2))
def by_concatenation(f, x):
    h = jax.nn.relu(jnp.concatenate([f.a(x), f.b(x)], axis=-1))
    return f.dense1(jax.nn.softplus(f.flat(h)))


@fnn.compose(conv1=fnn.conv(3, (1, 1)), dense1=fnn.dense(2))
def by_mean(f, x):
    return f.dense1(f.conv1(x).mean((1, 2)))


@fnn.compose(conv1=fnn.conv(3, (1, 1)), dense1=fnn.dense(2))
def tokens_of_an_image(f, x):
    h = f.conv1(x)
    return f.dense1(h.reshape(len(x), -1, 3))


@fnn.compose(
    conv1=fnn.conv(3, (1, 1)), flat=fnn.flatten(3), norm=fnn.layer_norm(), dense1=fnn.dense(2)
)
def by_layer_norm(f, x):
    return f.dense1(f.norm(f.flat(f.conv1(x))))


@fnn.compose(embed=fnn.embedding(5, 3), flat=fnn.flatten(2), dense1=fnn.dense(2))
def of_tokens(f, x):
    return f.dense1(f.flat(f.embed(x)))


JOINED = {
    "reshape in the body": (by_reshape, (1, 2, 4, 2), chw(2, 4, 3)),
    "concatenation": (by_concatenation, (1, 2, 2, 2), chw(2, 2, 3)),
    "mean over space": (by_mean, (1, 2, 2, 2), [0, 1, 2]),
    "tokens": (tokens_of_an_image, (1, 2, 2, 2), [0, 1, 2]),
    "layer_norm between": (by_layer_norm, (1, 2, 2, 2), chw(2, 2, 3)),
    "one spatial axis": (
        fnn.serial(fnn.conv(2, (3,)), fnn.flatten(2), fnn.dense(2)),
        (1, 4, 1),
        chw(1, 4, 2),
    ),
    "axes of other names": (
        fnn.serial(fnn.conv(3, (1, 1)), fnn.flatten(3), fnn.dense(2, axes=("pixels", "hidden"))),
        (1, 2, 2, 2),
        chw(2, 2, 3),
    ),
    "group_norm between": (
        fnn.serial(
            fnn.conv(4, (1, 1)), fnn.group_norm(2, spatial_axes=2), fnn.flatten(3), fnn.dense(2)
        ),
        (1, 2, 2, 1),
        chw(2, 2, 4),
    ),
    "pool of an input": (
        fnn.serial(fnn.max_pool((2, 2)), fnn.flatten(3), fnn.dense(2)),
        (1, 4, 4, 3),
        chw(2, 2, 3),
    ),
    "one channel": (fnn.serial(fnn.flatten(3), fnn.dense(2)), (1, 2, 3, 1), list(range(6))),
    "global pool": (
        fnn.serial(fnn.conv(3, (1, 1)), fnn.global_avg_pool(2), fnn.dense(2)),
        (1, 2, 2, 1),
        [0, 1, 2],
    ),
    "remat and cast": (
        fnn.cast(
            fnn.serial(
                fnn.remat(fnn.serial(fnn.conv(3, (1, 1)), jax.nn.relu)),
                fnn.flatten(3),
                fnn.dense(2),
            ),
            jnp.bfloat16,
        ),
        (1, 2, 2, 2),
        chw(2, 2, 3),
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_rows_of_joined_axes(name):
    net, shape, wanted = JOINED[name]
    assert rows(net, shape) == wanted


def test_features_joined_stay_as_they_are():
    params, state = of_tokens.init(jax.random.key(0), jnp.zeros((1, 4), int))
    theirs = convert.to_torch(of_tokens, params, state, jnp.zeros((1, 4), int))
    np.testing.assert_array_equal(theirs["dense1.weight"], params["dense1"]["kernel"].T)


def test_an_input_that_is_flattened_at_once_asks():
    net = fnn.serial(fnn.flatten(3), jax.nn.relu, fnn.dense(2))
    with pytest.raises(errors.ParamsError, match="^dense1: .*flattened="):
        rows(net, (1, 2, 2, 3))
    assert rows(net, (1, 2, 2, 3), flattened="CHW") == chw(2, 2, 3)
    assert rows(net, (1, 2, 2, 3), flattened="HWC") == list(range(12))
    with pytest.raises(errors.OptionError):
        rows(net, (1, 2, 2, 3), flattened="WHC")


@fnn.compose(conv1=fnn.conv(3, (1, 1)), flat=fnn.flatten(3), dense1=fnn.dense(2))
def reversed_values(f, x):
    return f.dense1(f.flat(f.conv1(x))[..., ::-1])


@fnn.compose(dense1=fnn.dense(12), conv1=fnn.conv(2, (1, 1)))
def decoder(f, x):  # [B, C]
    return f.conv1(f.dense1(x).reshape(len(x), 2, 2, 3))


@fnn.compose(conv1=fnn.conv(3, (1, 1)), flat=fnn.flatten(3), dense1=fnn.dense(2))
def extended(f, x):
    h = f.flat(f.conv1(x))
    return f.dense1(jnp.concatenate([h, jnp.ones((len(x), 1))], -1))


@fnn.compose(conv1=fnn.conv(3, (1, 1)), flat=fnn.flatten(3), dense1=fnn.dense(12))
def shared(f, x):
    return f.dense1(f.dense1(f.flat(f.conv1(x))))  # the second time, of features


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (reversed_values, (1, 2, 2, 1)),
        (decoder, (1, 5)),
        (extended, (1, 2, 2, 1)),
        (shared, (1, 2, 2, 1)),
    ],
    ids=["reversed", "decoder", "extended", "shared"],
)
def test_an_order_that_cannot_be_known_is_refused(net, shape):
    params, state = net.init(jax.random.key(0), shape)
    with pytest.raises(errors.ParamsError, match="order of values"):
        convert.to_torch(net, params, state, shape)
    theirs = convert.to_torch(net, params, state, shape, flattened="HWC")
    np.testing.assert_array_equal(theirs["dense1.weight"], params["dense1"]["kernel"].T)
