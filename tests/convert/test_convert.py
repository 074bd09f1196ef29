"""Conversions: the values of another framework's network, in fnn's, compute what they did there.

The oracles are written here in the other framework's own layout (PyTorch's channels first), as
NumPy loops in float64; where torch, flax or haiku are installed they are asked as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import convert, errors, tree
from tests.layers import oracles
from tests.support import assert_close, assert_teaches

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def draw_var(*shape):
    return RNG.uniform(0.5, 2.0, shape).astype(np.float32)


def same(a, b):
    assert not tree.compare(a, b), tree.compare(a, b)


def run(net):
    return jax.jit(net)


def like(specs):
    return jax.tree.map(lambda p: (p.shape, np.dtype(p.dtype)), specs)


# --- PyTorch's layers, channels first, in loops


def conv_chw(x, weight, bias, pad=1):
    """[B, I, H, W] and (O, I, k, k) -> [B, O, H, W]."""
    x = np.pad(np.float64(x), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    k = weight.shape[-1]
    height, width = x.shape[2] - k + 1, x.shape[3] - k + 1
    y = np.zeros((len(x), len(weight), height, width))
    for o in range(len(weight)):
        for i in range(height):
            for j in range(width):
                y[:, o, i, j] = (x[:, :, i : i + k, j : j + k] * weight[o]).sum((1, 2, 3))
    return y + bias[:, None, None]


def conv_transpose_chw(x, weight, bias, stride=2):
    """Each x[i, j] adds its multiple of the kernel at y[i s, j s]: (I, O, k, k), no padding."""
    k = weight.shape[-1]
    _, _, height, width = x.shape
    size = (height - 1) * stride + k, (width - 1) * stride + k
    y = np.zeros((len(x), weight.shape[1], *size))
    for i in range(height):
        for j in range(width):
            for c in range(weight.shape[0]):
                spread = x[:, c, i, j][:, None, None, None] * np.float64(weight[c])
                y[:, :, i * stride : i * stride + k, j * stride : j * stride + k] += spread
    return y + bias[:, None, None]


def batch_norm_chw(x, weight, bias, mean, var):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    weight, bias, mean, var = (np.float64(a).reshape(shape) for a in (weight, bias, mean, var))
    return weight * (x - mean) / np.sqrt(var + 1e-5) + bias


def max_pool_chw(x):
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height // 2, 2, width // 2, 2).max((3, 5))


def channels_last(x):
    return np.moveaxis(np.float32(x), 1, -1)


CNN_SHAPE = (1, 6, 4, 2)  # [B, H, W, C]


def cnn():
    """Convolution, norm, pool, flatten, and a norm between flatten and the linear layer."""
    return fnn.serial(
        fnn.conv(5, (3, 3), padding=1),
        fnn.batch_norm(),
        jax.nn.relu,
        fnn.max_pool((2, 2)),
        fnn.flatten(3),
        fnn.batch_norm(),
        fnn.dropout(0.5),
        fnn.dense(7),
        jnp.tanh,
        fnn.dense(3),
    )


def cnn_state_dict():
    return {
        "features.0.weight": draw(5, 2, 3, 3),
        "features.0.bias": draw(5),
        "features.1.weight": draw(5),
        "features.1.bias": draw(5),
        "features.1.running_mean": draw(5),
        "features.1.running_var": draw_var(5),
        "features.1.num_batches_tracked": np.asarray(3),
        "classifier.0.weight": draw(30),
        "classifier.0.bias": draw(30),
        "classifier.0.running_mean": draw(30),
        "classifier.0.running_var": draw_var(30),
        "classifier.0.num_batches_tracked": np.asarray(3),
        "classifier.2.weight": draw(7, 30),
        "classifier.2.bias": draw(7),
        "classifier.4.weight": draw(3, 7),
        "classifier.4.bias": draw(3),
    }


def cnn_chw(x, w):
    def norm(x, name):
        names = ("weight", "bias", "running_mean", "running_var")
        return batch_norm_chw(x, *(w[f"{name}.{entry}"] for entry in names))

    def linear(x, name):
        return x @ np.float64(w[f"{name}.weight"]).T + w[f"{name}.bias"]

    x = conv_chw(x, w["features.0.weight"], w["features.0.bias"])
    x = max_pool_chw(np.maximum(norm(x, "features.1"), 0))
    x = norm(x.reshape(len(x), -1), "classifier.0")
    return linear(np.tanh(linear(x, "classifier.2")), "classifier.4")


def test_a_torch_cnn_computes_what_it_did():
    state_dict, x = cnn_state_dict(), draw(3, 2, 6, 4)
    net = cnn()
    params, state = convert.from_torch(net, state_dict, CNN_SHAPE)
    declared = net.specs(CNN_SHAPE)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), (params, state)) == like(declared)
    y = run(net)(params, channels_last(x), state=state)
    assert_close(y, cnn_chw(x, state_dict), dtype="float32", tolerance=1e-5)


def test_torch_round_trip_is_bitwise():
    state_dict = cnn_state_dict()
    names = {
        "conv1": "features.0",
        "batch_norm1": "features.1",
        "batch_norm2": "classifier.0",
        "dense1": "classifier.2",
        "dense2": "classifier.4",
    }
    net = cnn()
    params, state = convert.from_torch(net, state_dict, CNN_SHAPE, names=names)
    same((params, state), convert.from_torch(net, state_dict, CNN_SHAPE))
    kept = {k: v for k, v in state_dict.items() if "num_batches" not in k}
    back = convert.to_torch(net, params, state, CNN_SHAPE, names=names)
    same(kept, back)
    assert list(back) == list(kept)
    assert all(isinstance(a, np.ndarray) and a.flags.writeable for a in back.values())
    ours = convert.to_torch(net, params, state, CNN_SHAPE)
    assert "batch_norm1.running_mean" in ours
    same((params, state), convert.from_torch(net, ours, CNN_SHAPE))
    backwards = dict(reversed(ours.items()))  # the same names pair whatever the order
    same((params, state), convert.from_torch(net, backwards, CNN_SHAPE))


def test_converted_arrays_are_copies():
    buffer = np.zeros(64 * 64 + 16, np.float32)
    start = -(buffer.ctypes.data // 4) % 16  # where JAX would take over the memory as it is
    kernel = buffer[start : start + 64 * 64].reshape(64, 64)
    params, _ = convert.from_keras(fnn.dense(64), [kernel, draw(64)], (1, 64))
    kernel[:] = 1
    assert not np.any(params["kernel"])


LAYERS = {  # one layer, PyTorch's weights, an input in PyTorch's layout, and what it gives there
    "conv_transpose": (
        fnn.conv_transpose(3, (3, 3), strides=2, padding=0),
        {"weight": draw(2, 3, 3, 3), "bias": draw(3)},
        draw(2, 2, 4, 3),
        lambda x, w: conv_transpose_chw(x, w["weight"], w["bias"]),
    ),
    "conv_transpose adjoint": (
        fnn.conv_transpose(3, (3, 3), strides=2, padding=0, transpose_kernel=True),
        {"weight": draw(2, 3, 3, 3), "bias": draw(3)},
        draw(2, 2, 4, 3),
        lambda x, w: conv_transpose_chw(x, w["weight"], w["bias"]),
    ),
    "depthwise_conv": (
        fnn.depthwise_conv((3, 3), multiplier=2, padding=1),
        {"weight": draw(6, 1, 3, 3), "bias": draw(6)},
        draw(2, 3, 4, 5),
        lambda x, w: np.concatenate(
            [
                conv_chw(x[:, i // 2, None], w["weight"][i : i + 1], w["bias"][i : i + 1])
                for i in range(6)
            ],
            1,
        ),
    ),
    "prelu": (
        fnn.prelu(),
        {"weight": draw(3)},
        draw(2, 3, 4, 5),
        lambda x, w: np.where(x > 0, x, np.float64(w["weight"])[:, None, None] * x),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_torch_layer(name):
    layer, weights, x, oracle = LAYERS[name]
    shape = (1, *x.shape[2:], x.shape[1])
    params, state = convert.from_torch(layer, weights, shape)
    y = layer(params, channels_last(x), state=state)
    assert_close(np.moveaxis(y, -1, 1), oracle(np.float64(x), weights), tolerance=1e-5)
    same(convert.to_torch(layer, params, state, shape), weights)


def test_bilinear_and_embedding_of_torch():
    weight, bias = draw(4, 2, 3), draw(4)
    net = fnn.bilinear(4)
    params, state = convert.from_torch(net, {"weight": weight, "bias": bias}, (1, 2), (1, 3))
    a, b = draw(5, 2), draw(5, 3)
    wanted = np.zeros((5, 4))
    for o in range(4):
        for i in range(2):
            for j in range(3):
                wanted[:, o] += np.float64(a[:, i]) * weight[o, i, j] * b[:, j]
    assert_close(net(params, a, b), wanted + bias, tolerance=1e-5)
    same(convert.to_torch(net, params, state, (1, 2), (1, 3)), {"weight": weight, "bias": bias})
    table, tokens = draw(6, 3), jnp.array([[5, 0, 2]])
    net = fnn.embedding(6, 3)
    params, _ = convert.from_torch(net, {"weight": table}, tokens)
    np.testing.assert_array_equal(net(params, tokens), table[np.array(tokens)])


# --- where axes are joined


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
            fnn.conv(4, (1, 1)), fnn.group_norm(2, n_spatial=2), fnn.flatten(3), fnn.dense(2)
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


# --- Keras, by lists and by paths


def keras_net():
    return fnn.serial(
        fnn.conv(4, (3, 3)),
        fnn.batch_norm(eps=1e-3),
        jax.nn.relu,
        fnn.depthwise_conv((3, 3), multiplier=2),
        fnn.flatten(3),
        fnn.dense(3),
    )


def keras_weights():
    return [
        draw(3, 3, 2, 4), draw(4),
        draw(4), draw(4), draw(4), draw_var(4),
        draw(3, 3, 4, 2), draw(8),
        draw(96, 3), draw(3),
    ]  # fmt: skip


KERAS_SHAPE = (1, 4, 3, 2)
KERAS_PATHS = (
    "net/conv2d/kernel", "net/conv2d/bias",
    "net/batch_normalization/gamma", "net/batch_normalization/beta",
    "net/batch_normalization/moving_mean", "net/batch_normalization/moving_variance",
    "net/depthwise_conv2d/kernel", "net/depthwise_conv2d/bias",
    "net/dense/kernel", "net/dense/bias",
)  # fmt: skip


def keras_oracle(x, w):
    y = oracles.conv(x, w[0], w[1])
    y = np.maximum(oracles.batch_norm_eval(y, *w[2:6], eps=1e-3), 0)
    each = [
        oracles.conv(y[..., c, None], w[6][:, :, c, None, m, None])  # one channel, one multiple
        for c in range(4)
        for m in range(2)
    ]
    y = np.concatenate(each, -1) + w[7]
    return oracles.dense(y.reshape(len(y), -1), w[8], w[9])


def test_keras_weights_compute_what_they_should():
    net, weights, x = keras_net(), keras_weights(), draw(2, 4, 3, 2)
    params, state = convert.from_keras(net, weights, KERAS_SHAPE)
    y = net(params, x, state=state)
    assert_close(y, keras_oracle(x, weights), dtype="float32", tolerance=1e-5)
    same(convert.to_keras(net, params, state, KERAS_SHAPE), weights)
    by_path = dict(zip(KERAS_PATHS, weights, strict=True))
    same(convert.from_keras(net, by_path, KERAS_SHAPE), (params, state))
    moved = dict(sorted(by_path.items()))
    names = {
        "conv1": "net/conv2d",
        "batch_norm1": "net/batch_normalization",
        "depthwise_conv1": "net/depthwise_conv2d",
    }
    same(convert.from_keras(net, moved, KERAS_SHAPE, names=names), (params, state))


def test_a_transposed_convolution_of_keras_and_haiku():
    weight, bias, x = draw(3, 3, 4, 2), draw(4), draw(2, 3, 2, 2)  # (kH, kW, out, in)
    theirs = conv_transpose_chw(np.moveaxis(x, -1, 1), np.transpose(weight, (3, 2, 0, 1)), bias)
    for transpose_kernel in (False, True):
        net = fnn.conv_transpose(4, (3, 3), strides=2, padding=0, transpose_kernel=transpose_kernel)
        params, state = convert.from_keras(net, [weight, bias], (1, 3, 2, 2))
        assert_close(net(params, x), np.moveaxis(theirs, 1, -1), tolerance=1e-5)
        same(convert.to_keras(net, params, state, (1, 3, 2, 2)), [weight, bias])
        slides = {"w": np.flip(weight, (0, 1)), "b": bias}  # over the spread input, in Haiku
        same(convert.from_haiku(net, slides, {}, (1, 3, 2, 2)), (params, state))
        same(convert.to_haiku(net, params, state, (1, 3, 2, 2))[0], {"~": slides})


# --- Flax and Haiku, whose trees JAX sorts


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


NET = fnn.serial(
    stem=fnn.conv(4, (3, 3)),
    block=fnn.serial(fnn.batch_norm(), jax.nn.relu, fnn.conv(4, (3, 3), use_bias=False)),
    pool=fnn.avg_pool((2, 2)),
    flat=fnn.flatten(3),
    norm=fnn.layer_norm(),
    head=fnn.dense(3),
)
NET_SHAPE = (1, 4, 4, 2)


def values(net, *xs, seed=1):
    """Random params and state; variances are positive."""
    params, state = net.init(jax.random.key(0), *xs)
    rng = np.random.default_rng(seed)

    def drawn(a):
        return jnp.asarray(rng.uniform(0.5, 2, a.shape).astype(a.dtype))

    return jax.tree.map(drawn, (params, state))


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


# --- the frameworks themselves, where they are installed


def test_a_network_of_torch_itself():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 8, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=4),
        torch.nn.GroupNorm(2, 8),
        torch.nn.PReLU(8),
        torch.nn.ConvTranspose2d(8, 4, 3, stride=2),
        torch.nn.Flatten(),
        torch.nn.LayerNorm(4 * 9 * 5),
        torch.nn.Linear(4 * 9 * 5, 6),
    )
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.dtype == torch.float32:
                value.copy_(torch.rand_like(value) + 0.5)
    model.eval()
    net = fnn.serial(
        fnn.conv(8, (3, 3), padding=1, use_bias=False),
        fnn.batch_norm(),
        jax.nn.relu,
        fnn.max_pool((2, 2)),
        fnn.conv(8, (3, 3), padding=1, groups=4),
        fnn.group_norm(2, n_spatial=2),
        fnn.prelu(),
        fnn.conv_transpose(4, (3, 3), strides=2, padding=0),
        fnn.flatten(3),
        fnn.layer_norm(eps=1e-5),
        fnn.dense(6),
    )
    shape, x = (1, 8, 4, 2), draw(3, 2, 8, 4)
    params, state = convert.from_torch(net, model.state_dict(), shape)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    y = run(net)(params, channels_last(x), state=state)
    assert_close(y, wanted, tolerance=1e-5)
    gradients = dict(model.named_parameters()) | dict(model.named_buffers())
    same(convert.from_torch(net, gradients, shape, names={"batch_norm1": "1"})[0], params)

    paths = [path for path, _ in net.children if path in params]
    theirs = dict.fromkeys(name.split(".")[0] for name in model.state_dict())
    names = dict(zip(paths, theirs, strict=True))
    more, after = values(net, shape)
    theirs = convert.to_torch(net, more, after, shape, names=names)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in theirs.items()})
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    assert_close(run(net)(more, channels_last(x), state=after), wanted, tolerance=1e-5)


FNN_NET = fnn.serial(
    fnn.conv(4, (3, 3)),
    fnn.batch_norm(),
    jax.nn.relu,
    fnn.conv(4, (3, 3), strides=2),
    fnn.batch_norm(),
    jax.nn.relu,
    fnn.conv_transpose(4, (3, 3), strides=2),
    fnn.flatten(3),
    fnn.layer_norm(eps=1e-5),
    fnn.dense(3),
)
FNN_SHAPE = (2, 4, 4, 2)


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


def values_like(trees):
    rng = np.random.default_rng(2)

    def drawn(a):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return np.zeros(a.shape, a.dtype)
        return rng.uniform(0.5, 2, a.shape).astype(a.dtype)

    return jax.tree.map(drawn, trees)


# --- what is said of wrong inputs

SMALL = fnn.serial(fnn.conv(2, (3, 3)), fnn.batch_norm(), fnn.dense(3))
SMALL_SHAPE = (1, 4, 4, 2)
GOOD = {
    "a.weight": draw(2, 2, 3, 3),
    "a.bias": draw(2),
    "b.weight": draw(2),
    "b.bias": draw(2),
    "b.running_mean": draw(2),
    "b.running_var": draw_var(2),
    "c.weight": draw(3, 2),
    "c.bias": draw(3),
}
NAMED = {"conv1": "a", "batch_norm1": "b", "dense1": "c"}
PARAMS, STATE = convert.from_torch(SMALL, GOOD, SMALL_SHAPE)


def without(*names):
    return {name: array for name, array in GOOD.items() if name not in names}


def load(state_dict, *xs, net=SMALL, **options):
    return convert.from_torch(net, state_dict, *(xs or (SMALL_SHAPE,)), **options)


def store(params, state=None, **options):
    return convert.to_torch(
        SMALL, params, STATE if state is None else state, SMALL_SHAPE, **options
    )


WRONG = {
    "missing bias": (lambda: load(without("a.bias")), "conv1", "a.bias for bias"),
    "missing statistic": (lambda: load(without("b.running_var")), "batch_norm1", "b.running_var"),
    "missing layer": (
        lambda: load(without("c.weight", "c.bias")),
        "from_torch",
        "dense1 (bias (3,), weight (3, 2))",
    ),
    "extra entry": (lambda: load(GOOD | {"c.weight_g": draw(3)}), "from_torch", "c.weight_g"),
    "extra layer": (lambda: load(GOOD | {"d.weight": draw(3)}), "from_torch", "d (weight (3,))"),
    "extra array of a layer": (
        lambda: load(GOOD | {"c.running_mean": draw(3)}),
        "dense1",
        "also c.running_mean",
    ),
    "wrong shape": (
        lambda: load(GOOD | {"a.weight": draw(2, 3, 3, 3)}),
        "conv1",
        "a.weight (2, 2, 3, 3) for kernel (3, 3, 2, 2), got a.weight (2, 3, 3, 3)",
    ),
    "untransposed": (lambda: load(GOOD | {"c.weight": draw(2, 3)}), "dense1", "c.weight (3, 2)"),
    "wrong dtype": (
        lambda: load(GOOD | {"c.bias": np.zeros(3)}),
        "dense1",
        "c.bias of float32 for bias, got c.bias of float64",
    ),
    "no array": (lambda: load(GOOD | {"c.bias": [1.0, 2.0, 3.0]}), "dense1", "c.bias to be"),
    "objects": (lambda: load(GOOD | {"c.bias": None}), "dense1", "c.bias to be an array"),
    "no dict": (lambda: load(list(GOOD.items())), "from_torch", "state_dict to be a dict"),
    "names of no string": (lambda: load({1: draw(2)}), "from_torch", "names that are strings"),
    "no layer": (lambda: load(GOOD, net=jnp.tanh), "from_torch", "a layer"),
    "names without a layer": (
        lambda: load(GOOD, names={"conv2": "a"}),
        "from_torch",
        "did you mean conv1",
    ),
    "names of no layer there": (lambda: load(GOOD, names={"conv1": "aa"}), "from_torch", "got aa"),
    "names twice": (
        lambda: load(GOOD, names={"conv1": "a", "dense1": "a"}),
        "from_torch",
        "two for a",
    ),
    "names that are no dict": (lambda: load(GOOD, names=["a"]), "from_torch", "names to be"),
    "names that are no strings": (
        lambda: load(GOOD, names={"conv1": 0}),
        "from_torch",
        "names to be",
    ),
    "traced": (lambda: jax.eval_shape(load, GOOD), "conv1", "outside jit"),
    "unknown kind": (
        lambda: load(GOOD, net=fnn.serial(fnn.local_conv(2, (3, 3)))),
        "local_conv1",
        "a layer of a kind",
    ),
    "stacked": (
        lambda: load(GOOD, (1, 2), net=fnn.serial(fnn.repeat(fnn.serial(fnn.dense(2)), 3))),
        "from_torch",
        "repeat1/2/dense1 (bias (2,), weight (2, 2))",
    ),
    "a stack without a name": (
        lambda: load(GOOD, (1, 2), net=fnn.repeat(fnn.dense(2), 3)),
        "repeat",
        "put it in fnn.serial",
    ),
    "to: missing": (lambda: store({"conv1": PARAMS["conv1"]}), "to_torch", "dense1"),
    "to: no state": (lambda: store(PARAMS, {}), "to_torch", "state"),
    "to: extra": (lambda: store(PARAMS | {"more": {"bias": draw(2)}}), "to_torch", "more"),
    "to: shape": (
        lambda: store(PARAMS | {"dense1": {"kernel": draw(3, 2), "bias": draw(3)}}),
        "dense1/kernel",
        "(3, 2)",
    ),
    "to: names twice": (
        lambda: store(PARAMS, names={"conv1": "dense1"}),
        "to_torch",
        "two of dense1",
    ),
    "to: names without a layer": (lambda: store(PARAMS, names={"c": "x"}), "to_torch", "got c"),
    "to: traced": (lambda: jax.eval_shape(store, PARAMS), "to_torch", "outside jit"),
    "keras: too few": (
        lambda: convert.from_keras(SMALL, [draw(3, 3, 2, 2)], SMALL_SHAPE),
        "from_keras",
        "8 weights, for conv1/kernel, conv1/bias",
    ),
    "keras: order": (
        lambda: convert.from_keras(fnn.serial(fnn.dense(2)), [draw(2), draw(3, 2)], (1, 3)),
        "dense1",
        "(3, 2)",
    ),
    "keras: no list": (lambda: convert.from_keras(SMALL, 3, SMALL_SHAPE), "from_keras", "a list"),
    "keras: names": (
        lambda: convert.from_keras(SMALL, [], SMALL_SHAPE, names={"conv1": "a"}),
        "from_keras",
        "no names",
    ),
    "flax: not variables": (
        lambda: convert.from_flax(SMALL, {"Dense_0": {}}, SMALL_SHAPE),
        "from_flax",
        "also Dense_0",
    ),
    "flax: shape": (
        lambda: convert.from_flax(
            fnn.serial(fnn.dense(2)), {"params": {"D": {"kernel": draw(2, 3)}}}, (1, 3)
        ),
        "dense1",
        "D/bias for bias, got D/kernel",
    ),
    "haiku: no state": (
        lambda: convert.from_haiku(
            fnn.serial(fnn.batch_norm(use_bias=False)), {"bn": {"scale": draw(1, 2)}}, {}, (1, 2)
        ),
        "batch_norm1",
        "mean_ema",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs(name):
    call, where, said = WRONG[name]
    with pytest.raises(fnn.FnnError) as caught:
        call()
    error = caught.value
    assert_teaches(error, where)
    assert said in str(error)
