"""PyTorch's layers, written as loops over channels first, compute in fnn what they did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import convert
from tests.convert.support import conv_transpose_chw, draw, draw_var, run, same, values
from tests.support import asarray, assert_close


def like(specs):
    return jax.tree.map(lambda p: (p.shape, np.dtype(p.dtype)), specs)


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
    table, tokens = draw(6, 3), asarray([[5, 0, 2]])
    net = fnn.embedding(6, 3)
    params, _ = convert.from_torch(net, {"weight": table}, tokens)
    np.testing.assert_array_equal(net(params, tokens), table[np.array(tokens)])


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
        fnn.group_norm(2, spatial_axes=2),
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
